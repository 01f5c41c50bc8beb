//! Points in time, and the clock that gives them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since the Unix epoch, at most [`Timestamp::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest time that can be stored, in the year 10,889: times have 48 bits on disk, and the
    /// pattern of all ones means "never".
    pub const MAX: Self = Self((1 << 48) - 2);

    /// The time `millis` milliseconds after the Unix epoch; a later one becomes [`Timestamp::MAX`].
    pub const fn from_millis(millis: u64) -> Self {
        if millis > Self::MAX.0 { Self::MAX } else { Self(millis) }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This time plus `duration`, which is rounded up to the next millisecond. `None` if the sum is
    /// later than [`Timestamp::MAX`]; callers read that as "never".
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        let sum = u128::from(self.0) + millis;
        (sum <= u128::from(Self::MAX.0)).then_some(Self(sum as u64))
    }

    /// The time from `earlier` to this one; zero if `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Timestamp {
    /// A time before 1970 becomes the epoch.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(time.0)
    }
}

/// The source of the current time.
///
/// This clock alone decides expiry. It may jump: when it steps back, entries live longer; nothing
/// else depends on it.
pub trait Clock: Send + Sync + 'static {
    /// The current time. Called a few times for each operation at most, so it should be cheap.
    fn now(&self) -> Timestamp;
}

/// The system's wall clock, the default. A reading takes about 25 ns.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock for tests, which moves only when told to. Clones share the same time.
///
/// ```
/// use keepwarm::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now().saturating_since(before), Duration::from_secs(5));
/// ```
#[cfg(any(test, feature = "test-util"))]
#[derive(Debug, Clone)]
pub struct ManualClock(std::sync::Arc<std::sync::atomic::AtomicU64>);

#[cfg(any(test, feature = "test-util"))]
impl ManualClock {
    /// A clock that shows 2001-09-09 01:46:40 UTC.
    pub fn new() -> Self {
        Self(std::sync::Arc::new(std::sync::atomic::AtomicU64::new(1_000_000_000_000)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }

    /// Sets the clock to `time`, which may be earlier than now.
    pub fn set(&self, time: Timestamp) {
        self.0.store(time.as_millis(), std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_up_and_overflow_to_none() {
        let epoch = Timestamp::default();
        assert_eq!(epoch.checked_add(Duration::from_nanos(1)), Some(Timestamp::from_millis(1)));
        assert_eq!(epoch.checked_add(Duration::MAX), None);
        assert_eq!(Timestamp::MAX.checked_add(Duration::from_millis(1)), None);
    }
}
