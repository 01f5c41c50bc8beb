//! File operations, each with its fail point. Nothing here follows a link that was planted in the directory.

pub(crate) use std::fs::File;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{AccessFlags, eaccess};

use super::fork::OwnFile;
#[cfg(feature = "failpoints")]
use super::observe::inode;
use super::{fault, step, tell};

/// What a process may do with the files of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ToRead,
    ToWrite,
}

/// Opens an existing file of the directory [to read](open_to_read) it, or [to write](open) to it as well.
pub(crate) fn open_as(path: &Path, access: Access) -> io::Result<File> {
    match access {
        Access::ToRead => open_to_read(path),
        Access::ToWrite => open(path),
    }
}

/// Opens an existing file of the directory for reading and writing: a plain file with one name only.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_plain(path, OpenOptions::new().read(true).write(true))
}

/// The same, for reading only.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    open_plain(path, OpenOptions::new().read(true))
}

/// Opens an existing file of the directory so that whatever is written is added at its end, whoever adds something too.
pub(crate) fn open_to_append(path: &Path) -> io::Result<File> {
    open_plain(path, OpenOptions::new().read(true).append(true))
}

fn open_plain(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    fault!("sys::open");
    let file =
        options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a plain file with a single name",
        ));
    }
    Ok(file)
}

/// Makes a new file for reading and writing, for its owner alone. It must not exist.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    fault!("sys::create");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    tell!(Created(path));
    Ok(file)
}

/// A file without a name.
#[cfg(test)]
pub(crate) fn nameless() -> io::Result<File> {
    tempfile::tempfile()
}

/// Opens the file, or makes it if there is none. Says whether it was made.
pub(crate) fn open_or_create(path: &Path) -> io::Result<(File, bool)> {
    match create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => open(path).map(|file| (file, false)),
        made => made.map(|file| (file, true)),
    }
}

/// Makes a directory for its owner alone, and says whether it did: it may exist already, but not as a link to another.
pub(crate) fn create_dir(path: &Path) -> io::Result<bool> {
    fault!("sys::create_dir");
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e)
            if e.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() =>
        {
            Ok(false)
        }
        made => {
            made?;
            tell!(DirectoryCreated(path));
            Ok(true)
        }
    }
}

/// Gives the file `len` bytes that are really there, so that a store into a map of it cannot fail.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    fault!("sys::allocate");
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(nix::Error::EINTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

/// A kernel with large folios keeps what was written in one piece together. In pieces of this size, at multiples of it,
/// a file is mapped with the processor's huge pages: one entry of its TLB in place of 512, and one fault. But whatever
/// changes in a piece after it was synced, the next sync writes all of it.
pub(crate) const HUGE_PIECES: u64 = 2 << 20;
/// For what is synced again and again.
pub(crate) const SMALL_PIECES: u64 = 64 << 10;

/// Gives the file `len` bytes of zeros that are really there. They are written, in pieces of this size: stores into a map
/// find such pages several times faster than those of an extent that was only allocated.
pub(crate) fn reset(file: &File, len: u64, piece: u64) -> io::Result<()> {
    let zeros = vec![0; len.min(piece) as usize];
    file.set_len(len)?;
    allocate(file, len).inspect_err(|_| {
        // A full disk gives what it has before it refuses; that must not stay taken.
        let _ = file.set_len(0);
    })?;
    for at in (0..len).step_by(piece as usize) {
        write_at(file, &zeros[..(len - at).min(piece) as usize], at)?;
    }
    Ok(())
}

/// Fills `bytes` from `offset` on.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

pub(crate) fn len(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    fault!("sys::write");
    file.write_all_at(bytes, offset)
}

/// Adds bytes to a file that was opened [to append](open_to_append).
pub(crate) fn append(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    fault!("sys::write");
    file.write_all(bytes)
}

/// Waits until the file's bytes, and what is needed to find them, are on the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    fault!("sys::sync");
    sync_data(file)
}

fn sync_data(file: &File) -> io::Result<()> {
    tell!(Syncing(inode(file)));
    file.sync_data()?;
    tell!(Synced(inode(file)));
    Ok(())
}

/// Waits until the directory's names are on the disk.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    fault!("sys::sync_dir");
    tell!(SyncingNames(path));
    File::open(path)?.sync_all()?;
    tell!(SyncedNames(path));
    Ok(())
}

/// Whether a file that can be made anew is missing or not what it should be.
pub(crate) fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
    )
}

/// Gives a file another name in its directory, which nothing has yet.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fault!("sys::rename");
    tell!(Renaming(from, to));
    fs::rename(from, to)
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fault!("sys::remove");
    tell!(Removing(path));
    fs::remove_file(path)
}

/// Puts a whole file in place at once: afterwards, and after any crash, `path` is as before or complete.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fault!("sys::replace");
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(dir)?;
    tell!(Created(temporary.path()));
    temporary.write_all(bytes)?;
    sync_data(temporary.as_file())?;
    step!("replace::written");
    tell!(Renaming(temporary.path(), path));
    temporary.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// What the names of files that were being [`replace`]d begin with; left behind only by a crash.
pub(crate) const TEMPORARY_PREFIX: &str = ".keepwarm-";

/// Fails unless names may be added to the directory and taken from it.
pub(crate) fn check_writable(dir: &Path) -> io::Result<()> {
    eaccess(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

/// Whether the process may write to the file or directory at `path`, or there is none.
pub(crate) fn may_write(path: &Path) -> io::Result<bool> {
    match eaccess(path, AccessFlags::W_OK) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(true),
        Err(nix::Error::EACCES | nix::Error::EPERM | nix::Error::EROFS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// What tells one directory from another, whatever path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DirectoryId {
    device: u64,
    inode: u64,
}

pub(crate) fn directory_id(path: &Path) -> io::Result<DirectoryId> {
    let found = fs::metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    Ok(DirectoryId { device: found.dev(), inode: found.ino() })
}

/// A directory that is held open, so that no other can get its number while this lives.
#[derive(Debug)]
pub(crate) struct HeldDirectory {
    path: PathBuf,
    id: DirectoryId,
    file: OwnFile,
}

impl HeldDirectory {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(path)?;
        let found = file.metadata()?;
        let id = DirectoryId { device: found.dev(), inode: found.ino() };
        Ok(Self { path: path.to_owned(), id, file: OwnFile::new(file) })
    }

    pub(crate) fn id(&self) -> DirectoryId {
        self.id
    }

    /// When a name was last added to it or taken from it, in seconds and nanoseconds. What comes in the same moment of a
    /// coarse clock does not show.
    pub(crate) fn changed_at(&self) -> io::Result<(i64, i64)> {
        let found = self.file.metadata()?;
        Ok((found.mtime(), found.mtime_nsec()))
    }

    /// Fails if its path does not lead to it any more: it was moved or removed, and what is there now is not ours.
    pub(crate) fn check_in_place(&self) -> io::Result<()> {
        if directory_id(&self.path)? == self.id {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the directory was moved or removed while it was in use",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link, hard) =
            (dir.path().join("plain"), dir.path().join("link"), dir.path().join("hard"));
        fs::write(&plain, b"x").unwrap();
        assert!(open(&plain).is_ok());
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert!(open(&link).is_err(), "a symbolic link");
        assert!(create(&link).is_err(), "a symbolic link");
        fs::hard_link(&plain, &hard).unwrap();
        assert!(open(&plain).is_err(), "a second name");
        assert!(open(dir.path()).is_err(), "a directory");
    }
}
