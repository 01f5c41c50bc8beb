//! Questions about directories, and a directory that is held open.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::{AccessFlags, geteuid};

use super::file::File;
use super::{FileId, FreeSpace, How, Storage};
use crate::sys::fork::OwnFile;
use crate::sys::place::Place;
use crate::sys::{lock, planted};

/// The user that owns the files which this process creates.
pub(crate) fn own_user() -> u32 {
    geteuid().as_raw()
}

impl dyn Storage {
    /// All names in a directory. If one cannot be read, this fails: a part of them would pass for
    /// the whole.
    pub(crate) fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let names = self.list(dir)?;
        if planted!("error of a listing") {
            return Ok(names.filter_map(Result::ok).collect());
        }
        names.collect()
    }

    pub(crate) fn directory_id(&self, path: &Path) -> io::Result<FileId> {
        let found = self.stat_path(path)?;
        if !found.is_dir {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(found.id)
    }

    /// Fails unless names may be added to the directory and taken from it.
    pub(crate) fn check_writable(&self, dir: &Path) -> io::Result<()> {
        self.check_access(dir, AccessFlags::W_OK | AccessFlags::X_OK)
    }

    /// Whether the process may write to the file or directory at `path`, or there is none.
    pub(crate) fn may_write(&self, path: &Path) -> io::Result<bool> {
        match self.check_access(path, AccessFlags::W_OK) {
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT) => Ok(true),
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => Ok(false),
                _ => Err(e),
            },
            Ok(()) => Ok(true),
        }
    }
}

/// The byte of a directory that each process holds, shared, which is attached to it.
const IN_USE: i64 = 1;

/// A directory that is held open, so that no other can get its number while this lives.
#[derive(Debug)]
pub(crate) struct HeldDirectory {
    path: PathBuf,
    id: FileId,
    file: OwnFile,
}

impl HeldDirectory {
    pub(crate) fn open(storage: &'static dyn Storage, path: &Path) -> io::Result<Self> {
        let open = || Ok(File::new(storage, storage.open_file(path, How::Directory)?));
        let file = OwnFile::to_lock(open)?;
        let id = file.id()?;
        Ok(Self { path: path.to_owned(), id, file })
    }

    /// Marks the directory as in use by this process, by a lock on the directory itself: it is
    /// there whatever becomes of the files. A directory can be opened for reading only, so the lock
    /// is a shared one. Returns whether the file system has such locks.
    pub(crate) fn mark_in_use(&self) -> io::Result<bool> {
        match lock::try_share(&self.file, IN_USE) {
            Err(e) => match e.raw_os_error() {
                Some(libc::EINVAL | libc::ENOTSUP | libc::EISDIR | libc::EBADF) => Ok(false),
                _ => Err(e),
            },
            marked => marked,
        }
    }

    /// Ends what [`mark_in_use`](Self::mark_in_use) began.
    pub(crate) fn unmark(&self) -> io::Result<()> {
        lock::unlock(&self.file, IN_USE)
    }

    /// Whether another process, or another attachment of this one, has marked the directory.
    pub(crate) fn is_in_use(&self) -> io::Result<bool> {
        lock::is_held(&self.file, IN_USE)
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Where the directory is.
    pub(crate) fn place(&self) -> Place {
        Place::of(self.file.os(), self.id.inode)
    }

    /// What the directory was opened on.
    pub(crate) fn storage(&self) -> &'static dyn Storage {
        self.file.storage()
    }

    /// See [`Storage::free_space`].
    pub(crate) fn free_space(&self) -> io::Result<FreeSpace> {
        self.storage().free_space(self.file.os())
    }

    /// When a name was last added to it or taken from it, in seconds and nanoseconds. Two changes
    /// within one tick of a coarse clock show as one.
    pub(crate) fn changed_at(&self) -> io::Result<(i64, i64)> {
        Ok(self.file.stat()?.changed_at)
    }

    /// Fails if its path does not lead to it any more: it was moved or removed, and the directory
    /// that is there now is not ours.
    pub(crate) fn check_in_place(&self) -> io::Result<()> {
        if self.storage().directory_id(&self.path)? == self.id {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the directory was moved or removed while it was in use",
        ))
    }
}
