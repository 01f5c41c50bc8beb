//! Claims: locks between the processes that share a directory, one for each key that a process
//! computes or leases.
//!
//! A claim is a write lock on one byte of the file `flights`, which stays empty. The byte is a
//! function of the key, so all processes agree on it. Two keys that meet in one of 2⁶² bytes cost
//! at most a wait. The kernel releases the lock when the process is dead, however it died. The lock
//! belongs to the open file, so it does not exclude the threads of one process; therefore a set
//! here has the bytes that are held.
//!
//! Each engine opens the file at its first claim and keeps it open. An engine that is closed while
//! a claim is held, and opened again, has another open file then; the two exclude each other as two
//! processes do.
//!
//! A forked process shares the open file with its parent. It would hold the parent's claims, also
//! after the parent's death. Its own locks would not exclude the parent, and its unlocks would
//! release the parent's claims. So the descriptor is closed in the child first ([`OwnFile`]), which
//! takes nothing from the parent. The child leaves alone the claims from before the fork, and the
//! mutex, which another thread of the parent may have held.

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
struct HeldByte {
    claims: Arc<Claims>,
    byte: i64,
}

impl HeldClaim for HeldByte {
    fn is_inherited(&self) -> bool {
        self.claims.is_inherited()
    }
}

impl Drop for HeldByte {
    fn drop(&mut self) {
        if self.claims.is_inherited() {
            return;
        }
        let mut open = self.claims.lock();
        open.held.remove(&self.byte);
        if let Some(file) = &open.file
            && let Err(error) = lock::unlock(file, self.byte)
        {
            tracing::warn!(%error, "cannot release a claim before the directory is closed");
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

    /// Claims `key` without waiting. If the system refuses, the caller continues as if no other
    /// process existed. A claim and its release cost two to four microseconds together, and more
    /// where thousands are held at once.
    pub(crate) fn claim(self: &Arc<Self>, key: ClaimKey<'_>) -> Claimed {
        self.take(self.byte(key)).unwrap_or_else(|error| {
            let dir = self.dir.display();
            tracing::debug!(%dir, ?key, %error, "cannot claim a key among processes");
            Claimed::Mine(Claim::default())
        })
    }

    fn byte(&self, key: ClaimKey<'_>) -> i64 {
        /// The offset of a lock has 63 bits: one for the kind of the claim, the others for its
        /// number.
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
        // The kernel's lock is taken before the byte enters the set, so a panic in between does no
        // lasting harm.
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
        Ok(Claimed::Mine(Claim::new(HeldByte { claims: self.clone(), byte })))
    }

    fn open_file(&self) -> io::Result<OwnFile> {
        // Another directory may have taken this path: create no file in it.
        if self.storage.directory_id(&self.dir)? != self.id {
            return Err(io::ErrorKind::NotFound.into());
        }
        let path = self.dir.join("flights");
        OwnFile::to_lock(|| self.storage.open_or_create(&path).map(|(file, _)| file))
    }
}

#[cfg(test)]
impl Claims {
    /// Closes the file, as the kernel does when the process dies.
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
    fn a_byte_has_one_holder_in_and_among_processes() {
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
        // As when the process dies: the last descriptor is closed, without an unlock.
        theirs.die();
        drop(mine(&ours, 7));
        drop(claim);
    }

    #[test]
    fn a_forked_process_neither_uses_nor_releases_inherited_claims() {
        let dir = tempfile::tempdir().unwrap();
        let (parents, others) = (claims(&dir), claims(&dir));
        let claim = mine(&parents, 7);
        // The child has the same open file, and a copy of the set.
        let file = parents.lock().file.as_ref().unwrap().try_clone().unwrap();
        let open = Mutex::new(Open { file: Some(OwnFile::new(file)), held: HashSet::from([7]) });
        let Claims { storage, ref dir, id, hasher, epoch, .. } = *parents;
        let childs = Claims { storage, dir: dir.clone(), id, hasher, epoch: epoch.before(), open };
        let childs = Arc::new(childs);
        let inherited = Claim::new(HeldByte { claims: childs.clone(), byte: 7 });
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
    fn no_file_is_created_in_a_directory_that_took_the_path() {
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
