//! The blobs of a directory: which exist, which entries name them, and when they are unlinked. Many
//! processes create, name and unlink blobs at once. Each keeps in memory the state that it saw
//! last.
//!
//! A blob is alive while the index holds a word of a record that names it. Those words are its
//! owners; a blob has several after a move to another version. Its file has the hashes of the keys
//! of all possible owners, so each process can look up at any time whether a blob is alive, and
//! removing an entry needs no work on the blob. A sweep checks each blob once a second and when
//! space is needed.
//!
//! ```text
//! refresh    list the directory, unless nothing changed: read new blobs, drop removed ones
//! take_dead  a known owner is in the index: alive. Else find owners by the known hashes. None:
//!            read the hashes again (other processes may have added some), find owners again.
//!            None: dead, or kept if a process holds the file
//! release    lock the file exclusively; if a process holds it, keep it. Find owners as above;
//!            if there are none, unlink it
//! ```
//!
//! A writer that publishes a record naming a blob [`pin`](Blobs::pin)s the blob until the word is
//! published, if no record names it yet or the one that does may be removed meanwhile. Where a word
//! replaces another that names the same blob, as in a touch or a copy, the blob is named all the
//! time.

mod file;
mod listing;
mod release;
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
use crate::sys::storage::{File, HeldDirectory, Storage};
pub(crate) use file::{BlobWriter, OpenBlob};

use file::{
    Alone, Contents, Hold, Named, contents, file_name, hold, is_claimed, is_none_of_ours, named,
    open_alone, release_claim,
};
pub(crate) use listing::Haste;
use listing::{Freshness, Listing};

/// The word of a record that names a blob, and the hash of its key.
pub(crate) type BlobOwner = (u64, Word);

/// Looks up which words name a blob.
pub(crate) trait Naming {
    /// Whether the index holds this very word.
    fn holds(&self, owner: BlobOwner) -> bool;

    /// The word under this hash whose record names the blob, or whose record cannot be read now.
    ///
    /// # Errors
    /// If another process holds a chain lock for long, or the system cannot read a record.
    fn find(&self, hash: u64, name: u128) -> Result<Option<Word>>;

    /// The owners under these hashes.
    fn find_all(&self, hashes: &[u64], name: u128) -> Result<Vec<BlobOwner>> {
        let find = |hash: &u64| Ok(self.find(*hash, name)?.map(|word| (*hash, word)));
        hashes.iter().filter_map(|hash| find(hash).transpose()).collect()
    }
}

pub(crate) struct Blobs {
    dir: PathBuf,
    held: HeldDirectory,
    space: SpaceInUse,
    known: Mutex<KnownBlobs>,
}

#[derive(Default)]
struct KnownBlobs {
    blobs: HashMap<u128, Blob>,
    /// Files that have the name of a blob and are not blobs.
    foreign: HashSet<u128>,
    listing: Listing,
}

struct Blob {
    /// The space that it takes on disk.
    bytes: u64,
    /// Counts its bytes until a record is about to name it; only of a blob that this process wrote.
    reservation: Option<Reservation>,
    /// Whether another process, which wrote it, counted it as its own at the last check.
    is_claimed: bool,
    /// The known hashes of keys that may name it.
    hashes: Vec<u64>,
    /// The words that named it at the last check.
    owners: Vec<BlobOwner>,
    life: Life,
}

