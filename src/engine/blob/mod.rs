//! The blobs of a directory: which there are, what names them, and when they go. Many processes make, name and remove
//! them at once; what one of them has in memory is what it saw last.
//!
//! A blob lives as long as the index holds a word of a record that names it. Which words those may be (its owners: more
//! than one after a move to another version) is found by the hashes of keys in its file, so whether it is alive can be
//! looked up at any time, and whoever removes an entry need not care. A sweep asks for each, once a second and when
//! space is needed.
//!
//! ```text
//! refresh    list the directory, unless nothing changed: what is new is looked into, what has gone is forgotten
//! take_dead  a known owner is there: alive. Else find owners by the hashes. None: read the hashes again, of which others
//!            may have added some, and find once more. None: dead, or kept, if somebody holds the file
//! release    lock the file alone; if somebody holds it, it stays. Find owners as above; if there are none, unlink it
//! ```
//!
//! Whoever publishes a record that names a blob, where none named it before or what did may be removed meanwhile,
//! [`pin`](Blobs::pin)s it until that is done. Where a word takes the place of another that names the blob too, as with a
//! touch or a copy, there is no moment at which nothing names it.

mod file;
mod listing;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::engine::format::blob_ref::BlobRef;
use crate::engine::format::word::Word;
use crate::engine::shared::accounting::{Reservation, SpaceInUse};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fork::OwnFile;
use crate::sys::step;
use crate::sys::storage::{File, HeldDirectory, Storage};
pub(crate) use file::{BlobWriter, OpenBlob};

use file::{
    Alone, Contents, Hold, Named, contents, file_name, give_up_claim, hold, is_claimed,
    is_none_of_ours, named, open_alone,
};
pub(crate) use listing::Haste;
use listing::{Listing, Names};

/// The word of a record that names a blob, and the hash of its key.
pub(crate) type BlobOwner = (u64, Word);

/// What can say which words name a blob.
pub(crate) trait Naming {
    /// Whether the index holds this very word.
    fn holds(&self, owner: BlobOwner) -> bool;

    /// The word under this hash whose record names the blob, or one that nobody can read now.
    ///
    /// # Errors
    /// If somebody holds a lock of the index for long, or the environment refuses to let a record be read.
    fn find(&self, hash: u64, name: u128) -> Result<Option<Word>>;

    /// All that are known by these hashes.
    fn find_all(&self, hashes: &[u64], name: u128) -> Result<Vec<BlobOwner>> {
        let find = |hash: &u64| Ok(self.find(*hash, name)?.map(|word| (*hash, word)));
        hashes.iter().filter_map(|hash| find(hash).transpose()).collect()
    }
}

pub(crate) struct Blobs {
    dir: PathBuf,
    held: HeldDirectory,
    space: SpaceInUse,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    blobs: HashMap<u128, Blob>,
    /// What has a blob's name and is none.
    foreign: HashSet<u128>,
    listing: Listing,
}

struct Blob {
    /// What it takes on disk.
    bytes: u64,
    /// Counts it until a record is about to name it; of one that was made here.
    reservation: Option<Reservation>,
    /// Whether another process, which wrote it, counted it as its own when somebody last looked.
    is_claimed: bool,
    /// Of the keys that may name it, as far as is known.
    hashes: Vec<u64>,
    /// Words that named it when somebody last looked.
    owners: Vec<BlobOwner>,
    life: Life,
}

/// What a blob was when somebody last looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// Nothing names it.
    Dead,
    /// Nothing names it, but somebody reads it or is about to name it.
    Kept,
}

impl Blob {
    fn new(contents: Contents, reservation: Option<Reservation>) -> Self {
        let Contents { bytes, hashes } = contents;
        Self {
            bytes,
            reservation,
            is_claimed: false,
            hashes,
            owners: Vec::new(),
            life: Life::Alive,
        }
    }

    /// Whether it is counted elsewhere than with the blobs.
    fn is_counted_apart(&self) -> bool {
        self.reservation.is_some() || self.is_claimed
    }

    /// Looks whether anything names it, as far as is known.
    fn look(&mut self, name: u128, index: &impl Naming) -> Result<bool> {
        if self.owners.iter().any(|owner| index.holds(*owner)) {
            return Ok(true);
        }
        self.owners = index.find_all(&self.hashes, name)?;
        Ok(!self.owners.is_empty())
    }

    /// The same, with the hashes that are in its file now.
    fn look_again(&mut self, name: u128, file: &File, index: &impl Naming) -> Result<bool> {
        let contents =
            contents(file).map_err(|e| Error::new(ErrorKind::Io, "read").with_source(e))?;
        // In one that is damaged now there may have been more, but nobody can read it any more.
        if let Some(Contents { hashes, .. }) =
            contents.filter(|c| c.hashes.len() > self.hashes.len())
        {
            self.hashes = hashes;
        }
        self.owners = index.find_all(&self.hashes, name)?;
        Ok(!self.owners.is_empty())
    }
}

