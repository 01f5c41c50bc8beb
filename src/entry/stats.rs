//! What a store counts.

use crate::time::Timestamp;

/// What one of the processes that have a directory open counted; see
/// [`Cache::process_stats`](crate::Cache::process_stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessStats {
    /// The process id, as the process sees it itself. In another container it may belong to another
    /// process.
    pub pid: u32,
    /// When the process opened the directory.
    pub since: Timestamp,
    /// What it counted since. `entries` and `bytes` are those of the directory.
    pub stats: Stats,
}

impl ProcessStats {
    /// What the process `pid` counted since it opened the store.
    pub const fn new(pid: u32, since: Timestamp, stats: Stats) -> Self {
        Self { pid, since, stats }
    }
}

/// What a cache counted since it was opened. Counters only grow; a gauge is the value at this
/// moment. A backend leaves what it does not count at 0.
///
/// ```
/// use keepwarm::Stats;
///
/// let mut stats = Stats::default();
/// stats.hits = 3;
/// assert_eq!(stats.misses, 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Gauge: entries, expired ones that were not reaped yet included.
    pub entries: u64,
    /// Gauge: bytes of disk or memory in use, counted against `max_bytes`.
    pub bytes: u64,
    /// Gauge: of these, bytes of the log that cannot be moved because the program holds values in
    /// them.
    pub pinned_bytes: u64,
    /// Reads that found an entry.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Of the hits, those answered by the hot tier.
    pub hot_hits: u64,
    /// Gauge: bytes in the hot tier.
    pub hot_bytes: u64,
    /// Changes that took effect.
    pub commits: u64,
    /// Entries removed to keep within `max_entries` or `max_bytes`.
    pub evicted: u64,
    /// Expired entries removed without being asked for.
    pub expired: u64,
    /// Records that failed a check: each was a miss.
    pub corrupt: u64,
    /// Bytes that changes took in the log, on disk.
    pub written_bytes: u64,
    /// Bytes of records that were copied within the log, so that the space around them can be used
    /// again.
    pub copied_bytes: u64,
    /// Values that `get_or_set` computed but could not store.
    pub store_failures: u64,
    /// Refreshes that failed; the stale value was kept.
    pub refresh_failures: u64,
}
