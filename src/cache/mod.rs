//! The blocking facade: typed values under keys with a prefix and a version, over any backend. The
//! files below add one group of calls each; [`call`] has what all calls share.

#[cfg(feature = "async")]
mod async_cache;
mod builder;
mod call;
mod compute;
mod constructors;
mod context;
mod counter;
mod entry;
mod expiry;
mod expiry_policy;
mod flight_table;
mod io;
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

/// A cache: typed values under string keys. An entry lives until its timeout, or until it is
/// evicted.
///
/// Cloning is cheap (three reference counts). Clones and views share entries, counters and limits,
/// and any number of threads may use them at the same time. A cache never has to be closed. After a
/// `fork`, a cache in a directory works in the child as in the parent.
///
/// A key is stored as `prefix:version:key`. [`with_prefix`](Cache::with_prefix) and
/// [`with_version`](Cache::with_version) return views of the same cache with another prefix or
/// version. As in Django, a colon in a prefix or key is not escaped: prefix `a:1`, version 1, key
/// `x` and prefix `a`, version 1, key `1:x` name the same entry. A stored key has at most 65,536
/// bytes. The empty key is valid.
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

/// The state that all clones and views of a cache share.
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
    /// Removes all entries of the cache, whatever their prefix and version. The cost does not grow
    /// with their number; only a cache in memory frees its entries before this returns.
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
    /// `NoSpace` or `Io` if the disk is full or fails. Then nothing was removed.
    pub fn clear(&self) -> Result<()> {
        self.shared.backend.clear().map_err(|error| context::about(error, "clear", None))
    }

    /// The number of entries in the whole cache, whatever their prefix and version. Includes
    /// expired entries that were not removed yet. O(1).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// cache.with_version(2).set("a", &2, Timeout::Default)?;
    /// assert_eq!(cache.len(), 2);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn len(&self) -> u64 {
        self.shared.backend.len().unwrap_or_else(|error| {
            tracing::warn!(%error, "the number of entries is not known");
            0
        })
    }

    /// Whether the cache has no entry at all, as [`len`](Cache::len) counts. O(1).
    ///
    /// ```
    /// assert!(keepwarm::Cache::in_memory().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What this process has counted since it opened the cache: hits, misses, evictions, bytes in
    /// use and more. Cheap.
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

    /// The sum of the [`stats`](Cache::stats) of all processes that share the directory. It covers
    /// the time since the directory was last opened while no other process had it open, and
    /// includes processes that have closed it or were killed since.
    ///
    /// The counts of other processes are one or two seconds old at most; what a killed process
    /// counted in its last second is missing. `store_failures` and `refresh_failures` cover this
    /// `Cache` alone. Costs a read of 128 bytes for each process. For a cache that is not in a
    /// directory, this is [`stats`](Cache::stats).
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
    /// `Io` if the file with the counts of the processes cannot be read.
    pub fn total_stats(&self) -> Result<Stats> {
        let stats = self.shared.backend.total_stats();
        stats
            .map(|stats| self.with_failures(stats))
            .map_err(|error| context::about(error, "stats", None))
    }

    /// The [`stats`](Cache::stats) of each process that has the directory open, this one first. Age
    /// and cost as for [`total_stats`](Cache::total_stats).
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # let cache = Cache::in_memory();
    /// let processes = cache.process_stats()?;
    /// assert_eq!(processes[0].pid, std::process::id());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`total_stats`](Cache::total_stats).
    pub fn process_stats(&self) -> Result<Vec<ProcessStats>> {
        let found = self.shared.backend.process_stats();
        Ok(self.processes(found.map_err(|error| context::about(error, "stats", None))?))
    }

    /// The statistics of the processes that the backend found; of this one if it knows no others.
    fn processes(&self, found: Option<Vec<ProcessStats>>) -> Vec<ProcessStats> {
        let mut processes = found.unwrap_or_else(|| {
            let stats = self.shared.backend.stats();
            vec![ProcessStats { pid: std::process::id(), since: self.shared.opened, stats }]
        });
        if let Some(own) = processes.first_mut() {
            own.stats = self.with_failures(own.stats);
        }
        processes
    }

    fn with_failures(&self, mut stats: Stats) -> Stats {
        stats.store_failures += self.shared.store_failures.load(Relaxed);
        stats.refresh_failures += self.shared.refresh_failures.load(Relaxed);
        stats
    }

    /// The limits in effect now. Cheap.
    ///
    /// ```
    /// # use keepwarm::Builder;
    /// let cache = Builder::in_memory().max_entries(10_000).open()?;
    /// assert_eq!(cache.limits().max_entries, 10_000);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn limits(&self) -> Limits {
        self.shared.backend.limits()
    }

    /// Changes the limits of the open cache, at once and for all processes that share its
    /// directory. Returns the limits now in effect.
    ///
    /// A lower `max_entries` evicts the excess entries before this returns. A lower `max_bytes`
    /// frees what this process can free before this returns; other processes and the background
    /// free the rest within a few seconds. So a call that lowers a limit costs a pass over the
    /// entries.
    ///
    /// The size of the index is fixed when a directory is opened that no process has open. Until it
    /// is opened that way again, three requests take effect only in part, and the nearest possible
    /// limit is in effect and returned: more entries than the index has room for; more bytes than
    /// its segment table covers (at least 1 GiB; at least 16 GiB if it was opened with 1 GiB); and
    /// fewer bytes than the index itself occupies.
    ///
    /// The directory stores the requested limits. A program that opens it while others have it open
    /// takes over their limits. If no other process has it open, the options of that program apply,
    /// or, with [`keep_limits`](Builder::keep_limits), the stored limits. A cache in memory or on
    /// sled changes its own limits, until it is dropped. A dummy only returns them.
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
    /// `InvalidOption` for the first limit that is out of its bounds, which are those of the
    /// [`Builder`]. `Busy` if another process is stopped while it frees space. `NoSpace` or `Io` if
    /// the disk is full or fails. Then nothing has changed.
    pub fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let configured = new.validate().and_then(|()| self.shared.backend.configure(new));
        configured.map_err(|error| context::about(error, "configure", None))
    }

    /// Runs now what otherwise runs in the background: removes expired entries and frees space.
    /// Never needed; for tests and quiet hours. The cost grows with the number of entries.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Duration::from_millis(1))?;
    /// std::thread::sleep(Duration::from_millis(5));
    /// cache.maintain()?;
    /// assert_eq!(cache.len(), 0);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `NoSpace` or `Io` if the disk is full or fails.
    pub fn maintain(&self) -> Result<()> {
        self.shared.backend.maintain().map_err(|error| context::about(error, "maintain", None))
    }

    /// Makes every acknowledged write durable, whatever the [durability](crate::Durability), and
    /// returns when the disk has it. Costs a sync of the disk. Does nothing for a cache in memory.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Never)?;
    /// cache.flush()?; // a power cut cannot undo it from here on
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `NoSpace` or `Io` if the disk is full or fails. Writes since the last successful flush may
    /// then be lost in a power cut.
    pub fn flush(&self) -> Result<()> {
        self.shared.backend.flush().map_err(|error| context::about(error, "flush", None))
    }

    /// Flushes, and releases the files and mappings of the cache, for all clones and views. Never
    /// needed. The next call of any of them opens the directory again.
    ///
    /// Values that were returned earlier stay valid. If another process removes such a value
    /// meanwhile, the disk space that it keeps counts against `max_bytes` only from that next call
    /// on.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Never)?;
    /// cache.close()?;
    /// assert_eq!(cache.get("a")?, Some(1));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`flush`](Cache::flush).
    pub fn close(&self) -> Result<()> {
        self.shared.backend.close().map_err(|error| context::about(error, "close", None))
    }
}

impl Cache {
    /// Verifies the whole directory, and reports what is wrong. Changes nothing and reads
    /// everything. Entries that move or are removed meanwhile are not reported. A cache in memory
    /// has nothing to verify.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # let cache = Cache::in_memory();
    /// let report = cache.check()?;
    /// assert!(report.is_sound(), "{:?}", report.problems);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Builder::open`] if the directory was closed and cannot be opened again. Damage is
    /// no error: it is in the report.
    pub fn check(&self) -> Result<CheckReport> {
        self.shared.backend.check().map_err(|error| context::about(error, "check", None))
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
