//! `get_or_set` and its relatives: what is missing is computed once, and kept.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::call::{Call, Found, pack};
use super::flight::{Flights, Joined, Leader};
use super::plan;
use crate::backend::{Codec, Condition, Expiry, Item, Outcome};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

/// Why a computation that may fail gave no value.
#[derive(Debug)]
pub enum ComputeError<E> {
    /// The cache failed before the closure was called.
    Cache(Error),
    /// The closure failed, with this.
    Compute(E),
}

impl<E: fmt::Display> fmt::Display for ComputeError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(error) => error.fmt(f),
            Self::Compute(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ComputeError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Cache(error) => error.source(),
            Self::Compute(error) => error.source(),
        }
    }
}

impl<E> From<Error> for ComputeError<E> {
    fn from(error: Error) -> Self {
        Self::Cache(error)
    }
}

fn cannot_fail<T>(result: Result<T, ComputeError<Infallible>>) -> Result<T> {
    result.map_err(|error| match error {
        ComputeError::Cache(error) => error,
        ComputeError::Compute(never) => match never {},
    })
}

impl Cache {
    /// The value of `key`; if there is none, what `f` returns, which is stored until `timeout` has passed.
    ///
    /// Of the threads of this process that miss the same key at the same time, one calls its closure, and
    /// the others wait for what it returns. If it panics, the panic goes on in its thread, and one of the
    /// others calls its own. Where some other process stores a value meanwhile, that one is returned.
    ///
    /// - A stored value that is not a `T` counts as missing and is replaced.
    /// - With a timeout of zero nothing is stored; threads that wait are still given the value.
    /// - Once `f` has returned, the call succeeds: if its value cannot be stored, that is logged and counted
    ///   in [`Stats::store_failures`](crate::Stats::store_failures).
    /// - Timeouts are shortened by the [jitter](crate::Builder::jitter) of the cache.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let slow = || (1..=1_000_000u64).sum::<u64>();
    /// let sum = cache.get_or_set("sum", Duration::from_secs(60), slow)?;
    /// assert_eq!(sum, 500_000_500_000);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Recursion` if waiting could never end: `f` asks for the key that it computes, itself or by way of
    /// other keys and threads (a thread that `f` starts and waits for is not seen through). `InvalidKey`;
    /// `Io` if the disk refuses to be read. In all these cases `f` was not called.
    ///
    /// # Panics
    /// Only if `f` or the `Serialize` of `T` does; nothing is stored then.
    pub fn get_or_set<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        timeout: impl Into<Timeout>,
        f: impl FnOnce() -> T,
    ) -> Result<T> {
        let timeout = timeout.into();
        cannot_fail(self.compute("get_or_set", key, |_| timeout, || Ok(f())))
    }

    /// The value of `key`; if there is none, what `f` returns, which is stored until `timeout` has passed if
    /// it is `Ok`. An error is not stored: it goes to this caller, and one of those who wait calls its own
    /// closure. Otherwise as [`get_or_set`](Cache::get_or_set).
    ///
    /// ```
    /// use keepwarm::{Cache, ComputeError, Timeout};
    ///
    /// let cache = Cache::in_memory();
    /// let parsed = cache.try_get_or_set("port", Timeout::Default, || "80".parse::<u16>());
    /// assert_eq!(parsed.unwrap(), 80);
    /// let failed = cache.try_get_or_set("other", Timeout::Default, || "x".parse::<u16>());
    /// assert!(matches!(failed, Err(ComputeError::Compute(_))));
    /// ```
    ///
    /// # Errors
    /// `Compute` with the error of `f`, or `Cache` in the cases of [`get_or_set`](Cache::get_or_set).
    ///
    /// # Panics
    /// As [`get_or_set`](Cache::get_or_set).
    pub fn try_get_or_set<T: Serialize + DeserializeOwned, E>(
        &self,
        key: &str,
        timeout: impl Into<Timeout>,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, ComputeError<E>> {
        let timeout = timeout.into();
        self.compute("try_get_or_set", key, |_| timeout, f)
    }

    /// As [`get_or_set`](Cache::get_or_set), for a computation that may find nothing. That it found nothing
    /// is kept too (a negative entry), until `absent_timeout` has passed; commonly a shorter one. With an
    /// `absent_timeout` of zero it is not kept.
    ///
    /// A negative entry is an entry with the value `None`: `get::<Option<T>>` gives `Some(None)`.
    ///
    /// ```
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::in_memory();
    /// let (found, absent) = (Duration::from_secs(3600), Duration::from_secs(5));
    /// let user = cache.get_or_set_option("user 7", found, absent, || None::<String>)?;
    /// assert_eq!(user, None);
    /// // For five seconds nobody looks again.
    /// let again = cache.get_or_set_option("user 7", found, absent, || Some("Ada".to_owned()))?;
    /// assert_eq!(again, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get_or_set`](Cache::get_or_set).
    ///
    /// # Panics
    /// As [`get_or_set`](Cache::get_or_set).
    pub fn get_or_set_option<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        timeout: impl Into<Timeout>,
        absent_timeout: impl Into<Timeout>,
        f: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>> {
        let (timeout, absent) = (timeout.into(), absent_timeout.into());
        let of = |value: &Option<T>| if value.is_some() { timeout } else { absent };
        cannot_fail(self.compute("get_or_set_option", key, of, || Ok(f())))
    }

    /// As [`get_or_set_option`](Cache::get_or_set_option), for a computation that may also fail; an error
    /// is not stored.
    ///
    /// # Errors
    /// As [`try_get_or_set`](Cache::try_get_or_set).
    ///
    /// # Panics
    /// As [`get_or_set`](Cache::get_or_set).
    pub fn try_get_or_set_option<T: Serialize + DeserializeOwned, E>(
        &self,
        key: &str,
        timeout: impl Into<Timeout>,
        absent_timeout: impl Into<Timeout>,
        f: impl FnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, ComputeError<E>> {
        let (timeout, absent) = (timeout.into(), absent_timeout.into());
        let of = |value: &Option<T>| if value.is_some() { timeout } else { absent };
        self.compute("try_get_or_set_option", key, of, f)
    }

    fn compute<T: Serialize + DeserializeOwned, E>(
        &self,
        name: &'static str,
        key: &str,
        timeout: impl FnOnce(&T) -> Timeout,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, ComputeError<E>> {
        let call = self.call(name, key)?;
        loop {
            let before = Flights::moment();
            let mut found = call.look()?;
            if let Found::Value(value) = found {
                return Ok(value);
            }
            match self.shared.flights.join(&call.full, &before) {
                Joined::Lead { leader, stale } => {
                    if stale {
                        found = call.look()?;
                        if let Found::Value(value) = found {
                            return Ok(value);
                        }
                    }
                    let value = f().map_err(ComputeError::Compute)?;
                    let timeout = timeout(&value);
                    return Ok(call.keep(value, timeout, &found, leader));
                }
                Joined::Landed(Some(value)) => {
                    // Of another type, if the other thread asked for one; then look for oneself.
                    let item = Item { value: &value, codec: Codec::MessagePack, expires_at: None, token: 0 };
                    if let Ok(value) = codec::decode(item) {
                        return Ok(value);
                    }
                }
                Joined::Landed(None) => {}
                Joined::Recursion => return Err(call.fail(ErrorKind::Recursion).into()),
            }
        }
    }
}

impl Call<'_> {
    /// Stores what was computed, hands it to those who wait, and returns what the key now holds.
    fn keep<T: Serialize + DeserializeOwned>(
        &self,
        value: T,
        timeout: Timeout,
        found: &Found<T>,
        leader: Leader,
    ) -> T {
        let encoded = match codec::encode(&value) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.store_failed(&self.about(error));
                return value;
            }
        };
        let shared = &self.cache.shared;
        let default = shared.default_timeout;
        let timeout = shared.jitter.shorten(plan::resolve(timeout, default));
        let expires_at: Expiry = plan::expiry(timeout, default, &*shared.clock);
        let condition = match found {
            Found::Other(token) => Condition::Token(*token),
            _ => Condition::Absent,
        };
        match self.commit(condition, pack(&encoded, expires_at)) {
            Ok(Outcome::Done { .. }) => {}
            // Somebody stored a value meanwhile. It is returned, as in Django, if it can be.
            Ok(Outcome::Refused { .. }) => match self.look() {
                Ok(Found::Value(theirs)) => return theirs,
                _ => {
                    if let Err(error) = self.commit(Condition::Always, pack(&encoded, expires_at)) {
                        self.store_failed(&error);
                    }
                }
            },
            Err(error) => self.store_failed(&error),
        }
        if leader.awaited() {
            leader.land(Bytes::copy_from_slice(&encoded));
        }
        value
    }

    fn store_failed(&self, error: &Error) {
        self.cache.shared.store_failures.fetch_add(1, Relaxed);
        tracing::warn!(%error, "a computed value could not be stored and is returned all the same");
    }
}
