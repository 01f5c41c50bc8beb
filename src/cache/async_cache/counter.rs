//! Counters, versions and leases: the asynchronous twins of `counter`, `versions` and `lease`.

use std::time::Duration;

use super::{AsyncCache, AsyncLease};
use crate::cache::call::Call;
use crate::cache::io::Io;
use crate::error::Result;
use crate::timeout::Timeout;

impl AsyncCache {
    /// As [`Cache::incr`](crate::Cache::incr).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("visits", &1, Timeout::Never).await?;
    /// assert_eq!(cache.incr("visits", 1000).await?, 1001);
    /// assert_eq!(cache.decr("visits", 1).await?, 1000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::incr`](crate::Cache::incr).
    pub async fn incr(&self, key: &str, delta: i64) -> Result<i64> {
        self.count("incr", key, i128::from(delta), None).await
    }

    /// As [`Cache::decr`](crate::Cache::decr).
    ///
    /// # Errors
    /// As [`Cache::incr`](crate::Cache::incr).
    pub async fn decr(&self, key: &str, delta: i64) -> Result<i64> {
        self.count("decr", key, -i128::from(delta), None).await
    }

    /// As [`Cache::incr_or_init`](crate::Cache::incr_or_init).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// assert_eq!(cache.incr_or_init("visits", 1, 0, Timeout::Never).await?, 1);
    /// assert_eq!(cache.incr_or_init("visits", 1, 0, Timeout::Never).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::incr_or_init`](crate::Cache::incr_or_init).
    pub async fn incr_or_init(
        &self,
        key: &str,
        delta: i64,
        initial: i64,
        timeout: impl Into<Timeout>,
    ) -> Result<i64> {
        self.count("incr_or_init", key, i128::from(delta), Some((initial, timeout.into()))).await
    }

    async fn count(
        &self,
        name: &'static str,
        key: &str,
        delta: i128,
        init: Option<(i64, Timeout)>,
    ) -> Result<i64> {
        self.write(&self.cache.call(name, key)?, 0, async move |call: &Call<'_>, io: Io<'_>| {
            call.count(io, delta, init).await
        })
        .await
    }

    /// As [`Cache::incr_version`](crate::Cache::incr_version).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("layout", "x", Timeout::Default).await?;
    /// assert_eq!(cache.incr_version("layout", 1).await?, 2);
    /// assert!(cache.with_version(2).contains_key("layout").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::incr_version`](crate::Cache::incr_version).
    pub async fn incr_version(&self, key: &str, delta: i64) -> Result<i64> {
        let version = self.version().checked_add(delta);
        self.change("incr_version", key, async move |call: &Call<'_>, io: Io<'_>| {
            call.change_version(io, version).await
        })
        .await
    }

    /// As [`Cache::decr_version`](crate::Cache::decr_version).
    ///
    /// # Errors
    /// As [`Cache::incr_version`](crate::Cache::incr_version).
    pub async fn decr_version(&self, key: &str, delta: i64) -> Result<i64> {
        let version = self.version().checked_sub(delta);
        self.change("decr_version", key, async move |call: &Call<'_>, io: Io<'_>| {
            call.change_version(io, version).await
        })
        .await
    }

    /// As [`Cache::lease`](crate::Cache::lease).
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// if let Some(lease) = cache.lease("nightly report", Duration::from_secs(60)).await? {
    ///     assert!(cache.lease("nightly report", Duration::from_secs(60)).await?.is_none());
    ///     lease.release().await?; // or drop it
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::lease`](crate::Cache::lease).
    pub async fn lease(&self, key: &str, duration: Duration) -> Result<Option<AsyncLease>> {
        let lease = self
            .write(&self.cache.call("lease", key)?, 0, async move |call: &Call<'_>, io: Io<'_>| {
                call.lease(io, duration).await
            })
            .await?;
        Ok(lease.map(AsyncLease::new))
    }
}
