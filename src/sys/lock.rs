//! Locks on single bytes of one file, held by an open file description: the kernel lets go of them when the
//! last descriptor is closed, however its process ended.
//!
//! Not POSIX record locks, which any close of the file anywhere in the process drops, and never converted
//! from shared to exclusive, which can lose the lock that was held.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::fault;

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// Takes byte `byte` for this open file, if nobody else has it. Says whether it did.
pub(crate) fn try_lock(file: &File, byte: i64) -> io::Result<bool> {
    fault!("sys::lock");
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, byte, 1))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Takes byte `byte` for this open file, which need only be open for reading, beside all others that take it so, unless
/// somebody has it alone. Says whether it did.
pub(crate) fn try_share(file: &File, byte: i64) -> io::Result<bool> {
    fault!("sys::lock");
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte, 1))) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn unlock(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte, 1)))
        .map(drop)
        .map_err(io::Error::from)
}

/// Gives back all bytes that this open file has.
pub(crate) fn unlock_all(file: &File) -> io::Result<()> {
    /// To the end of what can be locked.
    const ALL: i64 = 0;
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 0, ALL)))
        .map(drop)
        .map_err(io::Error::from)
}

/// Whether another open file holds byte `byte`.
pub(crate) fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    first_held(file, byte, 1).map(|held| held.is_some())
}

/// One of `len` bytes from `first` on that another open file holds; the kernel does not always tell the lowest.
pub(crate) fn first_held(file: &File, first: i64, len: i64) -> io::Result<Option<i64>> {
    let mut query = range(libc::F_WRLCK, first, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut query))?;
    Ok((query.l_type != libc::F_UNLCK as libc::c_short).then_some(query.l_start.max(first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_a_byte_and_closing_another_descriptor_drops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let open = || {
            File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap()
        };
        let (mine, theirs) = (open(), open());
        assert!(try_lock(&mine, 1).unwrap());
        assert!(!try_lock(&theirs, 1).unwrap());
        assert_eq!(first_held(&theirs, 0, 100).unwrap(), Some(1));
        assert_eq!(first_held(&theirs, 2, 100).unwrap(), None);
        assert!(
            is_held(&theirs, 1).unwrap() && !is_held(&mine, 1).unwrap(),
            "one's own is not told"
        );
        drop(open());
        assert!(!try_lock(&theirs, 1).unwrap());
        drop(mine);
        assert!(try_lock(&theirs, 1).unwrap());
    }

    #[test]
    fn who_shares_keeps_out_whoever_wants_it_alone_and_a_map_is_as_good_as_a_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        std::fs::write(&path, [0; 8]).unwrap();
        let read = || File::open(&path).unwrap();
        let write = || File::options().read(true).write(true).open(&path).unwrap();
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
