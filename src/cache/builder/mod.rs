//! The builder: what a cache is opened with. `setters` has one method for each option.

mod setters;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::expiry_policy::Jitter;
use super::flight_table::Flights;
use super::single_flight::MAX_CLAIM_WAIT;
use super::view::View;
use super::{Cache, Shared};
#[cfg(target_os = "linux")]
use crate::backend::FileBackend;
use crate::backend::{Backend, DummyBackend, MemoryBackend};
use crate::error::Result;
use crate::key::KeyRule;
use crate::limits::invalid;
use crate::options::Options;
use crate::timeout::Timeout;

/// The options of a cache, each with a default. [`open`](Builder::open) checks them all.
///
/// ```
/// use keepwarm::{Builder, ErrorKind, Timeout};
///
/// let cache = Builder::in_memory().max_entries(10_000).default_timeout(Timeout::Never).open()?;
///
/// let error = Builder::in_memory().max_entries(0).open().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidOption);
/// assert_eq!(error.option(), Some("max_entries"));
/// # Ok::<(), keepwarm::Error>(())
/// ```
#[must_use = "nothing is opened until `open` is called"]
pub struct Builder {
    location: Location,
    options: Options,
    default_timeout: Timeout,
    prefix: Arc<str>,
    version: i64,
    keys: KeyRule,
    jitter: f64,
    jitter_seed: Option<u64>,
    #[cfg(all(feature = "failpoints", target_os = "linux"))]
    faults: Option<&'static crate::sys::storage::faults::Faults>,
}

/// Where the entries are stored.
enum Location {
    Directory(PathBuf),
    #[cfg(all(feature = "sled", target_os = "linux"))]
    Sled(PathBuf),
    Memory,
    Dummy,
    Backend(Box<dyn Backend>),
}

