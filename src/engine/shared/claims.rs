//! What one process at a time does, of those that share a directory: it claims the matter, and the others see that.
//!
//! A claim is a write lock on one byte of the file `flights`, which is empty and stays so. The byte follows from the
//! matter alone, so that processes agree; that two matters meet in one of 2⁶² bytes costs a wait at worst. The kernel
//! lets go of the lock as soon as the process is dead, however it died. It does not keep the threads of a process
//! apart, as the lock belongs to the open file; so the bytes that are held are in a set here too.
//!
//! There is one open file for each engine, opened at the first claim and kept. An engine that is closed while
//! something is claimed and opened again has another file then, and the two exclude each other as two processes do.
//!
//! A process that was forked shares the open file with its parent: it would hold what the parent holds, and keep it
//! when the parent is dead; what it locks would not be kept from the parent, and what it unlocks would be the parent's.
//! So the descriptor is closed in the child first of all ([`OwnFile`]), which takes nothing from the parent, and what was
//! claimed before is left alone, as is the mutex, which another thread of the parent may have held.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::entry::{Claim, ClaimKey, Claimed, HeldClaim};
use crate::hash::KeyHasher;
use crate::sys::fork::{Epoch, OwnFile};
use crate::sys::lock;
use crate::sys::storage::{DirectoryId, HeldDirectory, Storage};

/// A lock on one byte of the file.
struct Held {
    claims: Arc<Claims>,
    byte: i64,
}

impl HeldClaim for Held {
    fn is_inherited(&self) -> bool {
        self.claims.is_inherited()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.claims.is_inherited() {
            return;
        }
        let mut open = self.claims.lock();
        open.held.remove(&self.byte);
        if let Some(file) = &open.file
            && let Err(error) = lock::unlock(file, self.byte)
        {
            tracing::warn!(%error, "a claim is kept until the directory is closed");
        }
    }
}

/// The claims of one engine.
#[derive(Debug)]
pub(crate) struct Claims {
    storage: &'static dyn Storage,
    dir: PathBuf,
    id: DirectoryId,
    hasher: KeyHasher,
    epoch: Epoch,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    file: Option<OwnFile>,
    held: HashSet<i64>,
}

impl Claims {
    pub(crate) fn new(held: &HeldDirectory, dir: PathBuf, hasher: KeyHasher) -> Self {
        let (storage, id) = (held.storage(), held.id());
        Self { storage, dir, id, hasher, epoch: Epoch::now(), open: Mutex::default() }
    }

    /// Claims `key`, without waiting. Where the system refuses, the caller goes on as if it were alone. With giving
    /// it back two to four microseconds; more where thousands are held at once.
    pub(crate) fn claim(self: &Arc<Self>, key: ClaimKey<'_>) -> Claimed {
        self.take(self.byte(key)).unwrap_or_else(|error| {
            tracing::debug!(dir = %self.dir.display(), ?key, %error, "nothing can be claimed from other processes");
            Claimed::Mine(Claim::default())
        })
    }

    fn byte(&self, key: ClaimKey<'_>) -> i64 {
        /// The offset of a lock has 63 bits: one for the kind of matter, the others to tell those of a kind apart.
        const LEASES: u64 = 1 << 62;
        let (kind, number) = match key {
            ClaimKey::Computation(key) => (0, self.hasher.hash(key.as_bytes())),
            ClaimKey::Lease(number) => (LEASES, number),
        };
        (kind | number & (LEASES - 1)) as i64
    }

    fn is_inherited(&self) -> bool {
        self.epoch.is_over()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // The lock of the kernel is taken before the set says so: a panic leaves nothing that is wrong for good.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, byte: i64) -> io::Result<Claimed> {
        if self.is_inherited() {
            return Ok(Claimed::Mine(Claim::default()));
        }
        let mut open = self.lock();
        let Open { file, held } = &mut *open;
        if held.contains(&byte) {
            return Ok(Claimed::Here);
        }
        let file = match file {
            Some(file) => file,
            None => file.insert(self.open_file()?),
        };
        if !lock::try_lock(file, byte)? {
            return Ok(Claimed::Elsewhere);
        }
        held.insert(byte);
        Ok(Claimed::Mine(Claim::new(Held { claims: self.clone(), byte })))
    }

