//! The options of a cache.

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
use crate::backend::{Backend, DummyBackend, FileBackend, MemoryBackend};
use crate::error::Result;
use crate::key::KeyRule;
use crate::limits::invalid;
use crate::options::{Durability, Eviction, Options};
use crate::time::Clock;
use crate::timeout::Timeout;

/// The options for a cache, each with a default. They are checked by [`open`](Builder::open).
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
    place: Place,
    options: Options,
    default_timeout: Timeout,
    prefix: Arc<str>,
    version: i64,
    keys: KeyRule,
    jitter: f64,
    jitter_seed: Option<u64>,
}

/// Where the entries are kept.
enum Place {
    Directory(PathBuf),
    #[cfg(feature = "sled")]
    Sled(PathBuf),
    Memory,
    Dummy,
}

impl Builder {
    /// For a cache in the directory `dir`; the same as [`Cache::builder`].
    pub fn new(dir: impl AsRef<Path>) -> Self {
        Self::at(Place::Directory(dir.as_ref().to_owned()))
    }

    /// For a cache in the memory of this process, which is gone with its last clone. `durability` means nothing
    /// to it.
    pub fn in_memory() -> Self {
        Self::at(Place::Memory)
    }

    /// For a cache that keeps nothing; see [`Cache::dummy`].
    pub fn dummy() -> Self {
        Self::at(Place::Dummy)
    }

    /// For a cache in a [sled](https://docs.rs/sled/0.34.7) tree in the directory `dir`, which is made if it is
    /// missing. The same records, expiry, conditions and culling as a directory of [`Builder::new`], kept by sled.
    ///
    /// It promises less; `docs/operations.md` has the figures, and says when it is the right choice:
    ///
    /// - **A kill loses writes**: what was acknowledged and is still in sled's buffers, which are written out when half a
    ///   mebibyte has come together, at each interval of [`Durability::Interval`], every 30 seconds with
    ///   [`Durability::Buffered`], and at once with [`Durability::Sync`], for which each writing call pays a sync.
    ///   What is lost is the end: everything before it is there.
    /// - **The disk is not bounded.** [`max_bytes`](Builder::max_bytes) is hard for the keys and records that are
    ///   stored; sled's file is a multiple of them, and does not shrink soon.
    /// - **Opening reads everything**, since counts and recency are kept in memory: a few hundred bytes for each
    ///   entry. [`hot_bytes`](Builder::hot_bytes) is the size of sled's own cache, which sled does not keep to
    ///   exactly. [`keep_limits`](Builder::keep_limits) means nothing to it.
    /// - A program opens it once; where a second cache is wanted, clone the first.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Builder::sled(dir).max_entries(10_000).open()?;
    /// cache.set("greeting", "hello", Timeout::Never)?;
    /// cache.incr_or_init("visits", 1, 0, Timeout::Never)?;
    /// cache.flush()?; // from here on a kill loses neither
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[cfg(feature = "sled")]
    pub fn sled(dir: impl AsRef<Path>) -> Self {
        Self::at(Place::Sled(dir.as_ref().to_owned()))
    }

    fn at(place: Place) -> Self {
        Self {
            place,
            options: Options::default(),
            default_timeout: Timeout::Default,
            prefix: "".into(),
            version: 1,
            keys: KeyRule::default(),
            jitter: 0.0,
            jitter_seed: None,
        }
    }

    /// What [`Timeout::Default`] means: how long entries live where no call says otherwise. Any timeout, a
    /// zero one too, which keeps nothing by default. Default: 300 seconds (also for `Timeout::Default`).
    pub fn default_timeout(mut self, timeout: impl Into<Timeout>) -> Self {
        self.default_timeout = timeout.into();
        self
    }

