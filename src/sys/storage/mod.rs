//! The file seam: the only way in which the engine reaches the file system.
//!
//! [`Storage`] is a small trait object: one method for each operation that can fail. [`System`] is
//! the operating system, with faults in mapped files contained or not. [`faults::Faults`] is the
//! same with injected failures, for tests. A directory is opened on one of them; a [`File`]
//! remembers which, and so does whatever is mapped of it.
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

use super::sigbus::Contained;

pub(crate) use self::directory::{HeldDirectory, own_user};
pub(crate) use self::file::{
    File, HUGE_PIECES, SMALL_PIECES, TEMPORARY_PREFIX, is_full, is_unusable,
};
pub(crate) use self::system::{CONTAINED, SYSTEM};

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

/// The identity of a file or a directory: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

/// What is known of a file or a directory besides its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) is_dir: bool,
    pub(crate) len: u64,
    /// The bytes of its blocks on the disk, including what the file system needs to find them.
    pub(crate) on_disk: u64,
    /// How many names it has.
    pub(crate) links: u64,
    pub(crate) id: FileId,
    /// The permission bits.
    pub(crate) mode: u32,
    /// The user that owns it.
    pub(crate) owner: u32,
    /// When it last changed, in seconds and nanoseconds.
    pub(crate) changed_at: (i64, i64),
}

/// What a file system has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// The bytes that this user may still take.
    pub(crate) bytes: u64,
    /// The files that can still be created; `u64::MAX` if the file system does not say.
    pub(crate) files: u64,
}

/// A file that is mapped into memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Set if its faults are contained. The first field: it is dropped before the bytes are
    /// unmapped.
    pub(crate) contained: Option<Contained>,
    pub(crate) raw: MmapRaw,
    /// The inode of the file; 0 if there is none.
    #[cfg(feature = "failpoints")]
    pub(crate) inode: u64,
}

/// The names in a directory, or why one could not be read.
pub(crate) type Names<'a> = Box<dyn Iterator<Item = io::Result<OsString>> + 'a>;

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
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// What is left on the file system that contains the file or directory. Not reliable: quotas
    /// are seldom in it, and other programs take and free space at any time.
    fn free_space(&self, file: &fs::File) -> io::Result<FreeSpace>;
    /// Sets the times of last access and last change to now.
    fn touch(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, each read when it is asked for. Reading one can fail, and the rest
    /// is unknown then. Callers use [`names`](Storage::names).
    fn list<'a>(&'a self, path: &Path) -> io::Result<Names<'a>>;
    /// Maps the first `len` bytes of the file, which must have them.
    fn map(&self, file: &fs::File, len: usize, access: Access) -> io::Result<Mapping>;
    /// Waits until every changed page of the map is on the disk.
    fn sync_map(&self, map: &Mapping) -> io::Result<()>;
    /// Whether it contains the faults of what it maps: a page that cannot be read or written
    /// becomes zeros.
    fn contains_faults(&self) -> bool;
}