/// A hold on a blob while a record that names it is being published.
pub(crate) struct BlobPin<'a> {
    blobs: &'a Blobs,
    pub(crate) reference: BlobRef,
    /// Open, so that it stays.
    file: Arc<OwnFile>,
}

impl BlobPin<'_> {
    /// Says that a record is about to name the blob, which does not go with the pin any more.
    pub(crate) fn keep(&self) {
        // Locked until it is done: whoever counts what there is sees the blob on the one side or on the other.
        let mut known = self.blobs.lock();
        if let Some(reservation) =
            known.blobs.get_mut(&self.reference.name).and_then(|b| b.reservation.take())
        {
            // First: for another process it counts twice for a moment, and never not at all.
            if let Err(error) = give_up_claim(&self.file) {
                tracing::warn!(%error, "the bytes of a blob count as those of its writer until it is closed");
            }
            self.blobs.space.blob_made(reservation);
        }
    }
}

impl Drop for BlobPin<'_> {
    fn drop(&mut self) {
        let name = self.reference.name;
        let mut known = self.blobs.lock();
        if known.blobs.get(&name).is_none_or(|blob| blob.reservation.is_none()) {
            return;
        }
        let blob = known.blobs.remove(&name);
        drop(known);
        // No record tells anybody of it.
        self.blobs.remove(name);
        drop(blob);
    }
}

impl Blobs {
    /// The blobs in the directory `dir`, which of them there are to be found by a [`refresh`](Blobs::refresh).
    pub(crate) fn open(
        storage: &'static dyn Storage,
        dir: &Path,
        space: &SpaceInUse,
    ) -> Result<Self> {
        let held = HeldDirectory::open(storage, dir).map_err(|e| Error::io("open", dir, e))?;
        Ok(Self { dir: dir.to_owned(), held, space: space.clone(), known: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self) -> &'static dyn Storage {
        self.held.storage()
    }

    fn path(&self, name: u128) -> PathBuf {
        self.dir.join(file_name(name))
    }

    /// Finds out which blobs there are now, whoever made or removed some, unless it is too soon for that. The files of writers
    /// that died are removed; what is not ours stays. Costs a look at the directory if nothing changed for some seconds; else
    /// a listing, and a read of each blob that is new.
    ///
    /// # Errors
    /// If the directory or a blob cannot be read. What was found until then is known.
    pub(crate) fn refresh(&self, haste: Haste) -> Result<()> {
        self.refreshed(haste).map(drop)
    }

    /// The same, and counts what there is. The caller sees to it that no blob is unlinked meanwhile.
    pub(crate) fn recount(&self, haste: Haste) -> Result<()> {
        let was = self.space.blob_bytes();
        let Some(mut known) = self.refreshed(haste)? else { return Ok(()) };
        for (name, blob) in known.blobs.iter_mut().filter(|(_, blob)| blob.is_claimed) {
            let looked =
                self.storage().open_to_read(&self.path(*name)).and_then(|file| is_claimed(&file));
            // If nobody can say: rather twice than not at all.
            blob.is_claimed = looked.unwrap_or(false);
        }
        // What nothing was to name yet counts as its writer's.
        let counted = known.blobs.values().filter(|blob| !blob.is_counted_apart());
        self.space.set_blob_bytes(was, counted.map(|blob| blob.bytes).sum());
        Ok(())
    }

    /// `None` if what is known may be out of date.
    fn refreshed(&self, haste: Haste) -> Result<Option<MutexGuard<'_, Known>>> {
        let io_error = |e| Error::io("read directory", &self.dir, e);
        let mut known = self.lock();
        let changed_at = self.held.changed_at().map_err(io_error)?;
        let begun = Instant::now();
        match known.listing.state(changed_at, haste, begun) {
            Names::Known => {}
            Names::Old => return Ok(None),
            Names::Wanted => {
                self.held.check_in_place().map_err(io_error)?;
                self.list(&mut known).inspect_err(|_| known.listing = Listing::default())?;
                known.listing.listed(begun, Instant::now());
            }
        }
        Ok(Some(known))
    }

