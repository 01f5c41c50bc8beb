//! How long an entry is to live, and how long it still has.

use std::time::Duration;

/// How long an entry is to live from now on.
///
/// Made from a [`Duration`], so that the unit is always plain; there is no conversion from integers, nor
/// from `Option`, which could mean "never" as well as "the default".
///
/// ```
/// use keepwarm::{Cache, Timeout};
/// use std::time::Duration;
///
/// let cache = Cache::in_memory();
/// cache.set("short", "a", Duration::from_secs(5))?;
/// cache.set("usual", "b", Timeout::Default)?;
/// cache.set("long", "c", Timeout::Never)?;
/// # Ok::<(), keepwarm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Timeout {
    /// As long as the cache was built to keep what has no timeout of its own: 300 seconds, unless
    /// [`Builder::default_timeout`](crate::Builder::default_timeout) says otherwise.
    #[default]
    Default,
    /// Until it is deleted or evicted.
    Never,
    /// This long, rounded up to the next millisecond. Zero means not at all: the entry has expired by the
    /// time it is stored. What would end after [`Timestamp::MAX`](crate::Timestamp::MAX) never ends.
    After(Duration),
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self::After(duration)
    }
}

/// How long an entry still has to live; see [`Cache::ttl`](crate::Cache::ttl).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ttl {
    /// Until it is deleted or evicted.
    Never,
    /// This long, to the millisecond; always more than zero.
    Remaining(Duration),
}

impl Ttl {
    /// The time that remains; `None` if the entry never expires.
    ///
    /// ```
    /// # use keepwarm::Ttl;
    /// # use std::time::Duration;
    /// assert_eq!(Ttl::Never.remaining(), None);
    /// assert_eq!(Ttl::Remaining(Duration::from_secs(3)).remaining(), Some(Duration::from_secs(3)));
    /// ```
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Remaining(duration) => Some(duration),
        }
    }
}
