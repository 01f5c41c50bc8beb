//! The options of a cache, one method each, with its bounds and default.

use std::sync::Arc;

use super::Builder;
use crate::options::{Durability, Eviction};
use crate::time::Clock;
use crate::timeout::Timeout;

impl Builder {
    /// The meaning of [`Timeout::Default`]: how long entries live if a call gives no timeout. Any
    /// timeout. With a timeout of zero, such calls store nothing. Default: 300 seconds, which is
    /// also the meaning of `Timeout::Default` here.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout, Ttl};
    /// let cache = Builder::in_memory().default_timeout(Timeout::Never).open()?;
    /// cache.set("a", &1, Timeout::Default)?;
    /// assert_eq!(cache.ttl("a")?, Some(Ttl::Never));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn default_timeout(mut self, timeout: impl Into<Timeout>) -> Self {
        self.default_timeout = timeout.into();
        self
    }

    /// The prefix of stored keys: `prefix:version:key`. Any string. Default: empty.
    /// [`Cache::with_prefix`](crate::Cache::with_prefix) changes it for a view.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// assert_eq!(Builder::in_memory().key_prefix("users").open()?.prefix(), "users");
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn key_prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The version of stored keys. Any number. Default: 1.
    /// [`Cache::with_version`](crate::Cache::with_version) changes it for a view.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// assert_eq!(Builder::in_memory().version(2).open()?.version(), 2);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    /// A function that composes the stored key from prefix, version and key, in place of
    /// `prefix:version:key`. It is called once for each use of a key (twice in `incr_version`). It
    /// must be fast and deterministic; for a directory, use the same function each time. Default:
    /// none. [`hash_long_keys`](crate::hash_long_keys) is ready to use.
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

    /// Whether to reject keys that memcached would reject: stored keys of more than 250 characters,
    /// or with spaces or control characters. A call with such a key is the error `InvalidKey`.
    /// Default: no.
    ///
    /// ```
    /// # use keepwarm::{Builder, ErrorKind};
    /// let cache = Builder::in_memory().portable_keys(true).open()?;
    /// assert_eq!(cache.get::<u8>("a b").unwrap_err().kind(), ErrorKind::InvalidKey);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn portable_keys(mut self, portable: bool) -> Self {
        self.keys.portable = portable;
        self
    }

    /// The maximum number of entries at any time, a hard bound. An insert of a new key at the bound
    /// first evicts some of the least recently used entries; see
    /// [`cull_frequency`](Builder::cull_frequency). From 1 to 4,294,967,294. Default: 1,000,000.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// let cache = Builder::in_memory().max_entries(2).open()?;
    /// for n in 0..3 {
    ///     cache.set(&n.to_string(), &n, Timeout::Never)?;
    /// }
    /// assert!(!cache.contains_key("0")? && cache.contains_key("2")?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[doc(alias = "MAX_ENTRIES")]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.options.max_entries = entries;
        self
    }

    /// How many entries an insert at the bound evicts: one in `frequency`, at least one; 0 evicts
    /// all of them. With a bound of more than 10,000 entries, the cache evicts a few at a time
    /// instead, so that no call pays for many evictions (0 still evicts all). Any number. Default:
    /// 64; the default of Django is 3.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// let cache = Builder::in_memory().max_entries(9).cull_frequency(3).open()?;
    /// for n in 0..10 {
    ///     cache.set(&n.to_string(), &n, Timeout::Never)?;
    /// }
    /// assert_eq!(cache.len(), 7); // the tenth insert evicted three of nine
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[doc(alias = "CULL_FREQUENCY")]
    pub fn cull_frequency(mut self, frequency: u64) -> Self {
        self.options.cull_frequency = frequency;
        self
    }

    /// Which entries are evicted at the bound. [`Eviction::Lru`] fits entries that are used in
    /// bursts and then no more, and programs that depend on the order of eviction.
    /// [`Eviction::Adaptive`] fits workloads in which some entries are used far more often than
    /// most; compare the hits in [`Stats`](crate::Stats). A directory may be opened with another
    /// policy each time. Caches in memory or on sled always use LRU. Default: [`Eviction::Lru`].
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

    /// The maximum number of bytes in use at any time, a hard bound: of disk space, for all files
    /// in the directory, or of memory. From 1 MiB to 128 TiB. Default: 1 GiB.
    ///
    /// ```
    /// # use keepwarm::{Builder, ErrorKind, Timeout};
    /// let cache = Builder::in_memory().max_bytes(1 << 20).open()?;
    /// let error = cache.set_bytes("a", &vec![0; 2 << 20], Timeout::Never).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ValueTooLarge);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.options.max_bytes = bytes;
        self
    }

    /// Whether an existing directory keeps its last `max_entries`, `cull_frequency` and
    /// `max_bytes`, in place of those given here. For tools, which must not evict what the limits
    /// of a program allow. While other processes have the directory open, its limits always stay.
    /// Default: no.
    ///
    /// ```
    /// # use keepwarm::{Builder, Cache};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// Cache::builder(dir).max_entries(5000).open()?.close()?;
    /// let cache = Cache::builder(dir).keep_limits(true).open()?;
    /// assert_eq!(cache.limits().max_entries, 5000);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn keep_limits(mut self, keep: bool) -> Self {
        self.options.keep_limits = keep;
        self
    }

    /// Whether to rebuild the index from all records in the log, and ignore the snapshots: for a
    /// directory with damaged snapshots, which would otherwise start empty. Entries that were
    /// deleted or replaced recently may come back. Costs a pass over all records. Applies to one
    /// opening, while no other process has the directory open: otherwise the error is `InUse`.
    /// Default: no.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// Cache::open(dir)?.set("a", &1, Timeout::Never)?;
    /// let cache = Cache::builder(dir).salvage(true).open()?;
    /// assert_eq!(cache.get("a")?, Some(1));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.options.salvage = salvage;
        self
    }

    /// Whether the cache is read-only: for tools, and for programs that must not change a directory
    /// of others. Every call that would change an entry or a limit is the error `ReadOnly`;
    /// `get_or_set` computes and does not store. The directory must exist and contain a cache, and
    /// keeps its limits. Only for a directory of [`Builder::new`].
    ///
    /// A process with permission to write to the directory still attaches to it like any other: it
    /// takes part in locking and maintenance, and closes the directory. A process without that
    /// permission, or on a read-only mount, is an *observer*. It changes no file. It reads what
    /// other processes write as soon as their call has returned, and a directory that was closed or
    /// left by a kill. It must be able to read every file; keepwarm creates files that only their
    /// owner can read. An observer
    ///
    /// - recovers into its own memory if the directory was not closed and no process has it open.
    ///   This takes as much memory as the file `index` has, and as long as any recovery;
    ///   `stats().bytes` is then without large values;
    /// - is invisible to other processes: it is not in their `process_stats`, entries that it reads
    ///   can be evicted at any time, and no process waits for a value that it computes;
    /// - keeps removed files mapped for up to one second, and files of values that the program
    ///   holds for longer; they do not count against `max_bytes`;
    /// - waits while another process opens or closes the directory, and blocks such processes while
    ///   it opens it itself.
    ///
    /// If an observer finds no index to read, the error is `Io`, until a process opens the
    /// directory to write. Default: no.
    ///
    /// ```
    /// # use keepwarm::{Cache, ErrorKind, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path().join("cache");
    /// assert!(Cache::builder(&dir).read_only(true).open().is_err()); // it does not exist
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

    /// Whether to allow a directory on a network file system, which is otherwise the error
    /// `NetworkFileSystem`: NFS, SMB, 9p, Ceph, AFS, Coda, NCP, Lustre, GPFS, BeeGFS, PanFS, and
    /// sshfs and other FUSE file systems known by name. On these, one machine may see the writes of
    /// another late or never, and the locks of a dead process may stay. It is safe only if a single
    /// machine ever opens the directory, and even then the server decides what survives a power
    /// cut. Default: no.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Cache::builder(dir).allow_network_file_system(true).open()?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn allow_network_file_system(mut self, allow: bool) -> Self {
        self.options.allow_network = allow;
        self
    }

    /// The maximum size of the hot tier, in bytes of memory: recently used values in front of the
    /// disk, as bytes, and as values that [`get_shared`](crate::Cache::get_shared) decoded. For a
    /// cache in memory it holds decoded values only. From 0 (no hot tier) to 128 TiB. Default: 64
    /// MiB.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Cache::builder(dir).hot_bytes(0).open()?; // every hit reads mapped memory
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn hot_bytes(mut self, bytes: u64) -> Self {
        self.options.hot_bytes = bytes;
        self
    }

    /// When a write survives a power cut. An interval is from 1 ms to one day. Default:
    /// [`Durability::Interval`] of one second.
    ///
    /// ```
    /// # use keepwarm::{Cache, Durability, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = dir.path();
    /// let cache = Cache::builder(dir).durability(Durability::Sync).open()?;
    /// cache.set("a", &1, Timeout::Never)?; // returns when the disk has it
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// The clock that decides all expiry. Default: [`SystemClock`](crate::SystemClock).
    ///
    /// ```
    /// # use keepwarm::{Builder, Clock, Timeout, Timestamp};
    /// struct Frozen;
    /// impl Clock for Frozen {
    ///     fn now(&self) -> Timestamp {
    ///         Timestamp::from_millis(1_000_000_000_000)
    ///     }
    /// }
    /// let cache = Builder::in_memory().clock(Frozen).open()?;
    /// cache.set("a", &1, Timeout::Default)?;
    /// assert_eq!(cache.get("a")?, Some(1));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.options.clock = Arc::new(clock);
        self
    }

    /// The fraction by which `get_or_set` and its variants shorten a timeout at most, at random, so
    /// that values computed together do not expire together. At least 0 (off) and below 1. Default:
    /// 0.
    ///
    /// ```
    /// # use keepwarm::{Builder, Ttl};
    /// # use std::time::Duration;
    /// let cache = Builder::in_memory().jitter(0.5).open()?;
    /// cache.get_or_set("a", Duration::from_secs(60), || 1)?;
    /// let left = cache.ttl("a")?.and_then(Ttl::remaining).unwrap();
    /// assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(20));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    /// The seed of the random numbers for [`jitter`](Builder::jitter) and for [early
    /// refresh](crate::Lifespan::early_refresh), for repeatable tests. Any number. Default: a new
    /// one for each cache.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// let cache = Builder::in_memory().jitter(0.1).jitter_seed(7).open()?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn jitter_seed(mut self, seed: u64) -> Self {
        self.jitter_seed = Some(seed);
        self
    }
}
