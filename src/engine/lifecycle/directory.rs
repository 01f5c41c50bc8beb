//! The directory of a cache: the names of its files, its creation, and the attach mutex.
//!
//! The attach mutex is a byte lock in the file `locks`. A process holds it while it attaches or
//! detaches; observers share it. So the state of the directory does not change meanwhile.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::engine::format::index_header::MOST_PROCESSES;
use crate::engine::format::meta::Meta;
use crate::engine::log::segment::Segment;
use crate::engine::shared::meta_file;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::sys::fork::OwnFile;
use crate::sys::storage::{Access, File, Storage, TEMPORARY_PREFIX};
use crate::sys::{lock, mount};

/// The byte of `locks` that is the attach mutex. The bytes of the processes follow.
const ATTACHING: i64 = 0;
/// The byte of `locks` that a process holds while it waits for the exclusive attach mutex. It comes
/// after all other bytes. An observer waits for this byte before it shares the mutex. So observers
/// that arrive one after another cannot keep the waiter out: it needs to wait only for the
/// observers that were there before it.
///
/// After [`COURTESY`] an observer ignores this byte, because its owner may be stopped. That hardly
/// delays the owner: an observer holds the mutex only for a moment, unless it recovers an index in
/// its memory.
const WAITING: i64 = 2048;
/// How long an observer lets a waiter for the exclusive attach mutex go first.
const COURTESY: Duration = Duration::from_secs(5);

/// The text that tells backup tools to skip the directory. See <https://bford.info/cachedir/>.
const CACHEDIR_TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
      # This file marks a cache directory of keepwarm.\n";

/// The names of the files and directories of a cache.
const NAMES: &[&str] =
    &["meta", "state", "index", "hints", "segments", "blobs", "flights", "stats"];

pub(crate) struct Directory {
    pub(crate) storage: &'static dyn Storage,
    pub(crate) path: PathBuf,
}

