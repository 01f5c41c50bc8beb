//! The blobs of a directory: which there are, what names them, and when they go.
//!
//! A blob lives as long as the index holds a word of a record that names it. Which words those may be is known
//! (its owners: more than one after a move to another version), so whether it is alive can be looked up at any
//! time, and whoever removes an entry need not care. A sweep asks for each, once a second and when space is
//! needed.
//!
//! Whoever publishes a record that names a blob pins it before and notes the record's word as an owner, so that a
//! sweep in between does not take it for dead.

mod file;
mod room;
mod stream;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::index::Word;
use super::usage::{Account, SpaceInUse};
use crate::error::{Error, Result};
use crate::sys::file::{self as files, HeldDirectory};
use crate::sys::step;
pub(crate) use file::{BlobRef, BlobWriter, OpenBlob};
pub(crate) use stream::{BlobSource, Spooled};

use file::{CHUNK, Named, file_name, hashes, is_none_of_ours, named, space_for};

/// A blob that was touched more often than this is not asked about each of its records for ever.
const MOST_OWNERS: usize = 16;

/// The word of a record that names a blob, and the hash of its key.
pub(crate) type Owner = (u64, Word);

pub(crate) struct Blobs {
    dir: PathBuf,
    held: HeldDirectory,
    space: SpaceInUse,
    blobs: Mutex<HashMap<u128, Blob>>,
}

struct Blob {
    account: Arc<Account>,
    /// The hashes of all keys that ever named it.
    hashes: Vec<u64>,
    owners: Vec<Owner>,
    pins: u32,
    /// Nothing named it when somebody last looked.
    is_dead: bool,
}

/// A hold on a blob while a record that names it is being published.
pub(crate) struct Pin<'a> {
    blobs: &'a Blobs,
    pub(crate) reference: BlobRef,
}

impl Pin<'_> {
    /// Notes a record that is about to name the blob.
    pub(crate) fn own(&self, owner: Owner) {
        if let Some(blob) = self.blobs.lock().get_mut(&self.reference.name) {
            blob.owners.push(owner);
        }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut blobs = self.blobs.lock();
        let Some(blob) = blobs.get_mut(&self.reference.name) else { return };
        blob.pins -= 1;
        if blob.pins == 0 && blob.owners.is_empty() {
            blob.is_dead = true;
            drop(blobs);
            self.blobs.remove(&[self.reference.name]);
        }
    }
}

impl Blobs {
    /// The blobs in the directory `dir`. Temporary files of writers that died are removed; what is not ours stays.
    pub(crate) fn open(dir: &Path, space: &SpaceInUse) -> Result<Self> {
        let io_error = |e| Error::io("open", dir, e);
        let held = HeldDirectory::open(dir).map_err(io_error)?;
        let mut blobs = HashMap::new();
        for entry in fs::read_dir(dir).map_err(io_error)? {
            let entry = entry.map_err(io_error)?;
            let path = entry.path();
            match entry.file_name().to_str().map_or(Named::Unknown, named) {
                Named::Blob(name) => match files::open_to_read(&path).and_then(|file| hashes(&file)) {
                    // Whatever names it, it can be read by nobody.
                    Ok((_, hashes)) if hashes.is_empty() => {
                        tracing::warn!(path = %path.display(), "not a blob, or damaged; it is passed over");
                    }
                    Ok((len, hashes)) => {
                        let account = Arc::new(space.account(len.next_multiple_of(4096)));
                        let owners = Vec::new();
                        blobs.insert(name, Blob { account, hashes, owners, pins: 0, is_dead: false });
                    }
                    Err(e) if is_none_of_ours(&e) => {
                        tracing::warn!(path = %path.display(), "not a blob; it is passed over");
                    }
                    Err(e) => return Err(Error::io("open blob", &path, e)),
                },
                Named::Temporary => files::remove(&path).map_err(|e| Error::io("remove", &path, e))?,
                Named::Unknown => {}
            }
        }
        Ok(Self { dir: dir.to_owned(), held, space: space.clone(), blobs: Mutex::new(blobs) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u128, Blob>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of the blob called `name`.
    pub(crate) fn path(&self, name: u128) -> PathBuf {
        self.dir.join(file_name(name))
    }

    /// Has `find` say what names each blob, at an attach: it is given the hash of a key and a name. What nothing names
    /// is dead.
    pub(crate) fn find_owners(&self, find: impl Fn(u64, u128) -> Option<Word>) {
        for (name, blob) in &mut *self.lock() {
            let owners = blob.hashes.iter().filter_map(|hash| Some((*hash, find(*hash, *name)?)));
            blob.owners = owners.collect();
            blob.is_dead = blob.owners.is_empty();
        }
    }

    /// The names of all that are alive, as far as is known.
    pub(crate) fn names(&self) -> Vec<u128> {
        self.lock().iter().filter(|(_, blob)| !blob.is_dead).map(|(name, _)| *name).collect()
    }

    /// The bytes that those take which are alive, and those that are dead and not unlinked yet.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.lock().values().fold((0, 0), |(alive, dead), blob| match blob.is_dead {
            true => (alive, dead + blob.account.bytes()),
            false => (alive + blob.account.bytes(), dead),
        })
    }