    fn open_file(&self) -> io::Result<OwnFile> {
        // What was put in the place of our directory is not ours to make files in.
        if self.storage.directory_id(&self.dir)? != self.id {
            return Err(io::ErrorKind::NotFound.into());
        }
        let path = self.dir.join("flights");
        OwnFile::to_lock(|| self.storage.open_or_create(&path).map(|(file, _)| file))
    }
}

#[cfg(test)]
impl Claims {
    /// What the kernel does when the process dies.
    pub(crate) fn die(&self) {
        self.lock().file = None;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::sys::storage::SYSTEM;

    fn claims(dir: &TempDir) -> Arc<Claims> {
        at(dir.path())
    }

    fn at(path: &Path) -> Arc<Claims> {
        let held = HeldDirectory::open(SYSTEM, path).unwrap();
        Arc::new(Claims::new(&held, path.to_owned(), KeyHasher::new(&[7; 16])))
    }

    fn mine(claims: &Arc<Claims>, byte: i64) -> Claim {
        match claims.take(byte).unwrap() {
            Claimed::Mine(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_holder_a_byte_in_a_process_and_among_processes() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (claims(&dir), claims(&dir));
        let claim = mine(&ours, 7);
        assert!(claim.is_seen() && !claim.is_inherited());
        assert!(matches!(ours.take(7).unwrap(), Claimed::Here));
        assert!(matches!(theirs.take(7).unwrap(), Claimed::Elsewhere));
        let other = mine(&theirs, i64::MAX);
        assert!(matches!(ours.take(i64::MAX).unwrap(), Claimed::Elsewhere));
        drop(claim);
        let claim = mine(&theirs, 7);
        drop(other);
        drop(mine(&ours, i64::MAX));
        // As when the process dies: the last descriptor is closed, and nothing was given back.
        theirs.die();
        drop(mine(&ours, 7));
        drop(claim);
    }

    #[test]
    fn a_forked_process_neither_uses_nor_gives_back_what_it_inherits() {
        let dir = tempfile::tempdir().unwrap();
        let (parents, others) = (claims(&dir), claims(&dir));
        let claim = mine(&parents, 7);
        // What the child has of it: the same open file, and the same set.
        let file = parents.lock().file.as_ref().unwrap().try_clone().unwrap();
        let open = Mutex::new(Open { file: Some(OwnFile::new(file)), held: HashSet::from([7]) });
        let Claims { storage, ref dir, id, hasher, epoch, .. } = *parents;
        let childs = Claims { storage, dir: dir.clone(), id, hasher, epoch: epoch.before(), open };
        let childs = Arc::new(childs);
        let inherited = Claim::new(Held { claims: childs.clone(), byte: 7 });
        assert!(inherited.is_inherited());
        // The mutex may have been held at the fork.
        let never_unlocked = childs.lock();
        drop(inherited);
        assert!(!mine(&childs, 8).is_seen());
        drop(never_unlocked);
        drop(childs);
        assert!(matches!(others.take(7).unwrap(), Claimed::Elsewhere));
        drop(claim);
        drop(mine(&others, 7));
    }

    #[test]
    fn the_file_is_empty_private_and_never_a_planted_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flights");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(claims(&dir).take(1).is_err());
        assert!(!dir.path().join("elsewhere").exists());
        std::fs::remove_file(&path).unwrap();
        let claims = claims(&dir);
        let _claim = mine(&claims, 1);
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.permissions().mode() & 0o777, found.len()), (0o600, 0));
    }

    #[test]
    fn nothing_is_made_in_another_directory_in_its_place() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("cache");
        std::fs::create_dir(&path).unwrap();
        let claims = at(&path);
        std::fs::rename(&path, parent.path().join("moved")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(claims.take(1).is_err());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }
}
