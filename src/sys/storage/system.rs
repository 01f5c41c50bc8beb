//! [`Storage`] as the operating system has it. Each operation that changes a file, or that a test
//! must see refused, passes a fail point.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;
use nix::fcntl::{AT_FDCWD, FallocateFlags, fallocate};
use nix::libc;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, eaccess};

use super::{Access, FileId, FreeSpace, How, Mapping, Names, Stat, Storage};
#[cfg(feature = "failpoints")]
use crate::sys::observe::inode;
use crate::sys::sigbus::Contained;
use crate::sys::{fault, planted, tell};

/// The mode of a directory that this process makes: for its owner alone.
const OWN_DIRECTORY: u32 = 0o700;
/// The same of a file.
const OWN_FILE: u32 = 0o600;

/// The file system of the machine.
#[derive(Debug)]
pub(crate) struct System {
    contains_faults: bool,
}

/// Where a directory is opened on unless the program or a test says otherwise.
pub(crate) const SYSTEM: &dyn Storage = &System { contains_faults: false };

/// The same, with SIGBUS in mapped files contained ([`crate::sys::sigbus`]).
pub(crate) const CONTAINED: &dyn Storage = &System { contains_faults: true };

impl Storage for System {
    fn open_file(&self, path: &Path, how: How) -> io::Result<fs::File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
        match how {
            How::Read => {}
            How::Write => drop(options.write(true)),
            How::Append => drop(options.append(true)),
            How::Create => return create(path),
            How::Directory => {
                return options.custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(path);
            }
        }
        open_plain(path, &options)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        fault!("sys::create_dir");
        match DirBuilder::new().mode(OWN_DIRECTORY).create(path) {
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists
                    && fs::symlink_metadata(path)?.is_dir() =>
            {
                Ok(false)
            }
            made => {
                made?;
                let mode = fs::symlink_metadata(path)?.permissions().mode();
                if mode & OWN_DIRECTORY != OWN_DIRECTORY {
                    // The umask took rights of the owner.
                    fs::set_permissions(path, Permissions::from_mode(OWN_DIRECTORY))?;
                }
                tell!(DirectoryCreated(path));
                Ok(true)
            }
        }
    }

    fn read(&self, file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    fn write(&self, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        fault!("sys::write");
        // Linux ignores the offset if the file was opened to append: pwrite(2), BUGS.
        file.write_at(bytes, offset)
    }

    fn stat(&self, file: &fs::File) -> io::Result<Stat> {
        file.metadata().map(|found| stat_of(&found))
    }

    fn stat_path(&self, path: &Path) -> io::Result<Stat> {
        fs::metadata(path).map(|found| stat_of(&found))
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn check_access(&self, path: &Path, rights: AccessFlags) -> io::Result<()> {
        eaccess(path, rights).map_err(io::Error::from)
    }

    fn set_len(&self, file: &fs::File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn allocate(&self, file: &fs::File, len: u64) -> io::Result<()> {
        let allocate = || -> io::Result<()> {
            fault!("sys::allocate");
            let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
            loop {
                match fallocate(file, FallocateFlags::empty(), 0, len) {
                    Err(nix::Error::EINTR) => {}
                    done => return done.map_err(io::Error::from),
                }
            }
        };
        allocate().map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPERM | libc::EACCES) => no_fallocate(e),
            _ => e,
        })
    }

    fn sync(&self, file: &fs::File) -> io::Result<()> {
        fault!("sys::sync");
        tell!(Syncing(inode(file)));
        file.sync_data()?;
        tell!(Synced(inode(file)));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fault!("sys::sync_dir");
        if planted!("sync of names") {
            return Ok(());
        }
        tell!(SyncingNames(path));
        fs::File::open(path)?.sync_all()?;
        tell!(SyncedNames(path));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fault!("sys::rename");
        tell!(Renaming(from, to));
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fault!("sys::remove");
        tell!(Removing(path));
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn free_space(&self, file: &fs::File) -> io::Result<FreeSpace> {
        fault!("sys::free_space");
        let found = fstatvfs(file)?;
        // Btrfs creates inodes as they are needed, and reports 0 of them.
        let files = if found.files() == 0 { u64::MAX } else { found.files_available() };
        Ok(FreeSpace {
            bytes: found.blocks_available().saturating_mul(found.fragment_size()),
            files,
        })
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = TimeSpec::UTIME_NOW;
        utimensat(AT_FDCWD, path, &now, &now, UtimensatFlags::NoFollowSymlink)
            .map_err(io::Error::from)
    }

    fn list<'a>(&'a self, path: &Path) -> io::Result<Names<'a>> {
        Ok(Box::new(fs::read_dir(path)?.map(|entry| Ok(entry?.file_name()))))
    }

    fn map(&self, file: &fs::File, len: usize, access: Access) -> io::Result<Mapping> {
        fault!("sys::map");
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than its header says",
            ));
        }
        let mut options = MmapOptions::new();
        let raw = match access {
            Access::ToRead => options.len(len).map_raw_read_only(file),
            Access::ToWrite => options.len(len).map_raw(file),
        }?;
        let contained = self.contains_faults.then(|| Contained::new(raw.as_ptr().addr(), len));
        Ok(Mapping {
            contained: contained.transpose()?,
            raw,
            #[cfg(feature = "failpoints")]
            inode: inode(file),
        })
    }

    fn sync_map(&self, map: &Mapping) -> io::Result<()> {
        fault!("sys::msync");
        tell!(Syncing(map.inode));
        map.raw.flush()?;
        tell!(Synced(map.inode));
        Ok(())
    }

    fn contains_faults(&self) -> bool {
        self.contains_faults
    }
}

/// Says that it was fallocate(2) that was refused: by ext2 or ext3, or by a filter of system calls.
fn no_fallocate(error: io::Error) -> io::Error {
    let why = "the file system, or a seccomp filter, refuses fallocate(2), which reserves disk \
               space; use ext4, XFS, Btrfs or tmpfs";
    io::Error::new(error.kind(), format!("{why}: {error}"))
}

/// A plain file with one name only: a second one may be of another program.
fn open_plain(path: &Path, options: &OpenOptions) -> io::Result<fs::File> {
    fault!("sys::open");
    let file = options.open(path)?;
    let found = file.metadata()?;
    let why = if !found.is_file() {
        "not a plain file"
    } else if found.nlink() > 1 {
        "it has other names (hard links), as a copy made with `cp -al` gives it: what is written \
         here would change that copy; remove the copy, and copy without links"
    } else if found.nlink() == 0 {
        "it was removed while it was being opened"
    } else {
        return Ok(file);
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// For its owner alone. It must not exist.
fn create(path: &Path) -> io::Result<fs::File> {
    fault!("sys::create");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(OWN_FILE)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.permissions().mode() & OWN_FILE != OWN_FILE {
        // The umask took rights of the owner, without which it cannot be opened again.
        file.set_permissions(Permissions::from_mode(OWN_FILE))?;
    }
    tell!(Created(path));
    Ok(file)
}

fn stat_of(found: &fs::Metadata) -> Stat {
    Stat {
        is_dir: found.is_dir(),
        len: found.len(),
        on_disk: found.blocks() * 512,
        links: found.nlink(),
        id: FileId { device: found.dev(), inode: found.ino() },
        mode: found.mode() & 0o7777,
        owner: found.uid(),
        changed_at: (found.mtime(), found.mtime_nsec()),
    }
}