    /// What stored keys begin with: `prefix:version:key`. Any string. Default: empty.
    /// [`Cache::with_prefix`] changes it for a view.
    pub fn key_prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The version that keys are under. Any. Default: 1. [`Cache::with_version`] changes it for a view.
    pub fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    /// Makes stored keys from prefix, version and key, in place of `prefix:version:key`. Called once for
    /// each use of a key (twice in `incr_version`); it should be fast, and always give the same result. Use
    /// the same one for a directory each time. Default: none. [`hash_long_keys`](crate::hash_long_keys) is
    /// ready to use.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout, hash_long_keys};
    /// let cache = Builder::in_memory().key_function(hash_long_keys).open()?;
    /// cache.set(&"long".repeat(100_000), &1, Timeout::Default)?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn key_function(
        mut self,
        function: impl Fn(&str, i64, &str) -> String + Send + Sync + 'static,
    ) -> Self {
        self.keys.function = Some(Arc::new(function));
        self
    }

    /// Whether to refuse keys that memcached would not take: stored keys of more than 250 characters, or
    /// with spaces or control characters. Calls with one fail with `InvalidKey`. Default: no.
    pub fn portable_keys(mut self, portable: bool) -> Self {
        self.keys.portable = portable;
        self
    }

    /// Most entries at any time, a hard bound. An insert of a new key at the bound first removes some of
    /// those used least recently; see [`cull_frequency`](Builder::cull_frequency). From 1 to 4,294,967,294.
    /// Default: 1,000,000.
    #[doc(alias = "MAX_ENTRIES")]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.options.max_entries = entries;
        self
    }

    /// How many entries an insert at the bound removes: one in `frequency`, at least one; 0 removes all of
    /// them. Above 10,000 entries, room is made a little at a time instead, so that no call has to pay for
    /// so many (but 0 still removes all). Any number. Default: 64; Django's is 3.
    #[doc(alias = "CULL_FREQUENCY")]
    pub fn cull_frequency(mut self, frequency: u64) -> Self {
        self.options.cull_frequency = frequency;
        self
    }

    /// Which entries go when there are as many as there may be. Leave it, if entries are used in bursts and then no
    /// more, or if it matters which entry goes when; try [`Eviction::Adaptive`] where some entries are asked for
    /// far more often than most, and compare the hits in [`Stats`](crate::Stats). A directory may be opened with
    /// another one each time. Caches in memory or on sled are
    /// always LRU. Default: [`Eviction::Lru`].
    ///
    /// ```
    /// # use keepwarm::{Builder, Eviction, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// let cache = Builder::new(dir.path()).max_entries(100).eviction(Eviction::Adaptive).open()?;
    /// cache.set("popular", &1, Timeout::Never)?;
    /// for n in 0..10_000 {
    ///     cache.set(&n.to_string(), &n, Timeout::Never)?;
    ///     if n % 20 == 0 {
    ///         cache.get::<i32>("popular")?;
    ///     }
    /// }
    /// assert_eq!(cache.get::<i32>("popular")?, Some(1));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.options.eviction = eviction;
        self
    }

    /// Most bytes in use at any time, a hard bound: of disk, for all files in the directory, or of memory.
    /// From 1 MiB to 128 TiB. Default: 1 GiB.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.options.max_bytes = bytes;
        self
    }

    /// Whether a directory that was opened before keeps the `max_entries`, `cull_frequency` and `max_bytes` that it
    /// had last, in place of those given here: for tools, which should not evict what the limits
    /// of a program allow. While other processes have the directory open, it does in any case. Default: no.
    pub fn keep_limits(mut self, keep: bool) -> Self {
        self.options.keep_limits = keep;
        self
    }

    /// Whether the index is made anew from everything that the log still holds, whatever the snapshots say: for a
    /// directory whose snapshots were damaged, which would start cold otherwise. What was deleted or replaced lately may
    /// come back with it. Costs a pass over all records. For one opening, while nobody else has the directory open: else
    /// that is the error `InUse`. Default: no.
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.options.salvage = salvage;
        self
    }

    /// Whether the cache can be read and not changed, for tools and for whoever must not touch what belongs to others: every call that
    /// would change an entry or a limit is the error `ReadOnly`, and `get_or_set` computes and does not store. The directory
    /// must be there and have a cache in it, and keeps its limits. Only for a directory of [`Builder::new`].
    ///
    /// A process that may write to the directory is one of those that share it all the same: it takes part in locking and
    /// looking after it, and leaves it closed. One that may not, for want of permission to write to any part of it or as the
    /// file system is mounted read-only, looks on: it changes no file, reads what others write as soon as their call has returned,
    /// and what was closed or left by a kill. It needs to be able to read every file: keepwarm makes them for their owner alone.
    /// Such a process
    ///
    /// - opens a directory that was not closed, and that nobody has open, with a recovery into its own memory: as much as `index`
    ///   takes on disk, and as long as any recovery; `stats().bytes` is without large values then;
    /// - does not count: not in `process_stats` of others, nor is what it reads kept from eviction for it, nor does anybody wait for
    ///   it to compute a value;
    /// - keeps removed files mapped for up to a second, and those of values in its hands longer; they are not within `max_bytes`;
    /// - when it opens the directory waits for a process that is opening or closing it, and holds such processes up for as long
    ///   as it takes.
    ///
    /// Where it finds no index to read, the error is `Io`, until somebody opens the directory to write. Default: no.
    ///
    /// ```
    /// # use keepwarm::{Cache, ErrorKind, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path().join("cache");
    /// assert!(Cache::builder(&dir).read_only(true).open().is_err(), "there is none, and none is made");
    /// Cache::open(&dir)?.set("a", &1, Timeout::Never)?;
    ///
    /// let cache = Cache::builder(&dir).read_only(true).open()?;
    /// assert_eq!(cache.get::<i32>("a")?, Some(1));
    /// assert_eq!(cache.delete("a").unwrap_err().kind(), ErrorKind::ReadOnly);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.options.read_only = read_only;
        self
    }

    /// Whether the directory may be on a network file system, which is refused otherwise (`NetworkFileSystem`): NFS, SMB, 9p, Ceph,
    /// AFS, Coda, NCP, Lustre, GPFS, BeeGFS, PanFS, and sshfs and others of FUSE that are known by name. There, what one machine
    /// stores another may see late or never, and the locks of a process that died may stay: only where a single machine ever
    /// opens the directory is it safe, and even there the server decides what survives a power cut. Default: no.
    pub fn allow_network_file_system(mut self, allow: bool) -> Self {
        self.options.allow_network = allow;
        self
    }

    /// Most bytes of memory for what was used most recently, in front of the disk: bytes, and values that
    /// [`get_shared`](Cache::get_shared) decoded. A cache in memory keeps decoded values only in it. From 0 (none)
    /// to 128 TiB. Default: 64 MiB.
    pub fn hot_bytes(mut self, bytes: u64) -> Self {
        self.options.hot_bytes = bytes;
        self
    }

    /// When a write survives a power cut. Default: [`Durability::Interval`] of one second.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Where the time comes from that decides all expiry. Default: [`SystemClock`](crate::SystemClock).
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.options.clock = Arc::new(clock);
        self
    }

    /// By what fraction, at most, `get_or_set` and its relatives shorten their timeouts, at random, so that
    /// what was computed together does not expire together. From 0 (not at all) to below 1. Default: 0.
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    /// Where the random numbers for [`jitter`](Builder::jitter) and for
    /// [early refresh](crate::Lifespan::early_refresh) begin, for tests that are to be repeated.
    /// Any number. Default: another one each time.
    pub fn jitter_seed(mut self, seed: u64) -> Self {
        self.jitter_seed = Some(seed);
        self
    }

    /// Opens the cache. A directory is made if it is missing; its parent must be there.
    ///
    /// # Errors
    /// `InvalidOption`, naming the first option that is out of its limits. For a directory, why it cannot be
    /// used: `NotACache`, `NetworkFileSystem`, `UnsupportedFormat`, `Corrupt`, `Busy`, `NoSpace` or `Io`; `InUse` with [`salvage`](Builder::salvage), or on sled.
    pub fn open(self) -> Result<Cache> {
        self.validate()?;
        match &self.place {
            Place::Directory(dir) => {
                let backend = FileBackend::open(dir, &self.options)?;
                Ok(self.build(Box::new(backend)))
            }
            #[cfg(feature = "sled")]
            Place::Sled(dir) => {
                let backend = crate::backend::SledBackend::open(dir, &self.options)?;
                Ok(self.build(Box::new(backend)))
            }
            Place::Memory => Ok(self.build_in_memory()),
            Place::Dummy => Ok(self.build_dummy()),
        }
    }

    fn validate(&self) -> Result<()> {
        self.options.validate()?;
        if self.options.read_only && !matches!(self.place, Place::Directory(_)) {
            return Err(invalid(
                "read_only",
                "only a directory of keepwarm's own can be opened so".to_owned(),
            ));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return Err(invalid(
                "jitter",
                format!("{}; from 0 to below 1 is possible", self.jitter),
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
        let place = match &self.place {
            Place::Directory(dir) => dir.display().to_string(),
            #[cfg(feature = "sled")]
            Place::Sled(dir) => format!("sled in {}", dir.display()),
            Place::Memory => "in memory".to_owned(),
            Place::Dummy => "dummy".to_owned(),
        };
        f.debug_struct("Builder")
            .field("place", &place)
            .field("options", &self.options)
            .field("default_timeout", &self.default_timeout)
            .field("key_prefix", &self.prefix)
            .field("version", &self.version)
            .field("portable_keys", &self.keys.portable)
            .field("jitter", &self.jitter)
            .finish_non_exhaustive()
    }
}
