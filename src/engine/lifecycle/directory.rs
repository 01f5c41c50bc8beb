//! The directory: its names, its making, and who may be in it.

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

/// Byte of `locks` that is held while somebody attaches or detaches. Those of the processes follow.
const ATTACHING: i64 = 0;
/// Byte of `locks`, behind all others, that is held by whoever waits for the attach mutex to have it alone. Onlookers come
/// by there first: however many share the mutex, one after another, he has it when those have left who were there.
///
/// They go by after [`COURTESY`] whoever has it, as he may be stopped. He is not kept out for that: until then only those come
/// in who came before him, and they leave at once, unless each recovers what was left into its own memory.
const WAITING: i64 = 2048;
/// How long an onlooker lets one go first who waits to have the attach mutex alone.
const COURTESY: Duration = Duration::from_secs(5);

/// The text that tells backup tools to pass the directory over. See <https://bford.info/cachedir/>.
const CACHEDIR_TAG: &[u8] =
    b"Signature: 8a477f597d28d172789f06886806bc55\n# This file marks a cache directory of keepwarm.\n";

/// What is made in a directory before, and beside, what a cache has in it.
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

    /// The directory at `path`, made if there is none. Its parent must exist. Nothing in a directory of
    /// somebody else's is touched.
    pub(crate) fn at(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Self> {
        refuse_network(path, options)?;
        let directory = Self { storage, path: find_or_make(storage, path)? };
        if !storage.exists(&directory.file("meta")).map_err(|e| Error::io("open", path, e))? {
            // What an interrupted making leaves.
            refuse_foreign(storage, path, NAMES)?;
        }
        Ok(directory)
    }

    /// The directory at `path` for an onlooker, who makes nothing.
    pub(crate) fn to_look_at(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Self> {
        refuse_network(path, options)?;
        let path = storage.canonical(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { storage, path })
    }

    /// The lock file, with the attach mutex held: nobody else is attaching or detaching until
    /// [`release`](Directory::release). Onlookers, who open it to read, share it.
    pub(crate) fn enter(&self, access: Access) -> Result<OwnFile> {
        /// Whoever holds the mutex may recover a large cache, or wait for a slow disk.
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

    /// The first number that no process has, and whether any has one. The attach mutex is held, so nobody else takes it.
    pub(crate) fn number(&self, locks: &File) -> Result<(u32, bool)> {
        let io_error = |e| Error::io("lock", &self.file("locks"), e);
        let is_any = Self::is_shared(locks).map_err(io_error)?;
        for number in 1..=MOST_PROCESSES {
            if !lock::is_held(locks, i64::from(number)).map_err(io_error)? {
                return Ok((number, is_any));
            }
        }
        let why = format!("{MOST_PROCESSES} processes have it open, and no more can");
        Err(Error::new(ErrorKind::Busy, "open").with_path(&self.path).with_source(why))
    }

    /// Whether a process of another number than this one is attached.
    pub(crate) fn is_shared(locks: &File) -> io::Result<bool> {
        lock::first_held(locks, 1, i64::from(MOST_PROCESSES)).map(|held| held.is_some())
    }

    /// Takes the attach mutex again, to detach, and does something between two looks.
    ///
    /// # Errors
    /// `Busy` if another process does not come to its end; or if the kernel refuses.
    pub(crate) fn reenter(locks: &File, between: impl Fn()) -> Result<()> {
        /// This may be the end of a program.
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

    /// Reads `meta`, or makes it and what else a new directory needs. The attach mutex is held.
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
        // At once, and not when the first segment is to be made or removed.
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

    /// Or a power cut could take the directory with all that was synced into it. Once there is `meta`, this was done.
    fn sync_own_name(&self) -> Result<()> {
        let Some(parent) = self.path.parent() else { return Ok(()) };
        match self.storage.sync_dir(parent) {
            // What may be passed through need not be readable, and only what is readable can be synced.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced.map_err(|e| Error::io("sync directory", parent, e)),
        }
    }

    /// Ids and paths of the files in `segments` that have a segment's name.
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

    /// Removes what a crash left of a file that was being replaced.
    fn remove_temporaries(&self) {
        let Ok(names) = self.storage.list(&self.path) else { return };
        for name in names.into_iter().filter(|name| is_temporary(name)) {
            let _ = self.storage.remove(&self.path.join(name));
        }
    }
}

/// Fails unless there is a cache in the directory `dir`, which is left as it is.
pub(crate) fn check_there(storage: &'static dyn Storage, dir: &Path) -> Result<()> {
    match storage.stat_path(&dir.join("meta")) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(not_a_directory(dir)),
        Err(e) => Err(Error::io("open", dir, e)),
    }
}

/// Whether this process may write to the cache directory at `dir` and all that is in it.
pub(crate) fn may_write(storage: &'static dyn Storage, dir: &Path) -> Result<bool> {
    let names = NAMES.iter().chain(&["locks", "snapshot.a", "snapshot.b"]);
    for path in std::iter::once(dir.to_owned()).chain(names.map(|name| dir.join(name))) {
        if !storage.may_write(&path).map_err(|e| Error::io("open", &path, e))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the attach mutex alone, if it is free within this time. Does something between two looks.
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

/// Shares the attach mutex, if nobody has it alone within this time; lets those go first for the time of `courtesy` who wait
/// to have it alone.
fn share_mutex(locks: &File, courtesy: Duration, patience: Duration) -> io::Result<bool> {
    wait_until(patience, |waited| {
        let goes_by = waited >= courtesy || lock::try_share(locks, WAITING)?;
        let shared = goes_by && lock::try_share(locks, ATTACHING)?;
        lock::unlock(locks, WAITING)?;
        Ok(shared)
    })
}

/// Asks, with how long it has waited, until it is so. `false` if it is not within this time.
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

/// Refuses a directory on a network file system, unless the options allow it. It need not be there yet.
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

/// The full path of the directory at `path`, made if there is none. Its parent must exist.
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

/// Refuses a directory that holds anything but these names and what every cache directory may hold.
/// Keeps invariant I5.
pub(crate) fn refuse_foreign(
    storage: &'static dyn Storage,
    path: &Path,
    names: &[&str],
) -> Result<()> {
    for name in storage.list(path).map_err(|e| Error::io("open", path, e))? {
        let mut known = ["CACHEDIR.TAG", "locks", "lost+found"].iter().chain(names);
        if !known.any(|k| name == *k) && !is_temporary(&name) {
            let why = format!("it holds {}", name.display());
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
    fn the_attach_mutex_is_waited_for_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (mine, theirs) = (open(), open());
        assert!(take_mutex(&theirs, Duration::ZERO, || {}).unwrap());
        assert!(!take_mutex(&mine, Duration::ZERO, || {}).unwrap());
        let looks = Cell::new(0);
        let let_go = || {
            looks.set(looks.get() + 1);
            lock::unlock(&theirs, ATTACHING).unwrap();
        };
        assert!(take_mutex(&mine, Duration::from_secs(60), let_go).unwrap());
        assert_eq!(looks.get(), 1);
    }

    #[test]
    fn who_waits_for_the_attach_mutex_is_not_kept_out_by_new_onlookers() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (mine, first, second) = (open(), open(), open());
        let look = |locks: &File| share_mutex(locks, Duration::MAX, Duration::ZERO).unwrap();
        assert!(look(&first) && look(&second));
        lock::unlock(&second, ATTACHING).unwrap();
        let let_go = || {
            assert!(!look(&second), "somebody waits");
            lock::unlock(&first, ATTACHING).unwrap();
        };
        assert!(take_mutex(&mine, Duration::from_secs(60), let_go).unwrap());
        assert!(!look(&second));
        lock::unlock(&mine, ATTACHING).unwrap();
        assert!(look(&second), "nobody waits");
        assert_eq!(lock::first_held(&mine, WAITING, 1).unwrap(), None);
    }

    #[test]
    fn one_who_is_stopped_while_it_waits_for_the_attach_mutex_keeps_onlookers_out_for_a_while_only()
    {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).unwrap().0;
        let (stopped, onlooker) = (open(), open());
        assert!(lock::try_lock(&stopped, WAITING).unwrap());
        let look = |courtesy| share_mutex(&onlooker, courtesy, Duration::ZERO).unwrap();
        assert!(!look(Duration::MAX));
        assert!(look(Duration::ZERO));
        lock::unlock(&onlooker, ATTACHING).unwrap();
        assert!(share_mutex(&onlooker, Duration::from_millis(1), Duration::from_secs(60)).unwrap());
    }
}
