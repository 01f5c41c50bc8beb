//! Lifetimes: how long an entry lives, and how much of that remains.

use std::time::Duration;

/// How long an entry lives, counted from the call.
///
/// A [`Duration`] converts into it, so the unit is always explicit. There is no conversion from
/// integers, nor from `Option`, where `None` could mean "never" as well as "the default".
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
    /// The default timeout of the cache: 300 seconds, unless
    /// [`Builder::default_timeout`](crate::Builder::default_timeout) sets another.
    #[default]
    Default,
    /// Until it is deleted or evicted.
    Never,
    /// This long, rounded up to the next millisecond. With zero the entry has already expired when
    /// it is stored. An expiry after [`Timestamp::MAX`](crate::Timestamp::MAX) becomes
    /// [`Never`](Timeout::Never).
    After(Duration),
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self::After(duration)
    }
}

/// How long a computed value lives, and when it is recomputed before it has expired. For
/// [`get_or_set`](crate::Cache::get_or_set) and related calls. A [`Timeout`] or a [`Duration`]
/// converts into it: then the value is not recomputed before it expires.
///
/// ```
/// use keepwarm::{Cache, Lifespan};
/// use std::time::Duration;
///
/// let cache = Cache::in_memory();
/// // Fresh for a minute, then stale for five more: others get it while one caller recomputes it.
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
    /// The value is fresh until `timeout` has passed, then it expires. A timeout of zero stores
    /// nothing, whatever else is set.
    pub fn new(timeout: impl Into<Timeout>) -> Self {
        Self { fresh: timeout.into(), stale: Duration::ZERO, early: None }
    }

    /// Keeps the value for `window` after its timeout, as a stale value. The first `get_or_set`
    /// that finds it stale recomputes it, in its own call; meanwhile all others get the stale value
    /// at once. No background thread does this, so an entry that is not asked for costs nothing.
    ///
    /// The window is stored with the entry, so it survives restarts, and it applies to every
    /// `get_or_set` of the key, whatever lifespan that call names. `get` returns a stale value like
    /// any other until the window ends. If the computation fails, the stale value stays: the caller
    /// gets it too, and the next caller tries again.
    ///
    /// Rounded up to the next millisecond. Zero, the default, means no window.
    #[must_use]
    pub fn stale_for(mut self, window: Duration) -> Self {
        self.stale = window;
        self
    }

    /// Recomputes the value at random before its fresh time ends. The nearer the end, the higher
    /// the probability, so that of many callers one has most likely done so by then, and no caller
    /// finds a miss. A call recomputes if the fresh time ends within `beta` × the time that the
    /// last computation took × a random number (exponentially distributed, mean 1). The usual
    /// `beta` is 1; a higher one refreshes earlier; 0 never refreshes early.
    ///
    /// This is XFetch, by A. Vattani, F. Chierichetti and K. Lowenstein, "Optimal Probabilistic
    /// Cache Stampede Prevention", Proceedings of the VLDB Endowment 8(8), 2015. The time that the
    /// computation took, by the clock of the cache and in whole milliseconds, is stored with the
    /// value and takes 4 bytes. A value that was stored without it is not refreshed early. The
    /// caller recomputes in its own call, as with [`stale_for`](Lifespan::stale_for).
    ///
    /// `beta` must be finite and not negative; otherwise the call fails with `InvalidOption`, which
    /// names `early_refresh`.
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

/// The remaining lifetime of an entry; see [`Cache::ttl`](crate::Cache::ttl).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ttl {
    /// Until it is deleted or evicted.
    Never,
    /// This much time, in whole milliseconds; always more than zero.
    Remaining(Duration),
}

impl Ttl {
    /// The remaining time; `None` if the entry never expires.
    ///
    /// ```
    /// # use keepwarm::Ttl;
    /// # use std::time::Duration;
    /// assert_eq!(Ttl::Never.remaining(), None);
    /// let second = Duration::from_secs(1);
    /// assert_eq!(Ttl::Remaining(second).remaining(), Some(second));
    /// ```
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Remaining(duration) => Some(duration),
        }
    }
}
