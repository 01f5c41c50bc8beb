//! An open file, and what callers do with files, made of the operations of [`Storage`].

use std::fs;
use std::io;
use std::path::Path;

use super::{Access, How, Stat, Storage};
use crate::sys::{random, step};

/// An open file. It remembers the [`Storage`] that it was opened on.
#[derive(Debug)]
pub(crate) struct File {
    os: fs::File,
    storage: &'static dyn Storage,
}

impl File {
    pub(super) fn new(storage: &'static dyn Storage, os: fs::File) -> Self {
        Self { os, storage }
    }

    /// The file of the operating system, to lock, to map and to close it.
    pub(in crate::sys) fn os(&self) -> &fs::File {
        &self.os
    }

    pub(crate) fn storage(&self) -> &'static dyn Storage {
        self.storage
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        self.storage.stat(&self.os)
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.stat()?.len)
    }

    /// Whether the file still has a name: it was not removed.
    pub(crate) fn is_named(&self) -> io::Result<bool> {
        Ok(self.stat()?.links > 0)
    }

    /// Fills `bytes` from `offset` on, as far as the file reaches. Returns how many it filled.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.storage.read(&self.os, &mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    /// Fills `bytes` from `offset` on; `UnexpectedEof` if the file ends before.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let filled = self.read_at(bytes, offset)?;
        if filled == bytes.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// All that is in the file, but `most` bytes at most.
    pub(crate) fn read_up_to(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len()?.min(most) as usize];
        // It may become shorter meanwhile.
        let filled = self.read_at(&mut bytes, 0)?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Writes all of `bytes` at `offset`; at the end, if the file was opened to append.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            match self.storage.write(&self.os, &bytes[written..], offset + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Adds bytes to a file that was opened to append.
    pub(crate) fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, 0)
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.set_len(&self.os, len)
    }

    /// See [`Storage::allocate`].
    pub(crate) fn allocate(&self, len: u64) -> io::Result<()> {
        self.storage.allocate(&self.os, len)
    }

    /// Gives the file `len` bytes of zeros that have blocks on the disk. They are written, in
    /// pieces of this size: stores into a map find such pages several times faster than those of an
    /// extent that was only allocated.
    pub(crate) fn reset(&self, len: u64, piece: u64) -> io::Result<()> {
        let zeros = vec![0; len.min(piece) as usize];
        self.set_len(len)?;
        self.allocate(len).inspect_err(|_| {
            // A full disk allocates what it has before it refuses; that must not stay taken.
            let _ = self.set_len(0);
        })?;
        for at in (0..len).step_by(piece as usize) {
            self.write_at(&zeros[..(len - at).min(piece) as usize], at)?;
        }
        Ok(())
    }

    /// See [`Storage::sync`].
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.storage.sync(&self.os)
    }
}

/// A kernel with large folios keeps what was written in one piece together. In pieces of this size,
/// at multiples of it, a file is mapped with the processor's huge pages: one entry of its TLB in
/// place of 512, and one fault. But if anything changes in a piece after it was synced, the next
/// sync writes all of the piece.
pub(crate) const HUGE_PIECES: u64 = 2 << 20;
/// For files that are synced again and again.
pub(crate) const SMALL_PIECES: u64 = 64 << 10;

/// What the names of files that were being [`replace`](Storage::replace)d begin with; left behind
/// only by a crash.
pub(crate) const TEMPORARY_PREFIX: &str = ".keepwarm-";

impl dyn Storage {
    fn opened(&'static self, path: &Path, how: How) -> io::Result<File> {
        Ok(File::new(self, self.open_file(path, how)?))
    }

    /// Opens an existing file of the directory for reading and writing: a plain file with one name
    /// only.
    pub(crate) fn open(&'static self, path: &Path) -> io::Result<File> {
        self.opened(path, How::Write)
    }

    /// The same, for reading only.
    pub(crate) fn open_to_read(&'static self, path: &Path) -> io::Result<File> {
        self.opened(path, How::Read)
    }

    /// The same, for reading and for adding at its end, also while others add to it.
    pub(crate) fn open_to_append(&'static self, path: &Path) -> io::Result<File> {
        self.opened(path, How::Append)
    }

    /// The same, for reading only or for writing too.
    pub(crate) fn open_as(&'static self, path: &Path, access: Access) -> io::Result<File> {
        match access {
            Access::ToRead => self.open_to_read(path),
            Access::ToWrite => self.open(path),
        }
    }

    /// Makes a new file for reading and writing, for its owner alone. It must not exist.
    pub(crate) fn create(&'static self, path: &Path) -> io::Result<File> {
        self.opened(path, How::Create)
    }

    /// Opens the file, or makes it if there is none. Says whether it was made.
    pub(crate) fn open_or_create(&'static self, path: &Path) -> io::Result<(File, bool)> {
        match self.create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.open(path).map(|file| (file, false))
            }
            made => made.map(|file| (file, true)),
        }
    }

    /// Whether there is a file or directory at `path`.
    pub(crate) fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.stat_path(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Puts a whole file in place at once: afterwards, and after any crash, `path` is as before or
    /// complete.
    pub(crate) fn replace(&'static self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let temporary = dir.join(format!("{TEMPORARY_PREFIX}{:016x}", random::bits()?));
        let file = self.create(&temporary)?;
        let replace = || -> io::Result<()> {
            file.write_at(bytes, 0)?;
            file.sync()?;
            step!("replace::written");
            self.rename(&temporary, path)
        };
        replace().inspect_err(|_| {
            // If this fails too, the next process to open the directory removes it.
            let _ = self.remove(&temporary);
        })?;
        self.sync_dir(dir)
    }
}

/// Whether a file that can be rebuilt is missing, or is not what it should be.
pub(crate) fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
impl From<fs::File> for File {
    fn from(os: fs::File) -> Self {
        Self::new(super::SYSTEM, os)
    }
}

#[cfg(test)]
impl File {
    /// A file without a name.
    pub(crate) fn nameless() -> io::Result<Self> {
        tempfile::tempfile().map(Self::from)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.storage, self.os.try_clone()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::storage::SYSTEM;

    #[test]
    fn planted_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link, hard) =
            (dir.path().join("plain"), dir.path().join("link"), dir.path().join("hard"));
        fs::write(&plain, b"x").unwrap();
        assert!(SYSTEM.open(&plain).is_ok());
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert!(SYSTEM.open(&link).is_err(), "a symbolic link");
        assert!(SYSTEM.create(&link).is_err(), "a symbolic link");
        fs::hard_link(&plain, &hard).unwrap();
        assert!(SYSTEM.open(&plain).is_err(), "a second name");
        assert!(SYSTEM.open(dir.path()).is_err(), "a directory");
    }
}
