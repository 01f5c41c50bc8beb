//! The options that a store is opened with, and the one place that checks them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::limits::{Limits, MAX_BYTES_LIMIT, check_max_bytes, check_max_entries, invalid, within};
use crate::time::{Clock, SystemClock};

/// When a write is on the disk and thus survives a power cut.
///
/// With any of these, an acknowledged write survives the death of the process, `kill -9` included.
/// After a power cut no value is torn, and no value comes back that is older than one which had
/// reached the disk. A cache in memory ignores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The kernel decides when to write back, usually within half a minute. The least disk work.
    Buffered,
    /// A background thread syncs all writes at this interval, from 1 ms to one day.
    Interval(Duration),
    /// A call that writes returns only when its write is on the disk. Each call costs a sync of the
    /// disk, which threads that wait at the same time share.
    Sync,
}

impl Default for Durability {
    /// An interval of one second.
    fn default() -> Self {
        Self::Interval(Duration::from_secs(1))
    }
}

/// Which entries are evicted when the cache holds `max_entries`.
///
/// Expired entries are removed first in either case. This concerns `max_entries` alone: when
/// `max_bytes` is reached, the entries written longest ago are evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Eviction {
    /// The least recently used entries. Easy to predict: an entry stays after its last use until
    /// about `max_entries` other entries have been used.
    #[default]
    Lru,
    /// Scan-resistant: new entries start on probation, and move to the main part after two uses (an
    /// S3-FIFO variant). While probation holds more than its share, its least recently used entries
    /// are evicted; otherwise those of the main part that have not been used for longest, the more
    /// often used ones later. The share adapts: it is learned from entries that are asked for again
    /// soon after their eviction.
    ///
    /// Keeps popular entries while many others are asked for only once: scans, crawlers, long
    /// tails. On recorded traffic its hit ratio is up to 26 percentage points above that of
    /// [`Lru`](Eviction::Lru), and nowhere 0.3 points below (see `docs/benchmarks.md`). Costs 6
    /// bytes of memory for each of `max_entries`, at most 32 MiB. The learned share is forgotten
    /// when the directory is closed; the counts of uses are kept.
    Adaptive,
}

/// The options of all backends. A backend may ignore some of them; their ranges are the same for
/// all.
#[derive(Clone)]
pub(crate) struct Options {
    /// The most entries at any time: 1 to [`MAX_ENTRIES_LIMIT`](crate::limits::MAX_ENTRIES_LIMIT).
    pub(crate) max_entries: u64,
    /// An insert at the bound removes 1 / `cull_frequency` of the entries; 0 removes all.
    pub(crate) cull_frequency: u64,
    /// Which entries are evicted at the bound.
    pub(crate) eviction: Eviction,
    /// The most bytes in the store at any time:
    /// [`MAX_BYTES_LEAST`](crate::limits::MAX_BYTES_LEAST) to [`MAX_BYTES_LIMIT`].
    pub(crate) max_bytes: u64,
    /// The most bytes of memory for the hot tier: 0 (no hot tier) to [`MAX_BYTES_LIMIT`].
    pub(crate) hot_bytes: u64,
    /// When a write is on the disk.
    pub(crate) durability: Durability,
    /// The clock that decides expiry.
    pub(crate) clock: Arc<dyn Clock>,
    /// Whether the limits that the directory was last opened with replace those here.
    pub(crate) keep_limits: bool,
    /// Whether every change is refused and no directory is made.
    pub(crate) read_only: bool,
    /// Whether the directory may be on a network file system.
    pub(crate) allow_network: bool,
    /// Whether the index is rebuilt from the whole log, without the snapshots.
    pub(crate) salvage: bool,
}