impl Builder {
    /// Options for a cache in the directory `dir`; the same as [`Cache::builder`].
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Builder::new(dir).max_bytes(64 << 20).open()?;
    /// cache.set("a", &1, Timeout::Default)?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn new(dir: impl AsRef<Path>) -> Self {
        Self::at(Location::Directory(dir.as_ref().to_owned()))
    }

    /// Options for a cache in the memory of this process, which is freed with its last clone. It
    /// ignores `durability`.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// let cache = Builder::in_memory().max_entries(100).open()?;
    /// assert_eq!(cache.limits().max_entries, 100);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn in_memory() -> Self {
        Self::at(Location::Memory)
    }

    /// Options for a cache that stores nothing; see [`Cache::dummy`].
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// let cache = Builder::dummy().open()?;
    /// cache.set("a", &1, Timeout::Default)?;
    /// assert!(!cache.contains_key("a")?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn dummy() -> Self {
        Self::at(Location::Dummy)
    }

    /// Options for a cache in a [sled](https://docs.rs/sled/0.34.7) tree in the directory `dir`,
    /// which is created if it is missing. Records, expiry, conditions and culling are the same as
    /// in a directory of [`Builder::new`]; sled stores them.
    ///
    /// It promises less; `docs/operations.md` has the figures, and says when it is the right
    /// choice:
    ///
    /// - **A kill loses writes** that were acknowledged and are still in the buffers of sled. sled
    ///   writes them out after half a mebibyte, and also at each interval of
    ///   [`Durability::Interval`](crate::Durability::Interval), every 30 seconds with
    ///   [`Durability::Buffered`](crate::Durability::Buffered), and at once with
    ///   [`Durability::Sync`](crate::Durability::Sync), where each writing call pays for a sync.
    ///   Only the latest writes are lost: everything before them is kept.
    /// - **The disk space is not bounded.** [`max_bytes`](Builder::max_bytes) is a hard bound for
    ///   the stored keys and records. The file of sled is a multiple of them, and shrinks late.
    /// - **Opening reads everything**, because counts and recency are kept in memory: a few hundred
    ///   bytes for each entry. [`hot_bytes`](Builder::hot_bytes) is the size of the cache of sled
    ///   itself, which sled keeps only roughly. [`keep_limits`](Builder::keep_limits) has no
    ///   effect.
    /// - A program opens it once. For a second handle, clone the first.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Builder::sled(dir).max_entries(10_000).open()?;
    /// cache.set("greeting", "hello", Timeout::Never)?;
    /// cache.incr_or_init("visits", 1, 0, Timeout::Never)?;
    /// cache.flush()?; // from here on a kill loses neither of them
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[cfg(all(feature = "sled", target_os = "linux"))]
    pub fn sled(dir: impl AsRef<Path>) -> Self {
        Self::at(Location::Sled(dir.as_ref().to_owned()))
    }

    /// Options for a cache on a store of your own: see [`backend`](crate::backend).
    ///
    /// The options of the cache apply: keys, timeouts, jitter, clock. Those of keepwarm's own
    /// stores (limits, eviction, durability, hot bytes) are not passed on, as the backend was given
    /// its own when it was made. If it takes the time from a clock, give the same one to
    /// [`clock`](Builder::clock).
    ///
    /// ```
    /// use keepwarm::{Builder, Timeout};
    ///
    /// // One of keepwarm's own stores serves as well.
    /// let backend = Builder::in_memory().max_entries(100).open_backend()?;
    /// let cache = Builder::backend(backend).key_prefix("app").open()?;
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.limits().max_entries, 100);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn backend(backend: Box<dyn Backend>) -> Self {
        Self::at(Location::Backend(backend))
    }

    fn at(location: Location) -> Self {
        Self {
            location,
            options: Options::default(),
            default_timeout: Timeout::Default,
            prefix: "".into(),
            version: 1,
            keys: KeyRule::default(),
            jitter: 0.0,
            jitter_seed: None,
            #[cfg(all(feature = "failpoints", target_os = "linux"))]
            faults: None,
        }
    }

    /// Opens the cache. Creates a missing directory; its parent must exist.
    ///
    /// If the last process that had the directory open was killed, opening includes a recovery.
    ///
    /// ```
    /// let cache = keepwarm::Builder::in_memory().max_entries(1000).open()?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidOption` for the first option that is out of its bounds. For a directory that cannot
    /// be used: `NotACache`, `NetworkFileSystem`, `UnsupportedFormat`, `Corrupt`, `Busy`, `NoSpace`
    /// or `Io`. `InUse` with [`salvage`](Builder::salvage), or on sled, if the directory is already
    /// open. `Unsupported` for a directory on a system other than Linux.
    pub fn open(self) -> Result<Cache> {
        let (backend, builder) = self.make_backend()?;
        Ok(builder.build(backend))
    }

    /// Opens the store alone, without prefix, version, types and default timeouts: to put a
    /// [backend](crate::backend) of your own around it, or to test it.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// let backend = Builder::in_memory().open_backend()?;
    /// assert_eq!(backend.len()?, 0);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Builder::open).
    pub fn open_backend(self) -> Result<Box<dyn Backend>> {
        Ok(self.make_backend()?.0)
    }

    fn make_backend(mut self) -> Result<(Box<dyn Backend>, Self)> {
        self.validate()?;
        let location = std::mem::replace(&mut self.location, Location::Dummy);
        let backend: Box<dyn Backend> = match location {
            Location::Directory(dir) => self.open_directory(&dir)?,
            #[cfg(all(feature = "sled", target_os = "linux"))]
            Location::Sled(dir) => {
                Box::new(crate::backend::SledBackend::open(&dir, &self.options)?)
            }
            Location::Memory => Box::new(MemoryBackend::new(&self.options)),
            Location::Dummy => Box::new(DummyBackend::new(&self.options)),
            Location::Backend(backend) => backend,
        };
        Ok((backend, self))
    }

    #[cfg(target_os = "linux")]
    fn open_directory(&self, dir: &Path) -> Result<Box<dyn Backend>> {
        #[cfg(feature = "failpoints")]
        if let Some(faults) = self.faults {
            return Ok(Box::new(FileBackend::open_on(faults, dir, &self.options)?));
        }
        Ok(Box::new(FileBackend::open(dir, &self.options)?))
    }

    #[cfg(not(target_os = "linux"))]
    fn open_directory(&self, dir: &Path) -> Result<Box<dyn Backend>> {
        let why = "a cache in a directory needs Linux; Builder::in_memory works on this system";
        Err(crate::error::Error::unsupported("open").with_path(dir).with_source(why))
    }

    /// Opens the directory behind `faults`, unless this process has it open already.
    #[cfg(all(feature = "failpoints", target_os = "linux"))]
    #[doc(hidden)]
    pub fn faults(mut self, faults: &'static crate::sys::storage::faults::Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    fn validate(&self) -> Result<()> {
        self.options.validate()?;
        if self.options.read_only && !matches!(self.location, Location::Directory(_)) {
            return Err(invalid(
                "read_only",
                "only a directory of keepwarm can be opened read-only".to_owned(),
            ));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return Err(invalid(
                "jitter",
                format!("{}; it must be at least 0 and below 1", self.jitter),
            ));
        }
        Ok(())
    }

    pub(super) fn build_in_memory(self) -> Cache {
        let backend = MemoryBackend::new(&self.options);
        self.build(Box::new(backend))
    }

    pub(super) fn build_dummy(self) -> Cache {
        let backend = DummyBackend::new(&self.options);
        self.build(Box::new(backend))
    }

    pub(super) fn build(self, backend: Box<dyn Backend>) -> Cache {
        let seed = self.jitter_seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        let shared = Shared {
            backend,
            opened: self.options.clock.now(),
            clock: self.options.clock,
            default_timeout: self.default_timeout,
            keys: self.keys,
            jitter: Jitter::new(self.jitter, seed),
            flights: Flights::new(),
            max_claim_wait: MAX_CLAIM_WAIT,
            store_failures: AtomicU64::new(0),
            refresh_failures: AtomicU64::new(0),
        };
        Cache { shared: Arc::new(shared), view: View::new(self.prefix, self.version) }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let location = match &self.location {
            Location::Directory(dir) => dir.display().to_string(),
            #[cfg(all(feature = "sled", target_os = "linux"))]
            Location::Sled(dir) => format!("sled in {}", dir.display()),
            Location::Memory => "in memory".to_owned(),
            Location::Dummy => "dummy".to_owned(),
            Location::Backend(_) => "a backend of the program".to_owned(),
        };
        f.debug_struct("Builder")
            .field("location", &location)
            .field("options", &self.options)
            .field("default_timeout", &self.default_timeout)
            .field("key_prefix", &self.prefix)
            .field("version", &self.version)
            .field("portable_keys", &self.keys.portable)
            .field("jitter", &self.jitter)
            .finish_non_exhaustive()
    }
}