    /// While a blob is made here, it gets its name and becomes known under the same lock.
    fn list(&self, known: &mut Known) -> Result<()> {
        let io_error = |e| Error::io("read directory", &self.dir, e);
        let mut there = HashSet::new();
        for found in self.storage().list(&self.dir).map_err(io_error)? {
            match found.to_str().map_or(Named::Unknown, named) {
                Named::Blob(name) => drop(there.insert(name)),
                Named::Temporary => self.remove_abandoned(&self.dir.join(found)),
                Named::Unknown => {}
            }
        }
        known.blobs.retain(|name, _| there.contains(name));
        known.foreign.retain(|name| there.contains(name));
        for name in there {
            if known.blobs.contains_key(&name) || known.foreign.contains(&name) {
                continue;
            }
            let path = self.path(name);
            let looked = self
                .storage()
                .open_to_read(&path)
                .and_then(|file| Ok((is_claimed(&file)?, contents(&file)?)));
            match looked {
                Ok((is_claimed, Some(contents))) => {
                    known.blobs.insert(name, Blob { is_claimed, ..Blob::new(contents, None) });
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // Whatever names it, it can be read by nobody.
                Err(e) if !is_none_of_ours(&e) => return Err(Error::io("open blob", &path, e)),
                _ => {
                    tracing::warn!(path = %path.display(), "not a blob, or damaged; it is passed over");
                    known.foreign.insert(name);
                }
            }
        }
        Ok(())
    }

    /// Removes the file of a writer, if it has died.
    fn remove_abandoned(&self, path: &Path) {
        let removed = open_alone(self.storage(), path).and_then(|alone| match alone {
            Alone::Yes(_held) => self.storage().remove(path),
            Alone::Held | Alone::Gone => Ok(()),
        });
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove what a writer left");
        }
    }