impl Directory {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn segments(&self) -> PathBuf {
        self.path.join("segments")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// The directory at `path`, created if it does not exist. Its parent must exist. A directory
    /// with foreign files is refused and not changed.
    pub(crate) fn at(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Self> {
        refuse_network(path, options)?;
        let directory = Self { storage, path: find_or_make(storage, path)? };
        if !storage.exists(&directory.file("meta")).map_err(|e| Error::io("open", path, e))? {
            // The files of an interrupted creation are allowed.
            refuse_foreign(storage, path, NAMES)?;
        }
        Ok(directory)
    }

    /// The directory at `path`, for an observer, which creates nothing.
    pub(crate) fn for_observer(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Self> {
        refuse_network(path, options)?;
        let path = storage.canonical(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { storage, path })
    }

    /// The lock file, with the attach mutex held: no other process attaches or detaches until
    /// [`release`](Directory::release). Observers, which open it to read, share the mutex.
    pub(crate) fn enter(&self, access: Access) -> Result<OwnFile> {
        /// The holder may be recovering a large cache, or waiting for a slow disk.
        const PATIENCE: Duration = Duration::from_secs(60);
        let path = self.file("locks");
        let io_error = |e| Error::io("lock", &path, e);
        let open = || match access {
            Access::ToRead => self.storage.open_to_read(&path),
            Access::ToWrite => self.storage.open_or_create(&path).map(|(file, _)| file),
        };
        let file = OwnFile::to_lock(open).map_err(io_error)?;
        let taken = match access {
            Access::ToRead => share_mutex(&file, COURTESY, PATIENCE),
            Access::ToWrite => take_mutex(&file, PATIENCE, || {}),
        };
        if taken.map_err(io_error)? {
            return Ok(file);
        }
        let why = "another process has been opening or closing it for a minute; it may be stopped";
        Err(Error::new(ErrorKind::Busy, "open").with_path(&self.path).with_source(why))
    }

    /// The lowest free number, and whether any process is attached. The attach mutex is held, so no
    /// other process takes the number.
    pub(crate) fn number(&self, locks: &File) -> Result<(u32, bool)> {
        let io_error = |e| Error::io("lock", &self.file("locks"), e);
        let is_any = Self::is_shared(locks).map_err(io_error)?;
        for number in 1..=MOST_PROCESSES {
            if !lock::is_held(locks, i64::from(number)).map_err(io_error)? {
                return Ok((number, is_any));
            }
        }
        let why = format!("{MOST_PROCESSES} processes have it open, which is the maximum");
        Err(Error::new(ErrorKind::Busy, "open").with_path(&self.path).with_source(why))
    }

    /// Whether a process other than this one is attached.
    pub(crate) fn is_shared(locks: &File) -> io::Result<bool> {
        lock::first_held(locks, 1, i64::from(MOST_PROCESSES)).map(|held| held.is_some())
    }

    /// Takes the attach mutex again, to detach. Calls `between` between two attempts.
    ///
    /// # Errors
    /// `Busy` if another process holds the mutex for ten seconds; or if the kernel refuses the
    /// lock.
    pub(crate) fn reenter(locks: &File, between: impl Fn()) -> Result<()> {
        /// Shorter than for an attach: the program may be about to exit.
        const PATIENCE: Duration = Duration::from_secs(10);
        if take_mutex(locks, PATIENCE, between)
            .map_err(|e| Error::new(ErrorKind::Io, "close").with_source(e))?
        {
            return Ok(());
        }
        let why =
            "another process has been opening or closing it for ten seconds; it may be stopped";
        Err(Error::new(ErrorKind::Busy, "close").with_source(why))
    }

    pub(crate) fn release(locks: &File) -> io::Result<()> {
        lock::unlock(locks, ATTACHING)
    }

    /// Reads `meta`; creates it and the subdirectories in a new directory. The attach mutex is
    /// held.
    pub(crate) fn meta(&self) -> Result<Meta> {
        self.remove_temporaries();
        let path = self.file("meta");
        let found = meta_file::read(self.storage, &path)?;
        if found.is_none() && self.segment_files()?.next().is_some() {
            let why = "it is missing, and without it the segments cannot be read";
            return Err(Error::new(ErrorKind::Corrupt, "open").with_path(&path).with_source(why));
        }
        let mut made_any = false;
        for dir in [self.segments(), self.blobs()] {
            made_any |= self.storage.create_dir(&dir).map_err(|e| Error::io("create", &dir, e))?;
        }
        // Fails now, and not when the first segment is created or removed.
        for dir in [&self.path, &self.segments(), &self.file("blobs")] {
            self.storage.check_writable(dir).map_err(|e| Error::io("write to", dir, e))?;
        }
        if let Some(meta) = found {
            if made_any {
                self.storage
                    .sync_dir(&self.path)
                    .map_err(|e| Error::io("sync directory", &self.path, e))?;
            }
            return Ok(meta);
        }
        self.sync_own_name()?;
        tag(self.storage, &self.path)?;
        meta_file::create(self.storage, &path)
    }

    /// Syncs the parent. Otherwise a power cut could remove the directory with everything that was
    /// synced in it. `meta` is created after this, so it is done once.
    fn sync_own_name(&self) -> Result<()> {
        let Some(parent) = self.path.parent() else { return Ok(()) };
        match self.storage.sync_dir(parent) {
            // A parent may be searchable and not readable. Then it cannot be opened to sync.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced.map_err(|e| Error::io("sync directory", parent, e)),
        }
    }

    /// Ids and paths of the files in `segments` that have the name of a segment.
    pub(crate) fn segment_files(&self) -> Result<impl Iterator<Item = (u32, PathBuf)>> {
        let dir = self.segments();
        let names = match self.storage.list(&dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("read directory", &dir, e)),
        };
        let named = move |name: OsString| Some((Segment::id_of(name.to_str()?)?, dir.join(name)));
        Ok(names.into_iter().filter_map(named))
    }

    /// Removes temporary files: a crash left them while a file was being replaced.
    fn remove_temporaries(&self) {
        let Ok(names) = self.storage.list(&self.path) else { return };
        for name in names.into_iter().filter(|name| is_temporary(name)) {
            let _ = self.storage.remove(&self.path.join(name));
        }
    }
}

/// Fails unless there is a cache in the directory `dir`. Changes nothing.
pub(crate) fn check_there(storage: &'static dyn Storage, dir: &Path) -> Result<()> {
    match storage.stat_path(&dir.join("meta")) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(not_a_directory(dir)),
        Err(e) => Err(Error::io("open", dir, e)),
    }
}

/// Whether this process may write to the cache directory at `dir` and to all its files.
pub(crate) fn may_write(storage: &'static dyn Storage, dir: &Path) -> Result<bool> {
    let names = NAMES.iter().chain(&["locks", "snapshot.a", "snapshot.b"]);
    for path in std::iter::once(dir.to_owned()).chain(names.map(|name| dir.join(name))) {
        if !storage.may_write(&path).map_err(|e| Error::io("open", &path, e))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the exclusive attach mutex, if it becomes free within `patience`. Calls `between` between
/// two attempts.
fn take_mutex(locks: &File, patience: Duration, between: impl Fn()) -> io::Result<bool> {
    let mut is_seen = false;
    let taken = wait_until(patience, |_| {
        if lock::try_lock(locks, ATTACHING)? {
            return Ok(true);
        }
        is_seen = is_seen || lock::try_lock(locks, WAITING)?;
        between();
        Ok(false)
    });
    lock::unlock(locks, WAITING)?;
    taken
}

/// Shares the attach mutex, if no process holds it exclusively within `patience`. For the time of
/// `courtesy`, processes that wait for the exclusive mutex go first.
fn share_mutex(locks: &File, courtesy: Duration, patience: Duration) -> io::Result<bool> {
    wait_until(patience, |waited| {
        let may_share = waited >= courtesy || lock::try_share(locks, WAITING)?;
        let shared = may_share && lock::try_share(locks, ATTACHING)?;
        lock::unlock(locks, WAITING)?;
        Ok(shared)
    })
}

/// Calls `is_so` with the time waited so far until it returns `true`. `false` after `patience`.
fn wait_until(
    patience: Duration,
    mut is_so: impl FnMut(Duration) -> io::Result<bool>,
) -> io::Result<bool> {
    const PAUSE: Duration = Duration::from_micros(200);
    let started = Instant::now();
    loop {
        let waited = started.elapsed();
        if is_so(waited)? {
            return Ok(true);
        }
        if waited > patience {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Refuses a directory on a network file system, unless the options allow it. The directory need
/// not exist yet.
pub(crate) fn refuse_network(path: &Path, options: &Options) -> Result<()> {
    if options.allow_network {
        return Ok(());
    }
    let io_error = |e| Error::io("open", path, e);
    let found = match mount::network_file_system(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            mount::network_file_system(parent.unwrap_or(Path::new(".")))
        }
        found => found,
    };
    match found.map_err(io_error)? {
        None => Ok(()),
        Some(name) => {
            let why = format!("it is {name}");
            Err(Error::new(ErrorKind::NetworkFileSystem, "open").with_path(path).with_source(why))
        }
    }
}

/// The absolute path of the directory at `path`, created if it does not exist. Its parent must
/// exist.
pub(crate) fn find_or_make(storage: &'static dyn Storage, path: &Path) -> Result<PathBuf> {
    let io_error = |e| Error::io("open", path, e);
    match storage.stat_path(path) {
        Ok(found) if !found.is_dir => return Err(not_a_directory(path)),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            storage.create_dir(path).map(drop).map_err(io_error)?
        }
        Err(e) => return Err(io_error(e)),
    }
    storage.canonical(path).map_err(io_error)
}

fn not_a_directory(path: &Path) -> Error {
    Error::new(ErrorKind::NotACache, "open").with_path(path).with_source("not a directory")
}

/// Refuses a directory that contains anything but these names and what every cache directory may
/// contain.
/// Keeps invariant I5.
pub(crate) fn refuse_foreign(
    storage: &'static dyn Storage,
    path: &Path,
    names: &[&str],
) -> Result<()> {
    for name in storage.list(path).map_err(|e| Error::io("open", path, e))? {
        let mut known = ["CACHEDIR.TAG", "locks", "lost+found"].iter().chain(names);
        if !known.any(|k| name == *k) && !is_temporary(&name) {
            let why = format!("it contains {}", name.display());
            return Err(Error::new(ErrorKind::NotACache, "open").with_path(path).with_source(why));
        }
    }
    Ok(())
}

/// Marks the directory for backup tools.
pub(crate) fn tag(storage: &'static dyn Storage, dir: &Path) -> Result<()> {
    let tag = dir.join("CACHEDIR.TAG");
    let tagged = storage.open_or_create(&tag).and_then(|(file, _)| file.write_at(CACHEDIR_TAG, 0));
    tagged.map_err(|e| Error::io("create", &tag, e))
}

fn is_temporary(name: &OsStr) -> bool {
    name.to_str().is_some_and(|n| n.starts_with(TEMPORARY_PREFIX))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::sys::storage::SYSTEM;

    #[test]
    fn a_wait_for_the_attach_mutex_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (mine, theirs) = (open(), open());
        assert!(take_mutex(&theirs, Duration::ZERO, || {}).unwrap());
        assert!(!take_mutex(&mine, Duration::ZERO, || {}).unwrap());
        let looks = Cell::new(0);
        let release = || {
            looks.set(looks.get() + 1);
            lock::unlock(&theirs, ATTACHING).unwrap();
        };
        assert!(take_mutex(&mine, Duration::from_secs(60), release).unwrap());
        assert_eq!(looks.get(), 1);
    }

    #[test]
    fn new_observers_do_not_delay_a_waiter_for_the_attach_mutex() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (mine, first, second) = (open(), open(), open());
        let look = |locks: &File| share_mutex(locks, Duration::MAX, Duration::ZERO).unwrap();
        assert!(look(&first) && look(&second));
        lock::unlock(&second, ATTACHING).unwrap();
        let release = || {
            assert!(!look(&second), "a process waits");
            lock::unlock(&first, ATTACHING).unwrap();
        };
        assert!(take_mutex(&mine, Duration::from_secs(60), release).unwrap());
        assert!(!look(&second));
        lock::unlock(&mine, ATTACHING).unwrap();
        assert!(look(&second), "no process waits");
        assert_eq!(lock::first_held(&mine, WAITING, 1).unwrap(), None);
    }

    #[test]
    fn a_stopped_attach_waiter_delays_observers_only_briefly() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (stopped, observer) = (open(), open());
        assert!(lock::try_lock(&stopped, WAITING).unwrap());
        let look = |courtesy| share_mutex(&observer, courtesy, Duration::ZERO).unwrap();
        assert!(!look(Duration::MAX));
        assert!(look(Duration::ZERO));
        lock::unlock(&observer, ATTACHING).unwrap();
        assert!(share_mutex(&observer, Duration::from_millis(1), Duration::from_secs(60)).unwrap());
    }
}
