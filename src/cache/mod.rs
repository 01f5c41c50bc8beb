//! The cache as programs see it: typed values under keys with prefix and version, over any backend.

#[cfg(feature = "async")]
mod async_cache;
mod builder;
mod call;
mod compute;
mod counter;
mod entry;
mod expiry;
mod expiry_policy;
mod flight_table;
mod iter;
mod lease;
mod many;
mod shared;
mod single_flight;
mod stream;
mod values;
mod versions;
mod view;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::backend::{Backend, CheckReport, Limits, NewLimits, ProcessStats, Stats};
use crate::error::Result;
use crate::key::KeyRule;
use crate::time::{Clock, Timestamp};
use crate::timeout::Timeout;

#[cfg(feature = "async")]
pub use async_cache::{AsyncCache, AsyncIter, AsyncKeys, AsyncLease};
pub use builder::Builder;
pub use compute::ComputeError;
pub use entry::{Entry, Swap, Token};
pub use iter::{Iter, Keys};
pub use lease::Lease;
pub use stream::{Reader, Writer};

use expiry_policy::Jitter;
use flight_table::Flights;
use view::View;

/// A cache: typed values under string keys, each until its timeout or until room is needed.
///
/// Cheap to clone (three reference counts); clones and views share entries, counters and limits, and may be
/// used from any number of threads at once. Nothing needs to be closed. After a `fork`, a cache in a directory works in
/// the child as in the parent.
///
/// A key is stored as `prefix:version:key`. [`with_prefix`](Cache::with_prefix) and
/// [`with_version`](Cache::with_version) give views on the same cache under another prefix or version. As in
/// Django, a colon in a prefix or key is not escaped, so that prefix `a:1`, version 1, key `x` and prefix
/// `a`, version 1, key `1:x` are the same entry. A stored key has at most 65,536 bytes; the empty key works.
///
/// ```
/// use keepwarm::{Cache, Timeout};
/// use std::time::Duration;
///
/// let cache = Cache::in_memory();
/// cache.set("greeting", "hello", Duration::from_secs(60))?;
/// assert_eq!(cache.get::<String>("greeting")?, Some("hello".to_owned()));
///
/// let rows: Vec<u32> = cache.get_or_set("rows", Timeout::Default, || vec![1, 2, 3])?;
/// assert_eq!(rows, [1, 2, 3]);
/// # Ok::<(), keepwarm::Error>(())
/// ```
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    view: View,
}

/// What all clones and views of a cache have in common.
struct Shared {
    backend: Box<dyn Backend>,
    clock: Arc<dyn Clock>,
    opened: Timestamp,
    default_timeout: Timeout,
    keys: KeyRule,
    jitter: Jitter,
    flights: Flights,
    /// How long it waits for a computation of another process.
    max_claim_wait: Duration,
    store_failures: AtomicU64,
    refresh_failures: AtomicU64,
}

const _: () = {
    const fn shared_between_threads<T: Clone + Send + Sync>() {}
    shared_between_threads::<Cache>();
};