/// The state of a blob at the last check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    /// No word names it.
    Dead,
    /// No word names it, but a process reads it or is about to name it.
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

    /// Whether its bytes count elsewhere, and not yet as a blob's.
    fn is_counted_apart(&self) -> bool {
        self.reservation.is_some() || self.is_claimed
    }

    /// Whether a word names it, as far as its hashes are known.
    fn look(&mut self, name: u128, index: &impl Naming) -> Result<bool> {
        if self.owners.iter().any(|owner| index.holds(*owner)) {
            return Ok(true);
        }
        self.owners = index.find_all(&self.hashes, name)?;
        Ok(!self.owners.is_empty())
    }

    /// The same, with the hashes that its file has now.
    fn look_again(&mut self, name: u128, file: &File, index: &impl Naming) -> Result<bool> {
        let contents =
            contents(file).map_err(|e| Error::new(ErrorKind::Io, "read").with_source(e))?;
        // A file that is damaged now may have had more, but no reader accepts it any more.
        if let Some(Contents { hashes, .. }) =
            contents.filter(|c| c.hashes.len() > self.hashes.len())
        {
            self.hashes = hashes;
        }
        self.owners = index.find_all(&self.hashes, name)?;
        Ok(!self.owners.is_empty())
    }
}

/// Keeps a blob from being unlinked while a record that names it is published.
pub(crate) struct BlobPin<'a> {
    blobs: &'a Blobs,
    pub(crate) reference: BlobRef,
    /// Open, and so held.
    file: Arc<OwnFile>,
}