/// Up to this many entries, an insert at the bound removes the whole fraction at once, as Django
/// does. Above, that would be too much work for one call.
pub(crate) const INLINE_CULL_ENTRIES: u64 = 10_000;
/// An insert at the bound that searches fewer entries than this for some to remove is still quick:
/// some ten microseconds.
pub(crate) const QUICK_CULL_ENTRIES: u64 = 1000;
const INTERVAL_LEAST: Duration = Duration::from_millis(1);
const INTERVAL_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Options {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            cull_frequency: 64,
            eviction: Eviction::default(),
            max_bytes: 1 << 30,
            hot_bytes: 64 << 20,
            durability: Durability::default(),
            clock: Arc::new(SystemClock),
            keep_limits: false,
            read_only: false,
            allow_network: false,
            salvage: false,
        }
    }
}

/// How many of `entries` one cull removes; `None` means all of them.
pub(crate) fn due(entries: u64, cull_frequency: u64) -> Option<u64> {
    Some(entries.checked_div(cull_frequency)?.max(1))
}

/// How many of `entries`, which is the bound, an insert removes that makes room by itself.
pub(crate) fn due_inline(entries: u64, cull_frequency: u64) -> Option<u64> {
    due(entries, cull_frequency).map(|due| if entries <= INLINE_CULL_ENTRIES { due } else { 1 })
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        let &Self { max_entries, cull_frequency, max_bytes, .. } = self;
        Limits { max_entries, cull_frequency, max_bytes }
    }

    /// These options for a directory that was last opened with the limits `found`.
    pub(crate) fn for_limits(&self, found: Option<Limits>) -> Self {
        let own = self.clone();
        match found {
            Some(Limits { max_entries, cull_frequency, max_bytes }) if self.keep_limits => {
                let kept = Self { max_entries, cull_frequency, max_bytes, ..own.clone() };
                if kept.validate().is_ok() { kept } else { own }
            }
            _ => own,
        }
    }

    /// Checks that every option is within its range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption), naming the first that is out
    /// of range.
    pub(crate) fn validate(&self) -> Result<()> {
        check_max_entries(self.max_entries)?;
        check_max_bytes(self.max_bytes)?;
        within("hot_bytes", self.hot_bytes, 0, MAX_BYTES_LIMIT)?;
        match self.durability {
            Durability::Interval(interval)
                if !(INTERVAL_LEAST..=INTERVAL_LIMIT).contains(&interval) =>
            {
                Err(invalid(
                    "durability",
                    format!("an interval of {interval:?}; allowed: 1 ms to 24 h"),
                ))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("max_entries", &self.max_entries)
            .field("cull_frequency", &self.cull_frequency)
            .field("eviction", &self.eviction)
            .field("max_bytes", &self.max_bytes)
            .field("hot_bytes", &self.hot_bytes)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::limits::{MAX_BYTES_LEAST, MAX_ENTRIES_LIMIT};

    fn refused(change: impl FnOnce(&mut Options)) -> Option<&'static str> {
        let mut options = Options::default();
        change(&mut options);
        let error = options.validate().err()?;
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        error.option()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(refused(|_| ()), None);
    }

    #[test]
    fn an_invalid_option_is_named() {
        assert_eq!(refused(|o| o.max_entries = 0), Some("max_entries"));
        assert_eq!(refused(|o| o.max_entries = u64::from(u32::MAX)), Some("max_entries"));
        assert_eq!(refused(|o| o.max_bytes = MAX_BYTES_LEAST - 1), Some("max_bytes"));
        assert_eq!(refused(|o| o.hot_bytes = u64::MAX), Some("hot_bytes"));
        assert_eq!(
            refused(|o| o.durability = Durability::Interval(Duration::ZERO)),
            Some("durability")
        );
    }

    #[test]
    fn values_at_the_limits_are_allowed() {
        assert_eq!(refused(|o| o.max_entries = 1), None);
        assert_eq!(refused(|o| o.max_entries = MAX_ENTRIES_LIMIT), None);
        assert_eq!(refused(|o| o.max_bytes = MAX_BYTES_LEAST), None);
        assert_eq!(refused(|o| o.hot_bytes = 0), None);
        assert_eq!(refused(|o| o.cull_frequency = 0), None);
        assert_eq!(refused(|o| o.durability = Durability::Interval(INTERVAL_LIMIT)), None);
    }
}
