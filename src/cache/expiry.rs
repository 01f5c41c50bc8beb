//! Reads and changes of an entry's expiry.

use super::Cache;
use super::call::Call;
use super::io::{Io, now};
use crate::backend::{Change, Condition, Expiry};
use crate::error::Result;
use crate::time::Timestamp;
use crate::timeout::{Timeout, Ttl};

impl Cache {
    /// Gives the entry of `key` a new timeout, from now on, and returns whether there is an entry.
    /// A timeout of zero removes it. The value is not read or decoded.
    ///
    /// The entry is fresh for the whole timeout: a stale window that it had from its
    /// [`Lifespan`](crate::Lifespan) is dropped.
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
    /// `InvalidKey`. `NoSpace` or `Io` if the disk is full or fails. Then the expiry stays.
    pub fn touch(&self, key: &str, timeout: impl Into<Timeout>) -> Result<bool> {
        let call = self.call("touch", key)?;
        now(call.reschedule(call.blocking(), self.expiry(timeout)))
    }

    /// Makes the entry of `key` live until it is deleted or evicted, and returns whether there is
    /// an entry. A stale entry becomes fresh, and never becomes stale again.
    ///
    /// ```
    /// # use keepwarm::{Cache, Ttl};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("session", "x", Duration::from_secs(10))?;
    /// assert!(cache.persist("session")?);
    /// assert_eq!(cache.ttl("session")?, Some(Ttl::Never));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`touch`](Cache::touch).
    pub fn persist(&self, key: &str) -> Result<bool> {
        let call = self.call("persist", key)?;
        now(call.reschedule(call.blocking(), None))
    }

    /// Makes the entry of `key` expire at `at`, to the millisecond, and returns whether there is an
    /// entry. If `at` has passed, the entry is removed. Until `at` the entry is fresh, as after
    /// [`touch`](Cache::touch).
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
        let call = self.call("expire_at", key)?;
        now(call.reschedule(call.blocking(), Some(at.into())))
    }

    /// The time until the entry of `key` expires, including its stale window. `None` if there is no
    /// entry.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout, Ttl};
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Duration::from_secs(10))?;
    /// let left = cache.ttl("a")?.and_then(Ttl::remaining).unwrap();
    /// assert!(left <= Duration::from_secs(10));
    /// assert_eq!(cache.ttl("missing")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`. `Io` if the disk fails.
    pub fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        let call = self.call("ttl", key)?;
        now(call.ttl(call.blocking()))
    }
}

impl Call<'_> {
    pub(super) async fn ttl(&self, io: Io<'_>) -> Result<Option<Ttl>> {
        let Some(expires_at) = self.expiry(io).await? else { return Ok(None) };
        let Some(at) = expires_at else { return Ok(Some(Ttl::Never)) };
        // The entry may expire between the read and this reading of the clock.
        let left = at.saturating_since(self.cache.shared.clock.now());
        Ok((!left.is_zero()).then_some(Ttl::Remaining(left)))
    }

    pub(super) async fn reschedule(&self, io: Io<'_>, expires_at: Expiry) -> Result<bool> {
        self.took_effect(io, Condition::Present, Change::Touch { expires_at }).await
    }
}
