//! Questions about directories, and a directory that is held open.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::AccessFlags;

use super::file::File;
use super::{DirectoryId, How, Storage};
use crate::sys::fork::OwnFile;

impl dyn Storage {
    pub(crate) fn directory_id(&self, path: &Path) -> io::Result<DirectoryId> {
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

/// A directory that is held open, so that no other can get its number while this lives.
#[derive(Debug)]
pub(crate) struct HeldDirectory {
    path: PathBuf,
    id: DirectoryId,
    file: OwnFile,
}

impl HeldDirectory {
    pub(crate) fn open(storage: &'static dyn Storage, path: &Path) -> io::Result<Self> {
        let file = File::new(storage, storage.open_file(path, How::Directory)?);
        let id = file.stat()?.id;
        Ok(Self { path: path.to_owned(), id, file: OwnFile::new(file) })
    }

    pub(crate) fn id(&self) -> DirectoryId {
        self.id
    }

    /// What the directory was opened on.
    pub(crate) fn storage(&self) -> &'static dyn Storage {
        self.file.storage()
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