    /// Begins a new blob, without any space yet.
    pub(crate) fn create(&self) -> Result<BlobWriter> {
        self.held.check_in_place().map_err(|e| Error::io("create blob", &self.dir, e))?;
        BlobWriter::create(&self.dir, self.space.account(0))
    }

    /// Makes the blob whole and durable, for a key of this hash. It goes again with the pin, unless a record was noted
    /// that names it.
    pub(crate) fn seal(&self, mut writer: BlobWriter, hash: u64) -> Result<Pin<'_>> {
        let reference = writer.seal(hash)?;
        let mut account = writer.keep();
        account.shrink_to(space_for(reference.len));
        let (account, hashes, owners) = (Arc::new(account), vec![hash], Vec::new());
        let blob = Blob { account, hashes, owners, pins: 1, is_dead: false };
        self.lock().insert(reference.name, blob);
        Ok(Pin { blobs: self, reference })
    }

    /// Keeps the blob from going. `None` if it has gone.
    pub(crate) fn pin(&self, reference: BlobRef) -> Option<Pin<'_>> {
        let mut blobs = self.lock();
        let blob = blobs.get_mut(&reference.name).filter(|blob| !blob.is_dead)?;
        blob.pins += 1;
        Some(Pin { blobs: self, reference })
    }

    /// Notes, durably, that a key of this hash is about to name the blob.
    pub(crate) fn add_key(&self, pin: &Pin<'_>, hash: u64) -> Result<()> {
        let name = pin.reference.name;
        let is_known = |blob: &Blob| blob.hashes.contains(&hash);
        if !self.lock().get(&name).is_some_and(is_known) {
            file::add_hash(&self.path(name), hash)?;
            if let Some(blob) = self.lock().get_mut(&name) {
                blob.hashes.push(hash);
            }
        }
        Ok(())
    }

    /// Opens a blob to be read. `None` if it has gone or is damaged.
    pub(crate) fn open_blob(&self, reference: BlobRef) -> Result<Option<OpenBlob>> {
        let account = self.lock().get(&reference.name).map(|blob| blob.account.clone());
        let Some(account) = account else { return Ok(None) };
        OpenBlob::open(&self.path(reference.name), reference, account)
    }

    /// The owners of the blobs that may be evicted: those that nobody is about to name again.
    pub(crate) fn evictable(&self) -> Vec<(u128, Owner)> {
        let blobs = self.lock();
        let evictable = blobs.iter().filter(|(_, blob)| !blob.is_dead && blob.pins == 0);
        evictable.flat_map(|(name, blob)| blob.owners.iter().map(|owner| (*name, *owner))).collect()
    }

    /// The blobs that nothing names any more. They stay until they are [`release`](Blobs::release)d. `names` says
    /// whether the index holds the word of an owner.
    pub(crate) fn take_dead(&self, names: impl Fn(Owner) -> bool) -> Vec<u128> {
        let mut dead = Vec::new();
        for (name, blob) in &mut *self.lock() {
            if blob.pins == 0 {
                // Each time anew: a write that cannot be synced is taken back, and what it replaced is named again.
                blob.is_dead = !blob.owners.iter().any(|owner| names(*owner));
                if blob.owners.len() > MOST_OWNERS && !blob.is_dead {
                    blob.owners.retain(|owner| names(*owner));
                }
            }
            if blob.is_dead {
                dead.push(*name);
            }
        }
        dead
    }

    /// Removes blobs that are dead, and says how many are gone.
    pub(crate) fn release(&self, dead: &[u128]) -> usize {
        if dead.is_empty() {
            return 0;
        }
        step!("blob::releasing");
        let removed = self.remove(dead);
        step!("blob::released");
        removed
    }

    fn remove(&self, dead: &[u128]) -> usize {
        let mut removed = 0;
        if let Err(error) = self.held.check_in_place() {
            tracing::warn!(dir = %self.dir.display(), %error, "dead blobs stay");
            return 0;
        }
        for name in dead {
            let path = self.path(*name);
            match files::remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    // It stays dead, counts, and is tried again.
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove a blob");
                }
                _ => {
                    self.lock().remove(name);
                    removed += 1;
                }
            }
        }
        removed
    }
}