impl Cache {
    /// Opens the cache in the directory `dir`, with the default options, and makes the directory if there is
    /// none; its parent must be there.
    ///
    /// ```no_run
    /// let cache = keepwarm::Cache::open("/var/cache/app")?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the directory cannot be used: the [kind](crate::Error::kind) says why; see [`Builder::open`]. Other processes may
    /// have it open, up to 1,023 of them: one more is the error `Busy`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Builder::new(dir.as_ref()).open()
    }

    /// The options for a cache in the directory `dir`; [`Builder::open`] then opens it.
    ///
    /// ```no_run
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder("/var/cache/app").default_timeout(Duration::from_secs(3600)).open()?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn builder(dir: impl AsRef<Path>) -> Builder {
        Builder::new(dir.as_ref())
    }

    /// A cache in the memory of this process, with the default options. It is gone with its last clone.
    /// [`Builder::in_memory`] gives one with other options.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.len(), 1);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn in_memory() -> Self {
        Builder::in_memory().build_in_memory()
    }

    /// A cache that keeps nothing, for development and tests: every write succeeds, every read is a miss.
    /// `get_or_set` computes each time, once for all threads that wait for the same key.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::dummy();
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.get::<i32>("a")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn dummy() -> Self {
        Builder::dummy().build_dummy()
    }

    /// Removes every entry of the cache, whatever its prefix and version. The cost does not grow with
    /// their number, except that a cache in memory frees them before it returns.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// cache.with_version(2).clear()?;
    /// assert!(cache.is_empty());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the disk refuses; then nothing was removed.
    pub fn clear(&self) -> Result<()> {
        self.shared.backend.clear().map_err(|error| call::about(error, "clear", None))
    }

    /// The number of entries in the whole cache, whatever their prefix and version, expired ones that were
    /// not reaped yet included. O(1).
    pub fn len(&self) -> u64 {
        self.shared.backend.len()
    }

    /// Whether there is no entry at all; see [`len`](Cache::len).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the cache counted since it was opened: hits, misses, evictions, bytes in use and more. Cheap.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.get::<u8>("missing")?;
    /// assert_eq!(cache.stats().misses, 1);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn stats(&self) -> Stats {
        self.with_failures(self.shared.backend.stats())
    }

    /// The same over all processes that share the directory: what they have counted since one of them opened it that nobody had
    /// open, those included that have left or were killed since. Of other processes it is at most a second or two old, and what
    /// a killed one counted in its last second is missing. `store_failures` and `refresh_failures` are of this
    /// `Cache` alone. Costs a read of 128 bytes for each process; of a cache that is not in a directory it is
    /// [`stats`](Cache::stats).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let dir = tempfile::tempdir().unwrap();
    /// let cache = Cache::open(dir.path())?;
    /// cache.get::<u8>("missing")?;
    /// assert_eq!(cache.total_stats()?.misses, 1);
    /// assert_eq!(cache.process_stats()?[0].pid, std::process::id());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If what the processes wrote down cannot be read.
    pub fn total_stats(&self) -> Result<Stats> {
        let stats = self.shared.backend.total_stats();
        stats
            .map(|stats| self.with_failures(stats))
            .map_err(|error| call::about(error, "stats", None))
    }

    /// The same for each process that has the directory open, this one first. See [`total_stats`](Cache::total_stats).
    ///
    /// # Errors
    /// As [`total_stats`](Cache::total_stats).
    pub fn process_stats(&self) -> Result<Vec<ProcessStats>> {
        let found = self.shared.backend.process_stats();
        let mut processes =
            found.map_err(|error| call::about(error, "stats", None))?.unwrap_or_else(|| {
                let stats = self.shared.backend.stats();
                vec![ProcessStats { pid: std::process::id(), since: self.shared.opened, stats }]
            });
        if let Some(own) = processes.first_mut() {
            own.stats = self.with_failures(own.stats);
        }
        Ok(processes)
    }

    fn with_failures(&self, mut stats: Stats) -> Stats {
        stats.store_failures += self.shared.store_failures.load(Relaxed);
        stats.refresh_failures += self.shared.refresh_failures.load(Relaxed);
        stats
    }

    /// The limits that count now. Cheap.
    pub fn limits(&self) -> Limits {
        self.shared.backend.limits()
    }

    /// Changes limits of the cache while it is open, for all processes that share its directory, at once, and returns what
    /// counts now.
    ///
    /// Entries beyond a lower `max_entries` are evicted before this returns, and so is what this process can give up beyond a
    /// lower `max_bytes`; other processes and the background do the rest within a few seconds. So a call that lowers
    /// a limit costs a pass over the entries.
    ///
    /// The index of a directory is as large as the limits asked for when no process had it open. More entries than it is
    /// made for, more bytes than its table has segments for (a GiB in any case; 16 where it was opened with one), and fewer
    /// than it takes itself, count fully when the directory is opened the next time while no process has it open. Until
    /// then the nearest that is possible counts, and is what is returned.
    ///
    /// The directory remembers what was asked for. A program that opens it while others have it open goes by their
    /// limits; when nobody has, the options of the opening count, or, with [`keep_limits`](Builder::keep_limits), what is
    /// remembered. A cache in memory or on sled changes its own limits, until it is dropped; a dummy just tells them.
    ///
    /// ```
    /// # use keepwarm::{Cache, NewLimits, Timeout};
    /// # let cache = Cache::in_memory();
    /// let limits = cache.configure(&NewLimits::new().max_entries(10_000).max_bytes(64 << 20))?;
    /// assert_eq!((limits.max_entries, limits.max_bytes), (10_000, 64 << 20));
    /// assert_eq!(cache.limits(), limits);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidOption`, naming the first that is out of its limits, which are those of the [`Builder`]; `Busy` if another
    /// process is stopped while it makes room; or if the disk refuses. Nothing has changed then.
    pub fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let configured = new.validate().and_then(|()| self.shared.backend.configure(new));
        configured.map_err(|error| call::about(error, "configure", None))
    }

    /// Does now what happens in the background in time: reaps expired entries and makes room. Never needed;
    /// for tests and quiet hours. The cost grows with the number of entries.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn maintain(&self) -> Result<()> {
        self.shared.backend.maintain().map_err(|error| call::about(error, "maintain", None))
    }

    /// Makes every write that was acknowledged durable, whatever the [durability](crate::Durability) in use,
    /// and returns when the disk has it. Does nothing for a cache in memory.
    ///
    /// # Errors
    /// If the disk refuses; what was written since the last success may be lost in a power cut.
    pub fn flush(&self) -> Result<()> {
        self.shared.backend.flush().map_err(|error| call::about(error, "flush", None))
    }

    /// Flushes, and gives up what the cache holds of the operating system, for all clones and views. Never
    /// needed; the next call of any of them takes it up again. Values that were handed out stay valid. What they keep on the
    /// disk, if other processes remove it meanwhile, counts against `max_bytes` from that next call on only.
    ///
    /// # Errors
    /// As [`flush`](Cache::flush).
    pub fn close(&self) -> Result<()> {
        self.shared.backend.close().map_err(|error| call::about(error, "close", None))
    }
}

impl Cache {
    /// Looks whether everything in the directory is as it should be, and says what is not. Changes nothing,
    /// reads everything. What moves or goes meanwhile is not reported. A cache in memory has nothing to check.
    ///
    /// # Errors
    /// If the directory was closed and cannot be opened again.
    pub fn check(&self) -> Result<CheckReport> {
        self.shared.backend.check().map_err(|error| call::about(error, "check", None))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("prefix", &self.view.prefix)
            .field("version", &self.view.version)
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
