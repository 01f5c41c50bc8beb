//! [`Storage`] as the operating system has it. Each operation that changes a file, or that a test
//! must see refused, passes a fail point.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memmap2::MmapOptions;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{AccessFlags, eaccess};

use super::{Access, DirectoryId, How, Mapping, Stat, Storage};
#[cfg(feature = "failpoints")]
use crate::sys::observe::inode;
use crate::sys::{fault, tell};

/// The file system of the machine.
#[derive(Debug)]
pub(crate) struct System;

/// Where a directory is opened on unless a test says otherwise.
pub(crate) const SYSTEM: &dyn Storage = &System;

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
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists
                    && fs::symlink_metadata(path)?.is_dir() =>
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
        fault!("sys::allocate");
        let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        loop {
            match fallocate(file, FallocateFlags::empty(), 0, len) {
                Err(nix::Error::EINTR) => {}
                done => return done.map_err(io::Error::from),
            }
        }
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

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
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
        Ok(Mapping {
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
}

/// A plain file with one name only: a second one may be of another program.
fn open_plain(path: &Path, options: &OpenOptions) -> io::Result<fs::File> {
    fault!("sys::open");
    let file = options.open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        let why = "not a plain file with a single name";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(file)
}

/// For its owner alone. It must not exist.
fn create(path: &Path) -> io::Result<fs::File> {
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

fn stat_of(found: &fs::Metadata) -> Stat {
    Stat {
        is_dir: found.is_dir(),
        len: found.len(),
        links: found.nlink(),
        id: DirectoryId { device: found.dev(), inode: found.ino() },
        changed_at: (found.mtime(), found.mtime_nsec()),
    }
}
