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

/// How long a value that is computed is to live, and when it is computed anew although it is still there. For
/// [`get_or_set`](crate::Cache::get_or_set) and its relatives; made from a [`Timeout`] or a [`Duration`] where
/// nothing more is to be said.
///
/// ```
/// use keepwarm::{Cache, Lifespan};
/// use std::time::Duration;
///
/// let cache = Cache::in_memory();
/// // Fresh for a minute. For five minutes more it is there while somebody computes it anew.
/// let lifespan = Lifespan::new(Duration::from_secs(60)).stale_for(Duration::from_secs(300));
/// assert_eq!(cache.get_or_set("rate", lifespan, || 1.08)?, 1.08);
/// # Ok::<(), keepwarm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lifespan {
    pub(crate) fresh: Timeout,
    pub(crate) stale: Duration,
    pub(crate) early: Option<f64>,
}

impl Lifespan {
    /// Fresh until `timeout` has passed, and gone then. A timeout of zero stores nothing, whatever else is said.
    pub fn new(timeout: impl Into<Timeout>) -> Self {
        Self { fresh: timeout.into(), stale: Duration::ZERO, early: None }
    }

    /// Keeps the value for `window` beyond its timeout, stale: the first `get_or_set` that comes upon it then
    /// computes it anew, in its own call, while all others are given the stale value at once. There is no
    /// thread in the background, so that an entry for which nobody asks costs nothing.
    ///
    /// The window belongs to the entry, across restarts too, and holds for every `get_or_set` of the key,
    /// whatever lifespan it names. `get` gives a stale value as any other, until the window is over. If the
    /// computation fails, the value stays as it is: its caller is given it too, and the next one tries again.
    ///
    /// Rounded up to the next millisecond. Zero is none, the default.
    #[must_use]
    pub fn stale_for(mut self, window: Duration) -> Self {
        self.stale = window;
        self
    }

    /// Computes the value anew before its time, now and then: the nearer the end of its fresh time, the more
    /// probable, so that of many callers one, most likely, has done so by then, and nobody comes upon a miss.
    /// A caller goes ahead by `beta` × the time that the last computation took × a random number with mean 1
    /// (exponentially distributed). `beta` is 1 as a rule; more is earlier; 0 is never early.
    ///
    /// This is XFetch, by A. Vattani, F. Chierichetti and K. Lowenstein, "Optimal Probabilistic Cache Stampede
    /// Prevention", Proceedings of the VLDB Endowment 8(8), 2015. How long the computation took, by the clock
    /// of the cache, in whole milliseconds, is stored with the value, 4 bytes more; what was stored without it
    /// is not refreshed early. Who goes ahead computes in its own call, as with
    /// [`stale_for`](Lifespan::stale_for).
    ///
    /// Must be finite and not below zero; otherwise the call fails with `InvalidOption`, which names
    /// `early_refresh`.
    ///
    /// ```
    /// use keepwarm::{Cache, Lifespan};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::in_memory();
    /// let lifespan = Lifespan::new(Duration::from_secs(60)).early_refresh(1.0);
    /// assert_eq!(cache.get_or_set("rate", lifespan, || 1.08)?, 1.08);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[must_use]
    pub fn early_refresh(mut self, beta: f64) -> Self {
        self.early = Some(beta);
        self
    }
}

impl<T: Into<Timeout>> From<T> for Lifespan {
    fn from(timeout: T) -> Self {
        Self::new(timeout)
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
