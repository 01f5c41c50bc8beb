//! `get_or_set` and its variants: compute a missing value once, and store it.

use std::convert::Infallible;
use std::fmt;
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::flight_table::Caller;
use super::io::now;
use super::single_flight::{Lifespans, NextStep};
use crate::error::{Error, Result};
use crate::timeout::Lifespan;

/// Why a computation that may fail returned no value.
#[derive(Debug)]
pub enum ComputeError<E> {
    /// The cache failed, before the closure was called.
    Cache(Error),
    /// The closure failed with this error.
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

pub(super) fn cannot_fail<T>(result: Result<T, ComputeError<Infallible>>) -> Result<T> {
    result.map_err(|error| match error {
        ComputeError::Cache(error) => error,
        ComputeError::Compute(never) => match never {},
    })
}

impl Cache {
    /// The value of `key`. If it is missing, calls `f`, stores the result until `timeout` has
    /// passed, and returns it.
    ///
    /// If several callers miss the same key at the same time, one of them calls its closure and the
    /// others wait for its value: threads, and processes that share the directory. If the closure
    /// panics, the panic continues in its thread, and one of the waiters calls its own closure. The
    /// same happens if the computing process dies. If another call stores a value meanwhile, that
    /// value is returned.
    ///
    /// A process waits at most 30 seconds for another process, which may be stopped, and then calls
    /// its own closure. While it waits, it looks for the value about every 2 ms or more often.
    ///
    /// - A stored value that does not decode as a `T` counts as missing and is replaced.
    /// - With a timeout of zero nothing is stored. Waiting threads still receive the value. Waiting
    ///   processes compute their own, one after the other.
    /// - Once `f` has returned, the call succeeds. If the value cannot be stored, that is logged
    ///   and counted in [`Stats::store_failures`](crate::Stats::store_failures).
    /// - The [jitter](crate::Builder::jitter) of the cache shortens timeouts.
    /// - A [`Lifespan`](crate::Lifespan) in place of the timeout can add a stale window, in which
    ///   one caller recomputes the value and all others get the stale one, or an early refresh
    ///   before the timeout. The caller that recomputes waits for its own `f`; no other caller
    ///   waits.
    ///
    /// A hit costs what [`get`](Cache::get) costs.
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
    /// `Recursion` if the wait would never end: `f` asks for the key that it computes, directly or
    /// through other keys and threads. A thread that `f` starts and joins is not tracked, and
    /// neither are other processes; a wait for those ends after 30 seconds. `InvalidKey`.
    /// `InvalidOption` for an invalid lifespan. `Io` if the disk fails on a read. In all these
    /// cases `f` was not called.
    ///
    /// # Panics
    /// Only if `f` or the `Serialize` of `T` panics. Then the stored value stays.
    pub fn get_or_set<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> T,
    ) -> Result<T> {
        cannot_fail(self.compute("get_or_set", key, Lifespans::one(timeout), || Ok(f())))
    }

    /// As [`get_or_set`](Cache::get_or_set), for a computation that may fail. An `Ok` is stored. An
    /// `Err` is not: this caller gets it, and one of the waiters calls its own closure.
    ///
    /// If the call was a refresh of a value that still exists ([`Lifespan`](crate::Lifespan)), an
    /// `Err` changes nothing. Unless the value has expired meanwhile, this caller gets it instead
    /// of the error. The failure is logged and counted in
    /// [`Stats::refresh_failures`](crate::Stats::refresh_failures), and the next caller tries
    /// again.
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
    /// `Compute` with the error of `f`; `Cache` in the cases of [`get_or_set`](Cache::get_or_set).
    ///
    /// # Panics
    /// As [`get_or_set`](Cache::get_or_set).
    pub fn try_get_or_set<T: Serialize + DeserializeOwned, E>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, ComputeError<E>> {
        self.compute("try_get_or_set", key, Lifespans::one(timeout), f)
    }

    /// As [`get_or_set`](Cache::get_or_set), for a computation that may find nothing. That result
    /// is stored too, as a negative entry, until `absent_timeout` has passed, which is usually
    /// shorter. With an `absent_timeout` of zero it is not stored.
    ///
    /// A negative entry has the value `None`: `get::<Option<T>>` returns `Some(None)`.
    ///
    /// ```
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::in_memory();
    /// let (found, absent) = (Duration::from_secs(3600), Duration::from_secs(5));
    /// let user = cache.get_or_set_option("user 7", found, absent, || None::<String>)?;
    /// assert_eq!(user, None);
    /// // The closure is not called again for five seconds.
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
        timeout: impl Into<Lifespan>,
        absent_timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>> {
        let lifespans = Lifespans::two(timeout, absent_timeout);
        cannot_fail(self.compute("get_or_set_option", key, lifespans, || Ok(f())))
    }

    /// As [`get_or_set_option`](Cache::get_or_set_option), for a computation that may also fail. An
    /// error is not stored.
    ///
    /// ```
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::in_memory();
    /// let (found, absent) = (Duration::from_secs(3600), Duration::from_secs(5));
    /// let query = || Ok::<_, std::io::Error>(Some(7));
    /// let user = cache.try_get_or_set_option("user 7", found, absent, query);
    /// assert_eq!(user.unwrap(), Some(7));
    /// ```
    ///
    /// # Errors
    /// As [`try_get_or_set`](Cache::try_get_or_set).
    ///
    /// # Panics
    /// As [`get_or_set`](Cache::get_or_set).
    pub fn try_get_or_set_option<T: Serialize + DeserializeOwned, E>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        absent_timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, ComputeError<E>> {
        self.compute("try_get_or_set_option", key, Lifespans::two(timeout, absent_timeout), f)
    }

    fn compute<T: Serialize + DeserializeOwned, E>(
        &self,
        name: &'static str,
        key: &str,
        lifespans: Lifespans<T>,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, ComputeError<E>> {
        let call = self.call(name, key)?;
        call.validate(&lifespans)?;
        let io = call.blocking();
        let mut step = now(call.first_step(io, &lifespans, Caller::Thread))?;
        loop {
            step = match step {
                NextStep::Return(value) => return Ok(value),
                NextStep::Wait(waiter) => match call.flight_result(waiter.wait()) {
                    Some(value) => return Ok(value),
                    None => now(call.first_step(io, &lifespans, Caller::Thread))?,
                },
                NextStep::Pause(wait) => {
                    thread::sleep(wait.pause);
                    now(call.retry_claim(io, &lifespans, wait))?
                }
                NextStep::Compute(permit) => {
                    let entered = permit.leader.enter();
                    let computed = f();
                    drop(entered);
                    return match computed {
                        Ok(value) => Ok(match call.prepare(&value, &permit, &lifespans) {
                            Some(computed) => {
                                let leader = permit.leader;
                                now(call.store_computed(io, &computed, leader, &lifespans))
                                    .unwrap_or(value)
                            }
                            None => value,
                        }),
                        Err(error) => call.stale_value(permit).ok_or(ComputeError::Compute(error)),
                    };
                }
            }
        }
    }
}
