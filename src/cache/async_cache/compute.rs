//! `get_or_set` and its variants, for computations that are futures.

use std::future::poll_fn;
use std::pin::pin;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncCache, LARGE_VALUE, pause};
use crate::cache::ComputeError;
use crate::cache::call::Call;
use crate::cache::compute::cannot_fail;
use crate::cache::flight_table::{Caller, Leader};
use crate::cache::io::Io;
use crate::cache::single_flight::{Lifespans, NextStep};
use crate::error::Result;
use crate::timeout::Lifespan;

impl AsyncCache {
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set), with a closure that returns a future.
    /// Neither must be `'static`. If several tasks, threads and processes miss the key at the same
    /// time, one of them computes.
    ///
    /// The computing future may be dropped, for example by a timeout. Then one of the waiters runs
    /// its own computation. If there is no waiter, the computation stops.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let table = String::from("users");
    /// let count = async || table.len(); // a query, say
    /// assert_eq!(cache.get_or_set("count", Timeout::Default, count).await?, 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set). `Recursion` if the computation asks for
    /// the key that it computes, directly or through other keys, tasks and threads. A task that the
    /// computation spawns and awaits is not tracked. One task may run several computations at the
    /// same time.
    ///
    /// # Panics
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set).
    pub async fn get_or_set<T, F>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> F,
    ) -> Result<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = T>,
    {
        let f = async || Ok(f().await);
        cannot_fail(self.compute("get_or_set", key, Lifespans::one(timeout), f).await)
    }

    /// As [`Cache::try_get_or_set`](crate::Cache::try_get_or_set), with a closure that returns a
    /// future.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let port = cache.try_get_or_set("port", Timeout::Default, async || "80".parse::<u16>());
    /// assert_eq!(port.await.unwrap(), 80);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::try_get_or_set`](crate::Cache::try_get_or_set).
    ///
    /// # Panics
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set).
    pub async fn try_get_or_set<T, E, F>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> F,
    ) -> Result<T, ComputeError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Result<T, E>>,
    {
        self.compute("try_get_or_set", key, Lifespans::one(timeout), f).await
    }

    /// As [`Cache::get_or_set_option`](crate::Cache::get_or_set_option), with a closure that
    /// returns a future.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let (found, absent) = (Duration::from_secs(3600), Duration::from_secs(5));
    /// let user = cache.get_or_set_option("user 7", found, absent, async || None::<String>);
    /// assert_eq!(user.await?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set).
    ///
    /// # Panics
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set).
    pub async fn get_or_set_option<T, F>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        absent_timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> F,
    ) -> Result<Option<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Option<T>>,
    {
        let lifespans = Lifespans::two(timeout, absent_timeout);
        let f = async || Ok(f().await);
        cannot_fail(self.compute("get_or_set_option", key, lifespans, f).await)
    }

    /// As [`Cache::try_get_or_set_option`](crate::Cache::try_get_or_set_option), with a closure
    /// that returns a future.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let (found, absent) = (Duration::from_secs(3600), Duration::from_secs(5));
    /// let query = async || Ok::<_, std::io::Error>(Some(7));
    /// let user = cache.try_get_or_set_option("user 7", found, absent, query);
    /// assert_eq!(user.await.unwrap(), Some(7));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::try_get_or_set`](crate::Cache::try_get_or_set).
    ///
    /// # Panics
    /// As [`Cache::get_or_set`](crate::Cache::get_or_set).
    pub async fn try_get_or_set_option<T, E, F>(
        &self,
        key: &str,
        timeout: impl Into<Lifespan>,
        absent_timeout: impl Into<Lifespan>,
        f: impl FnOnce() -> F,
    ) -> Result<Option<T>, ComputeError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Result<Option<T>, E>>,
    {
        let lifespans = Lifespans::two(timeout, absent_timeout);
        self.compute("try_get_or_set_option", key, lifespans, f).await
    }

    async fn compute<T, E, F>(
        &self,
        name: &'static str,
        key: &str,
        lifespans: Lifespans<T>,
        f: impl FnOnce() -> F,
    ) -> Result<T, ComputeError<E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let call = self.cache.call(name, key)?;
        call.validate(&lifespans)?;
        let first_step = async move |call: &Call<'_>, io: Io<'_>| {
            call.first_step(io, &lifespans, Caller::Future).await
        };
        let mut step = self.run(&call, self.reads_inline(&call), first_step).await?;
        loop {
            step = match step {
                NextStep::Return(value) => return Ok(value),
                NextStep::Wait(waiter) => {
                    let result = waiter.await;
                    let is_small = result.as_ref().is_none_or(|value| value.len() < LARGE_VALUE);
                    let decode = async |call: &Call<'_>, _: Io<'_>| Ok(call.flight_result(result));
                    if let Some(value) = self.run(&call, is_small, decode).await? {
                        return Ok(value);
                    }
                    self.run(&call, self.reads_inline(&call), first_step).await?
                }
                NextStep::Pause(wait) => {
                    pause(wait.pause).await.map_err(|error| call.about(error))?;
                    let retry = async move |call: &Call<'_>, io: Io<'_>| {
                        call.retry_claim(io, &lifespans, wait).await
                    };
                    self.run(&call, self.reads_inline(&call), retry).await?
                }
                NextStep::Compute(permit) => {
                    let value = match run_inside(&permit.leader, f).await {
                        Ok(value) => value,
                        Err(error) => {
                            return call.stale_value(permit).ok_or(ComputeError::Compute(error));
                        }
                    };
                    let Some(computed) = call.prepare(&value, &permit, &lifespans) else {
                        return Ok(value);
                    };
                    let len = computed.len();
                    let store = async move |call: &Call<'_>, io: Io<'_>| {
                        Ok(call.store_computed(io, &computed, permit.leader, &lifespans).await)
                    };
                    return Ok(match self.write(&call, len, store).await {
                        Ok(theirs) => theirs.unwrap_or(value),
                        Err(error) => {
                            call.store_failed(&error);
                            value
                        }
                    });
                }
            }
        }
    }
}

/// Runs the computation. Each poll is inside it, on whatever thread polls.
async fn run_inside<F: Future>(leader: &Leader, f: impl FnOnce() -> F) -> F::Output {
    let mut future = pin!(async { f().await });
    poll_fn(|context| {
        let _entered = leader.enter();
        future.as_mut().poll(context)
    })
    .await
}
