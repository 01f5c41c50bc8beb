//! Byte-range locks: exclusive or shared locks on single bytes of one file, owned by an open file
//! description (OFD locks). The kernel releases them when the last descriptor of the description is
//! closed, also when the process dies.
//!
//! Not POSIX record locks: those are released by any close of the file anywhere in the process.
//! Never upgraded from shared to exclusive: an upgrade can lose the lock that was held.

use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::fault;
use super::storage::File;

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Locks byte `byte` exclusively for this open file, unless another one holds it. Returns whether
/// it did. Never waits.
pub(crate) fn try_lock(file: &File, byte: i64) -> io::Result<bool> {
    fault!("sys::lock");
    match fcntl(file.os(), FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, byte, 1))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Locks byte `byte` for this open file, shared with other shared holders, unless another one holds
/// it exclusively. Returns whether it did. Never waits. The file may be open for reading only.
pub(crate) fn try_share(file: &File, byte: i64) -> io::Result<bool> {
    fault!("sys::lock");
    match fcntl(file.os(), FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte, 1))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn unlock(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file.os(), FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte, 1)))
        .map(drop)
        .map_err(io::Error::from)
}

/// Releases all bytes that this open file has locked.
pub(crate) fn unlock_all(file: &File) -> io::Result<()> {
    /// A length of zero covers everything to the end of the lockable range.
    const ALL: i64 = 0;
    fcntl(file.os(), FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, ALL)))
        .map(drop)
        .map_err(io::Error::from)
}

/// Whether another open file holds byte `byte`, exclusively or shared. This file's own locks do not
/// count.
pub(crate) fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    first_held(file, byte, 1).map(|held| held.is_some())
}

/// One byte of the `len` bytes from `first` that another open file holds. Not always the lowest:
/// the kernel returns any conflicting lock.
pub(crate) fn first_held(file: &File, first: i64, len: i64) -> io::Result<Option<i64>> {
    let mut query = range(libc::F_WRLCK, first, len);
    fcntl(file.os(), FcntlArg::F_OFD_GETLK(&mut query))?;
    Ok((query.l_type != libc::F_UNLCK as libc::c_short).then_some(query.l_start.max(first)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::storage::SYSTEM;

    #[test]
    fn a_byte_has_one_holder_and_another_close_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let open = || SYSTEM.open_or_create(&path).unwrap().0;
        let (mine, theirs) = (open(), open());
        assert!(try_lock(&mine, 1).unwrap());
        assert!(!try_lock(&theirs, 1).unwrap());
        assert_eq!(first_held(&theirs, 0, 100).unwrap(), Some(1));
        assert_eq!(first_held(&theirs, 2, 100).unwrap(), None);
        assert!(
            is_held(&theirs, 1).unwrap() && !is_held(&mine, 1).unwrap(),
            "a file's own lock is not reported"
        );
        drop(open());
        assert!(!try_lock(&theirs, 1).unwrap());
        drop(mine);
        assert!(try_lock(&theirs, 1).unwrap());
    }

    /// And a map of a file keeps its locks, as a descriptor does.
    #[test]
    fn a_shared_lock_excludes_an_exclusive_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        std::fs::write(&path, [0; 8]).unwrap();
        let read = || SYSTEM.open_to_read(&path).unwrap();
        let write = || SYSTEM.open(&path).unwrap();
        let (first, second, alone) = (read(), read(), write());
        assert!(try_share(&first, 0).unwrap() && try_share(&second, 0).unwrap());
        assert!(!try_lock(&alone, 0).unwrap());
        let map = crate::sys::map::Map::to_read(&first, 8).unwrap();
        drop((first, second));
        assert!(is_held(&alone, 0).unwrap(), "the map keeps the file open");
        assert!(!try_lock(&alone, 0).unwrap());
        drop(map);
        assert!(!is_held(&alone, 0).unwrap());
        assert!(try_lock(&alone, 0).unwrap());
        assert!(!try_share(&read(), 0).unwrap());
        drop(alone);
        assert!(try_share(&read(), 0).unwrap());
    }
}