impl BlobPin<'_> {
    /// Keeps the blob when the pin is dropped: a record is about to name it.
    pub(crate) fn keep(&self) {
        // Locked throughout: a recount sees the blob in one count or in the other.
        let mut known = self.blobs.lock();
        if let Some(reservation) =
            known.blobs.get_mut(&self.reference.name).and_then(|b| b.reservation.take())
        {
            // First: for other processes its bytes count twice for a moment, and are never missing.
            if let Err(error) = release_claim(&self.file) {
                tracing::warn!(%error, "a blob counts as its writer's until its file is closed");
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
        // No record names it.
        self.blobs.remove(name);
        drop(blob);
    }
}

impl Blobs {
    /// The blobs in the directory `dir`. A [`refresh`](Blobs::refresh) must follow to list them.
    pub(crate) fn open(
        storage: &'static dyn Storage,
        dir: &Path,
        space: &SpaceInUse,
    ) -> Result<Self> {
        let held = HeldDirectory::open(storage, dir).map_err(|e| Error::io("open", dir, e))?;
        Ok(Self { dir: dir.to_owned(), held, space: space.clone(), known: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, KnownBlobs> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self) -> &'static dyn Storage {
        self.held.storage()
    }

    fn path(&self, name: u128) -> PathBuf {
        self.dir.join(file_name(name))
    }

    /// Lists the blobs of all processes, unless it is too soon for that. Removes the files of dead
    /// writers; foreign files stay. Costs one `stat` of the directory if nothing changed for some
    /// seconds; else a listing, and a read of each new blob.
    ///
    /// # Errors
    /// If the directory or a blob cannot be read. The blobs found until then are known.
    pub(crate) fn refresh(&self, haste: Haste) -> Result<()> {
        self.refreshed(haste).map(drop)
    }

    /// The same, and corrects the count of their bytes. The caller ensures that no blob is unlinked
    /// meanwhile.
    pub(crate) fn recount(&self, haste: Haste) -> Result<()> {
        let was = self.space.blob_bytes();
        let Some(mut known) = self.refreshed(haste)? else { return Ok(()) };
        for (name, blob) in known.blobs.iter_mut().filter(|(_, blob)| blob.is_claimed) {
            let looked =
                self.storage().open_to_read(&self.path(*name)).and_then(|file| is_claimed(&file));
            // If that is unknown, the bytes rather count twice than not at all.
            blob.is_claimed = looked.unwrap_or(false);
        }
        // A blob that no record is about to name yet counts as its writer's.
        let counted = known.blobs.values().filter(|blob| !blob.is_counted_apart());
        self.space.set_blob_bytes(was, counted.map(|blob| blob.bytes).sum());
        Ok(())
    }

    /// `None` if the known names may be out of date.
    fn refreshed(&self, haste: Haste) -> Result<Option<MutexGuard<'_, KnownBlobs>>> {
        let io_error = |e| Error::io("read directory", &self.dir, e);
        let mut known = self.lock();
        let changed_at = self.held.changed_at().map_err(io_error)?;
        let begun = Instant::now();
        match known.listing.state(changed_at, haste, begun) {
            Freshness::Current => {}
            Freshness::Stale => return Ok(None),
            Freshness::MustList => {
                self.held.check_in_place().map_err(io_error)?;
                self.list(&mut known).inspect_err(|_| known.listing = Listing::default())?;
                known.listing.listed(begun, Instant::now());
            }
        }
        Ok(Some(known))
    }

    /// Lists the directory. The lock on `known` also covers the moment when a new blob of this
    /// process gets its name and becomes known.
    fn list(&self, known: &mut KnownBlobs) -> Result<()> {
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
                // Other errors of this kind: no reader can open it, whether it is named or not.
                Err(e) if !is_none_of_ours(&e) => return Err(Error::io("open blob", &path, e)),
                _ => {
                    tracing::warn!(path = %path.display(), "not a blob, or damaged; skipped");
                    known.foreign.insert(name);
                }
            }
        }
        Ok(())
    }

    /// Removes a temporary file, if its writer is dead.
    fn remove_abandoned(&self, path: &Path) {
        let removed = open_alone(self.storage(), path).and_then(|alone| match alone {
            Alone::Yes(_held) => self.storage().remove(path),
            Alone::Held | Alone::Gone => Ok(()),
        });
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove a dead writer's file");
        }
    }

    /// The names of the blobs that are known to be alive.
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

    /// The bytes of the blobs that are alive, and of those that are dead and not kept.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.lock().blobs.values().fold((0, 0), |(alive, dead), blob| match blob.life {
            Life::Alive => (alive + blob.bytes, dead),
            Life::Dead => (alive, dead + blob.bytes),
            Life::Kept => (alive, dead),
        })
    }

    /// Begins a new blob, with no bytes reserved yet.
    pub(crate) fn create(&self) -> Result<BlobWriter> {
        self.held.check_in_place().map_err(|e| Error::io("create blob", &self.dir, e))?;
        BlobWriter::create(self.storage(), &self.dir, self.space.reserve(0))
    }

    /// Completes the blob durably, for a key of this hash. Dropping the pin removes the blob,
    /// unless [`keep`](BlobPin::keep) was called.
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

    /// Keeps the blob from being unlinked, also if this process does not know it yet. `None` if it
    /// was unlinked.
    ///
    /// # Errors
    /// If its file cannot be opened; [`Busy`](ErrorKind::Busy) if a process that is about to unlink
    /// it is stopped.
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

    /// Adds the hash of a key that is about to name the blob to its file, durably.
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

    /// Opens a blob for reading, also if this process does not know it yet. `None` if it was
    /// unlinked or is damaged.
    pub(crate) fn open_blob(&self, reference: BlobRef) -> Result<Option<OpenBlob>> {
        OpenBlob::open(self.storage(), &self.path(reference.name), reference)
    }

    /// The known owners of the blobs that are alive.
    pub(crate) fn owners(&self) -> Vec<(u128, BlobOwner)> {
        let known = self.lock();
        let alive = known.blobs.iter().filter(|(_, blob)| blob.life == Life::Alive);
        alive.flat_map(|(name, blob)| blob.owners.iter().map(|owner| (*name, *owner))).collect()
    }

    /// All words that name the blob now.
    pub(crate) fn owners_of(&self, name: u128, index: &impl Naming) -> Vec<BlobOwner> {
        let mut known = self.lock();
        let Some(blob) = known.blobs.get_mut(&name) else { return Vec::new() };
        let path = self.path(name);
        let opened =
            self.storage().open_to_read(&path).map_err(|e| Error::io("open blob", &path, e));
        if let Err(error) = opened.and_then(|file| blob.look_again(name, &file, index)) {
            tracing::debug!(%error, "cannot look up all owners of a blob");
        }
        blob.owners.clone()
    }
}