    /// The names of all that are alive, as far as is known.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<u128> {
        let known = self.lock();
        known
            .blobs
            .iter()
            .filter(|(_, blob)| blob.life == Life::Alive)
            .map(|(name, _)| *name)
            .collect()
    }

    /// The bytes that those take which are alive, and those that are dead and that nobody keeps.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.lock().blobs.values().fold((0, 0), |(alive, dead), blob| match blob.life {
            Life::Alive => (alive + blob.bytes, dead),
            Life::Dead => (alive, dead + blob.bytes),
            Life::Kept => (alive, dead),
        })
    }

    /// Begins a new blob, without any space yet.
    pub(crate) fn create(&self) -> Result<BlobWriter> {
        self.held.check_in_place().map_err(|e| Error::io("create blob", &self.dir, e))?;
        BlobWriter::create(self.storage(), &self.dir, self.space.reserve(0))
    }

    /// Makes the blob whole and durable, for a key of this hash. It goes again with the pin, unless that is told to
    /// [`keep`](BlobPin::keep) it.
    pub(crate) fn seal(&self, mut writer: BlobWriter, hash: u64) -> Result<BlobPin<'_>> {
        writer.finish(hash)?;
        let mut known = self.lock();
        let (reference, file, reservation) = writer.name()?;
        let contents = Contents { bytes: reservation.bytes(), hashes: vec![hash] };
        known.blobs.insert(reference.name, Blob::new(contents, Some(reservation)));
        drop(known);
        let pin = BlobPin { blobs: self, reference, file };
        self.storage()
            .sync_dir(&self.dir)
            .map_err(|e| Error::io("sync directory", &self.dir, e))?;
        Ok(pin)
    }

    /// Keeps the blob from going, whether it was ever heard of here or not. `None` if it has gone.
    ///
    /// # Errors
    /// If its file cannot be opened; [`Busy`](ErrorKind::Busy) if a process that was about to remove it was stopped.
    pub(crate) fn pin(&self, reference: BlobRef) -> Result<Option<BlobPin<'_>>> {
        let path = self.path(reference.name);
        let opened = OwnFile::to_lock(|| self.storage().open_to_read(&path))
            .and_then(|file| Ok((hold(&file)?, file)));
        match opened {
            Ok((Hold::Held, file)) => {
                Ok(Some(BlobPin { blobs: self, reference, file: Arc::new(file) }))
            }
            Ok((Hold::Gone, _)) => Ok(None),
            Ok((Hold::Busy, _)) => Err(Error::new(ErrorKind::Busy, "keep blob").with_path(&path)),
            Err(e) if is_none_of_ours(&e) => Ok(None),
            Err(e) => Err(Error::io("open blob", &path, e)),
        }
    }

    /// Notes, durably, that a key of this hash is about to name the blob.
    pub(crate) fn add_key(&self, pin: &BlobPin<'_>, hash: u64) -> Result<()> {
        let name = pin.reference.name;
        let is_known = |blob: &Blob| blob.hashes.contains(&hash);
        if !self.lock().blobs.get(&name).is_some_and(is_known) {
            file::add_hash(self.storage(), &self.path(name), hash)?;
            if let Some(blob) = self.lock().blobs.get_mut(&name) {
                blob.hashes.push(hash);
            }
        }
        Ok(())
    }

    /// Opens a blob to be read, whether it was ever heard of here or not. `None` if it has gone or is damaged.
    pub(crate) fn open_blob(&self, reference: BlobRef) -> Result<Option<OpenBlob>> {
        OpenBlob::open(self.storage(), &self.path(reference.name), reference)
    }

    /// The owners of the blobs that are alive, as far as is known.
    pub(crate) fn owners(&self) -> Vec<(u128, BlobOwner)> {
        let known = self.lock();
        let alive = known.blobs.iter().filter(|(_, blob)| blob.life == Life::Alive);
        alive.flat_map(|(name, blob)| blob.owners.iter().map(|owner| (*name, *owner))).collect()
    }

    /// All that names the blob now.
    pub(crate) fn owners_of(&self, name: u128, index: &impl Naming) -> Vec<BlobOwner> {
        let mut known = self.lock();
        let Some(blob) = known.blobs.get_mut(&name) else { return Vec::new() };
        let path = self.path(name);
        let opened =
            self.storage().open_to_read(&path).map_err(|e| Error::io("open blob", &path, e));
        if let Err(error) = opened.and_then(|file| blob.look_again(name, &file, index)) {
            tracing::debug!(%error, "what names a blob is known as far as it was");
        }
        blob.owners.clone()
    }

    /// The blobs that nothing names any more and that nobody keeps, who might be about to name them. They stay until they
    /// are [`release`](Blobs::release)d.
    pub(crate) fn take_dead(&self, index: &impl Naming) -> Vec<u128> {
        let mut dead = Vec::new();
        for (name, blob) in &mut self.lock().blobs {
            // Each time anew: a write that cannot be synced is taken back, and what it replaced is named again.
            let life = blob.look(*name, index).and_then(|is_named| match blob.life {
                _ if is_named => Ok(Life::Alive),
                Life::Dead => Ok(Life::Dead),
                Life::Alive | Life::Kept => self.look_closer(*name, blob, index),
            });
            blob.life = life.unwrap_or_else(|error| {
                tracing::debug!(%error, "whether anything names a blob cannot be seen now");
                Life::Alive
            });
            if blob.life == Life::Dead {
                dead.push(*name);
            }
        }
        dead
    }

    /// What a blob is that nothing names, as far as is known.
    fn look_closer(&self, name: u128, blob: &mut Blob, index: &impl Naming) -> Result<Life> {
        let path = self.path(name);
        let opened =
            self.storage().open_to_read(&path).and_then(|file| Ok((file::is_held(&file)?, file)));
        let (is_held, file) = match opened {
            Ok(opened) => opened,
            // There is nothing to be kept.
            Err(e) if is_none_of_ours(&e) => return Ok(Life::Dead),
            Err(e) => return Err(Error::io("open blob", &path, e)),
        };
        // After that: whoever lets go in between has named it by then, or does not.
        Ok(match (blob.look_again(name, &file, index)?, is_held) {
            (true, _) => Life::Alive,
            (false, true) => Life::Kept,
            (false, false) => Life::Dead,
        })
    }

    /// Removes those of the `dead` that nobody holds and that nothing names, now that nobody can begin to, and says how many
    /// are gone. The others stay.
    pub(crate) fn release(&self, dead: &[u128], index: &impl Naming) -> usize {
        if dead.is_empty() {
            return 0;
        }
        step!("blob::releasing");
        let removed = dead.iter().filter(|name| self.release_one(**name, index)).count();
        step!("blob::released");
        removed
    }

    fn release_one(&self, name: u128, index: &impl Naming) -> bool {
        let path = self.path(name);
        let opened =
            open_alone(self.storage(), &path).map_err(|e| Error::io("open blob", &path, e));
        let alone = opened.and_then(|alone| {
            let mut known = self.lock();
            let Some(blob) = known.blobs.get_mut(&name) else { return Ok(None) };
            match alone {
                Alone::Yes(file) if blob.look_again(name, &file, index)? => blob.life = Life::Alive,
                Alone::Yes(file) => return Ok(Some((file, blob.bytes))),
                Alone::Held => blob.life = Life::Kept,
                Alone::Gone => drop(known.blobs.remove(&name)),
            }
            Ok(None)
        });
        match alone {
            Ok(Some((file, bytes))) => {
                step!("blob::alone");
                if !self.remove(name) {
                    return false;
                }
                // The disk has its space back when nobody has it open any more.
                drop(file);
                self.space.blob_gone(bytes);
                self.lock().blobs.remove(&name);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a dead blob stays");
                false
            }
        }
    }

    /// Removes the file of a blob that the caller holds. If that fails, it stays, and counts.
    fn remove(&self, name: u128) -> bool {
        let path = self.path(name);
        match self.held.check_in_place().and_then(|()| self.storage().remove(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a blob");
                false
            }
            _ => true,
        }
    }
}
