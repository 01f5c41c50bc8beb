//! What a store is told when it is opened, and the one place where that is checked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::limits::{Limits, MAX_BYTES_LIMIT, check_max_bytes, check_max_entries, invalid, within};
use crate::time::{Clock, SystemClock};

/// When a write is on the disk, and so survives a power cut.
///
/// Whatever the choice, an acknowledged write survives the death of the process, `kill -9` included; and
/// after a power cut nothing is torn, and no value older than one that had reached the disk comes back.
/// In memory it means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The kernel writes back when it likes, usually within half a minute. The least work for the disk.
    Buffered,
    /// What was written is synced at this interval, in the background: between 1 ms and one day.
    Interval(Duration),
    /// Each call that writes returns only when the disk has it. Costs a sync of the disk a call, shared
    /// among the threads that wait at the same time.
    Sync,
}

impl Default for Durability {
    /// An interval of one second.
    fn default() -> Self {
        Self::Interval(Duration::from_secs(1))
    }
}

/// Which entries go when there are as many as there may be.
///
/// What has expired goes before all others, whatever the choice. It concerns `max_entries` alone: where
/// `max_bytes` is what is short, the entries written longest ago go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Eviction {
    /// The least recently used ones. Easy to foresee: an entry that was read or written stays until as many
    /// others as there may be were.
    #[default]
    Lru,
    /// The least recently used ones of those that were not used again since they came, as long as there are more
    /// of them than pays; else those that have not been used for longest, the more often used ones after the
    /// others. How many pays is learned from the entries that are asked for again soon after they went.
    ///
    /// Keeps what is popular while much passes by that is asked for once: scans, crawlers, long tails. On
    /// recorded traffic it has up to 26 points more hits than [`Lru`](Eviction::Lru), and nowhere 0.3 fewer (see
    /// `docs/benchmarks.md`). Costs 6 bytes of memory for each of `max_entries`, at most 32 MiB; what was learned is
    /// forgotten when the directory is closed, the counts of uses are not.
    Adaptive,
}

/// The options of every backend. Which of them a backend heeds is its own affair; the limits are the same.
#[derive(Clone)]
pub(crate) struct Options {
    /// Most entries at any time: 1 to [`MAX_ENTRIES_LIMIT`](crate::limits::MAX_ENTRIES_LIMIT).
    pub(crate) max_entries: u64,
    /// An insert at the bound removes this fraction of the entries, 1 / n; 0 removes all.
    pub(crate) cull_frequency: u64,
    /// Which entries go at the bound.
    pub(crate) eviction: Eviction,
    /// Most bytes in the store at any time: [`MAX_BYTES_LEAST`](crate::limits::MAX_BYTES_LEAST) to [`MAX_BYTES_LIMIT`].
    pub(crate) max_bytes: u64,
    /// Most bytes of memory for the hot tier: 0 (none) to [`MAX_BYTES_LIMIT`].
    pub(crate) hot_bytes: u64,
    /// When a write is on the disk.
    pub(crate) durability: Durability,
    /// What decides expiry.
    pub(crate) clock: Arc<dyn Clock>,
    /// Whether the limits that the directory was last opened with go before those here.
    pub(crate) keep_limits: bool,
    /// Whether nothing is to be changed, and no directory made.
    pub(crate) read_only: bool,
    /// Whether the directory may be on a network file system.
    pub(crate) allow_network: bool,
    /// Whether the log is read whole, whatever else says which records count.
    pub(crate) salvage: bool,
}

/// Up to this many entries, an insert at the bound removes the whole fraction at once, as Django does. Above, no
/// call is to pay for so many.
pub(crate) const INLINE_CULL_ENTRIES: u64 = 10_000;
/// An insert at the bound that has to look through fewer entries than this for some to remove is quick all the
/// same: some ten microseconds.
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

/// How many of `entries` one culling removes: `None` is all of them.
pub(crate) fn due(entries: u64, cull_frequency: u64) -> Option<u64> {
    Some(entries.checked_div(cull_frequency)?.max(1))
}

/// How many of `entries`, which are as many as may be, an insert removes that makes room by itself.
pub(crate) fn due_inline(entries: u64, cull_frequency: u64) -> Option<u64> {
    due(entries, cull_frequency).map(|due| if entries <= INLINE_CULL_ENTRIES { due } else { 1 })
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        let &Self { max_entries, cull_frequency, max_bytes, .. } = self;
        Limits { max_entries, cull_frequency, max_bytes }
    }

    /// The options for a directory that was last opened with the limits `found`.
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

    /// Checks every option against its limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption), naming the first that is out of its limits.
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
                    format!("an interval of {interval:?}; from 1 ms to 24 h is possible"),
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
    fn the_defaults_are_within_their_limits() {
        assert_eq!(refused(|_| ()), None);
    }

    #[test]
    fn an_option_out_of_its_limits_is_named() {
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
    fn what_is_at_the_limit_is_allowed() {
        assert_eq!(refused(|o| o.max_entries = 1), None);
        assert_eq!(refused(|o| o.max_entries = MAX_ENTRIES_LIMIT), None);
        assert_eq!(refused(|o| o.max_bytes = MAX_BYTES_LEAST), None);
        assert_eq!(refused(|o| o.hot_bytes = 0), None);
        assert_eq!(refused(|o| o.cull_frequency = 0), None);
        assert_eq!(refused(|o| o.durability = Durability::Interval(INTERVAL_LIMIT)), None);
    }
}
