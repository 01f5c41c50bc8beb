//! Asking for, and changing, when an entry expires.

use super::Cache;
use super::call::Call;
use crate::backend::{Change, Condition, Expiry};
use crate::error::Result;
use crate::time::Timestamp;
use crate::timeout::{Timeout, Ttl};

impl Cache {
    /// Lets the entry of `key` live for `timeout` from now on, and says whether there is one. With a timeout
    /// of zero it is removed. The value is not read nor decoded.
    ///
    /// The whole of the new time is fresh: a stale window that the entry had of its
    /// [`Lifespan`](crate::Lifespan) is gone.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout, Ttl};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("session", "x", Duration::from_secs(10))?;
    /// assert!(cache.touch("session", Timeout::Never)?);
    /// assert_eq!(cache.ttl("session")?, Some(Ttl::Never));
    /// assert!(!cache.touch("missing", Timeout::Never)?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`; `NoSpace` or `Io` if the disk refuses. Then the expiry stays.
    pub fn touch(&self, key: &str, timeout: impl Into<Timeout>) -> Result<bool> {
        self.call("touch", key)?.reschedule(self.expiry(timeout))
    }

    /// Lets the entry of `key` live until it is deleted or evicted, and says whether there is one. It is not
    /// stale any more, and never becomes so.
    ///
    /// # Errors
    /// As [`touch`](Cache::touch).
    pub fn persist(&self, key: &str) -> Result<bool> {
        self.call("persist", key)?.reschedule(None)
    }

    /// Lets the entry of `key` expire at `at`, and says whether there is one. If `at` has passed, the entry
    /// is removed. Until then it is fresh, as after [`touch`](Cache::touch).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::time::{Duration, SystemTime};
    /// # let cache = Cache::in_memory();
    /// cache.set("report", "x", Timeout::Never)?;
    /// assert!(cache.expire_at("report", SystemTime::now() + Duration::from_secs(60))?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`touch`](Cache::touch).
    pub fn expire_at(&self, key: &str, at: impl Into<Timestamp>) -> Result<bool> {
        self.call("expire_at", key)?.reschedule(Some(at.into()))
    }

    /// How long the entry of `key` still has to live, its stale time included; `None` if there is none.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout, Ttl};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Duration::from_secs(10))?;
    /// assert!(matches!(cache.ttl("a")?, Some(Ttl::Remaining(left)) if left <= Duration::from_secs(10)));
    /// assert_eq!(cache.ttl("missing")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`; `Io` if the disk refuses.
    pub fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        self.call("ttl", key)?.ttl()
    }
}

impl Call<'_> {
    pub(super) fn ttl(&self) -> Result<Option<Ttl>> {
        let Some(expires_at) = self.expiry()? else { return Ok(None) };
        let Some(at) = expires_at else { return Ok(Some(Ttl::Never)) };
        // It may expire between the read and this reading of the clock.
        let left = at.saturating_since(self.cache.shared.clock.now());
        Ok((!left.is_zero()).then_some(Ttl::Remaining(left)))
    }

    pub(super) fn reschedule(&self, expires_at: Expiry) -> Result<bool> {
        self.took_effect(Condition::Present, Change::Touch { expires_at })
    }
}
