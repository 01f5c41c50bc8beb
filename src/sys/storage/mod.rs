//! The file seam: the only way in which the engine reaches the file system.
//!
//! [`Storage`] is a small trait object: one method for each operation that can fail. [`System`] is
//! the operating system. [`faults::Faults`] is the same with injected failures, for tests. A
//! directory is opened on one of them; a [`File`] remembers which, and so does whatever is mapped
//! of it.
//!
//! ```text
//! engine -> File, dyn Storage (open, reset, replace, ...) -> trait Storage -> System
//!                                                                          -> Faults -> System
//! ```
//!
//! The callers use [`File`] and the methods of `dyn Storage`, which are made of the operations of
//! the trait. No call goes through here to read or to append: both work on mapped memory.
//!
//! Not behind the seam: locks ([`super::lock`]), which no disk sees, and the look at the kind of a
//! file system ([`super::mount`]). Both have fail points of their own.

mod directory;
#[cfg(feature = "failpoints")]
pub mod faults;
mod file;
mod system;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::MmapRaw;
use nix::unistd::AccessFlags;

pub(crate) use self::directory::HeldDirectory;
pub(crate) use self::file::{File, HUGE_PIECES, SMALL_PIECES, TEMPORARY_PREFIX, is_unusable};
pub(crate) use self::system::SYSTEM;

/// What a process may do with the files of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ToRead,
    ToWrite,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// An existing plain file, to read.
    Read,
    /// The same, to read and to write.
    Write,
    /// The same, to read and to add at its end, also while others add to it.
    Append,
    /// A new file, to read and to write.
    Create,
    /// A directory.
    Directory,
}

/// The identity of a directory: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DirectoryId {
    device: u64,
    inode: u64,
}

/// What is known of a file or a directory besides its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) is_dir: bool,
    pub(crate) len: u64,
    /// How many names it has.
    pub(crate) links: u64,
    pub(crate) id: DirectoryId,
    /// When it last changed, in seconds and nanoseconds.
    pub(crate) changed_at: (i64, i64),
}

/// A file that is mapped into memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) raw: MmapRaw,
    /// The inode of the file; 0 if there is none.
    #[cfg(feature = "failpoints")]
    pub(crate) inode: u64,
}

/// The operations on files that can fail. Each is one request to the operating system, or behaves
/// like one.
///
/// Nothing here follows a link that was planted in the directory: a file that is opened must be a
/// plain file with one name, and new files and directories belong to their owner alone.
pub(crate) trait Storage: fmt::Debug + Send + Sync {
    fn open_file(&self, path: &Path, how: How) -> io::Result<fs::File>;
    /// Makes a directory. Says whether it did: it may exist already, but not as a link.
    fn create_dir(&self, path: &Path) -> io::Result<bool>;
    /// Reads at most `bytes.len()` bytes; 0 at the end of the file.
    fn read(&self, file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes some of `bytes` at `offset`, or at the end of the file if it was opened
    /// [so](How::Append).
    fn write(&self, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn stat(&self, file: &fs::File) -> io::Result<Stat>;
    /// Follows links.
    fn stat_path(&self, path: &Path) -> io::Result<Stat>;
    /// The full path, without links.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
    /// Fails unless the process has these rights at `path`.
    fn check_access(&self, path: &Path, rights: AccessFlags) -> io::Result<()>;
    fn set_len(&self, file: &fs::File, len: u64) -> io::Result<()>;
    /// Makes sure that the first `len` bytes of the file have blocks on the disk, so that a store
    /// into a map of them cannot fail.
    fn allocate(&self, file: &fs::File, len: u64) -> io::Result<()>;
    /// Waits until the bytes of the file, and what is needed to find them, are on the disk.
    fn sync(&self, file: &fs::File) -> io::Result<()>;
    /// Waits until the names in the directory are on the disk.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name in its directory. A file that has the name already is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// Maps the first `len` bytes of the file, which must have them.
    fn map(&self, file: &fs::File, len: usize, access: Access) -> io::Result<Mapping>;
    /// Waits until every changed page of the map is on the disk.
    fn sync_map(&self, map: &Mapping) -> io::Result<()>;
}
