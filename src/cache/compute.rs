//! `get_or_set` and its relatives: what is missing is computed once, and kept.

use std::convert::Infallible;
use std::fmt;
use std::thread;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::flight_table::Caller;
use super::single_flight::{Lifespans, NextStep};
use crate::error::{Error, Result};
use crate::timeout::Lifespan;

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

pub(super) fn cannot_fail<T>(result: Result<T, ComputeError<Infallible>>) -> Result<T> {
    result.map_err(|error| match error {
        ComputeError::Cache(error) => error,
        ComputeError::Compute(never) => match never {},
    })
}

impl Cache {
    /// The value of `key`; if there is none, what `f` returns, which is stored until `timeout` has passed.
    ///
    /// Of those that miss the same key at the same time, one calls its closure, and the others wait for what it
    /// returns: threads, and processes that share the directory. If it panics, the panic goes on in its thread,
    /// and one of the others calls its own; so it is if its process dies, however it does. Where somebody stores
    /// a value meanwhile, that one is returned.
    ///
    /// A process waits for others for 30 seconds at most and then calls its closure all the same, as whoever
    /// computes may have been stopped. It looks at least every 2 ms or so whether the value is there.
    ///
    /// - A stored value that is not a `T` counts as missing and is replaced.
    /// - With a timeout of zero nothing is stored; threads that wait are still given the value, other processes
    ///   compute their own, one after the other.
    /// - Once `f` has returned, the call succeeds: if its value cannot be stored, that is logged and counted
    ///   in [`Stats::store_failures`](crate::Stats::store_failures).
    /// - Timeouts are shortened by the [jitter](crate::Builder::jitter) of the cache.
    /// - Instead of a timeout, a [`Lifespan`](crate::Lifespan) can say that the value is of use for a while
    ///   after it, while one caller computes it anew (a stale window), or that it may be computed anew before
    ///   its end. Who does so waits for its own `f`; nobody else waits.
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
    /// other keys and threads (a thread that `f` starts and waits for is not seen through; nor are other
    /// processes, for which the 30 seconds end it). `InvalidKey`;
    /// `InvalidOption` for a lifespan that cannot be; `Io` if the disk refuses to be read. In all these cases
    /// `f` was not called.
    ///
    /// # Panics
    /// Only if `f` or the `Serialize` of `T` does; what was there stays then.
    pub fn get_or_set<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> T,
    ) -> Result<T> {
        cannot_fail(self.compute("get_or_set", key, Lifespans::one(timeout), || Ok(f())))
    }

    /// The value of `key`; if there is none, what `f` returns, which is stored until `timeout` has passed if
    /// it is `Ok`. An error is not stored: it goes to this caller, and one of those who wait calls its own
    /// closure. Otherwise as [`get_or_set`](Cache::get_or_set).
    ///
    /// Where a value is there that was to be computed anew ([`Lifespan`](crate::Lifespan)), and has not expired
    /// meanwhile, an error of `f` changes nothing: this caller is given that value, the failure is logged and
    /// counted in [`Stats::refresh_failures`](crate::Stats::refresh_failures), and the next caller tries again.
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
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, ComputeError<E>> {
        self.compute("try_get_or_set", key, Lifespans::one(timeout), f)
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
        timeout: impl Into<Lifespan>,
        absent_timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> Option<T>,
    ) -> Result<Option<T>> {
        let lifespans = Lifespans::two(timeout, absent_timeout);
        cannot_fail(self.compute("get_or_set_option", key, lifespans, || Ok(f())))
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
        let mut step = call.first_step(&lifespans, Caller::Thread)?;
        loop {
            step = match step {
                NextStep::Return(value) => return Ok(value),
                NextStep::Wait(waiter) => match call.flight_result(waiter.wait()) {
                    Some(value) => return Ok(value),
                    None => call.first_step(&lifespans, Caller::Thread)?,
                },
                NextStep::Pause(wait) => {
                    thread::sleep(wait.pause);
                    call.retry_claim(&lifespans, wait)?
                }
                NextStep::Compute(permit) => {
                    let entered = permit.leader.enter();
                    let computed = f();
                    drop(entered);
                    return match computed {
                        Ok(value) => Ok(match call.prepare(&value, &permit, &lifespans) {
                            Some(computed) => {
                                let leader = permit.leader;
                                call.store_computed(&computed, leader, &lifespans).unwrap_or(value)
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
