//! Calls on the whole store.

use super::{AsyncCache, run_blocking};
use crate::backend::{CheckReport, Limits, NewLimits, ProcessStats, Stats};
use crate::cache::Cache;
use crate::cache::context::about;
use crate::error::Result;

impl AsyncCache {
    /// As [`Cache::clear`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// cache.clear().await?;
    /// assert!(cache.is_empty().await && cache.len().await == 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::clear`].
    pub async fn clear(&self) -> Result<()> {
        match self.awaited() {
            Some(backend) => backend.clear().await.map_err(|error| about(error, "clear", None)),
            None => self.call_blocking("clear", Cache::clear).await,
        }
    }

    /// As [`Cache::len`]. Runs on a blocking thread only if the directory was closed.
    pub async fn len(&self) -> u64 {
        match self.awaited() {
            Some(backend) => backend.len().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the number of entries is not known");
                0
            }),
            None => self.read_gauge(Cache::len).await,
        }
    }

    /// As [`Cache::is_empty`]. Runs on a blocking thread only if the directory was closed.
    pub async fn is_empty(&self) -> bool {
        self.len().await == 0
    }

    /// As [`Cache::stats`]. Runs on a blocking thread only if the directory was closed.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.get::<u8>("missing").await?;
    /// assert_eq!(cache.stats().await.misses, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn stats(&self) -> Stats {
        self.read_gauge(Cache::stats).await
    }

    /// As [`Cache::total_stats`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.get::<u8>("missing").await?;
    /// assert_eq!(cache.total_stats().await?.misses, 1);
    /// assert_eq!(cache.process_stats().await?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::total_stats`].
    pub async fn total_stats(&self) -> Result<Stats> {
        let Some(backend) = self.awaited() else {
            return self.call_blocking("stats", Cache::total_stats).await;
        };
        match backend.total_stats().await {
            Ok(Some(stats)) => Ok(self.cache.with_failures(stats)),
            Ok(None) => Ok(self.cache.stats()),
            Err(error) => Err(about(error, "stats", None)),
        }
    }

    /// As [`Cache::process_stats`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// # Errors
    /// As [`Cache::total_stats`].
    pub async fn process_stats(&self) -> Result<Vec<ProcessStats>> {
        let Some(backend) = self.awaited() else {
            return self.call_blocking("stats", Cache::process_stats).await;
        };
        let found = backend.process_stats().await;
        Ok(self.cache.processes(found.map_err(|error| about(error, "stats", None))?))
    }

    /// As [`Cache::limits`]. If the directory was closed, this opens it, and the thread waits for
    /// that.
    pub fn limits(&self) -> Limits {
        self.cache.limits()
    }

    /// As [`Cache::configure`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// ```
    /// # use keepwarm::{Cache, NewLimits};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let limits = cache.configure(&NewLimits::new().max_entries(10_000)).await?;
    /// assert_eq!(limits.max_entries, 10_000);
    /// assert_eq!(cache.limits(), limits);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::configure`].
    pub async fn configure(&self, new: &NewLimits) -> Result<Limits> {
        if let Some(backend) = self.awaited() {
            let configured = match new.validate() {
                Ok(()) => backend.configure(new).await,
                Err(error) => Err(error),
            };
            return configured.map_err(|error| about(error, "configure", None));
        }
        let (cache, new) = (self.cache.clone(), *new);
        run_blocking("configure", move || cache.configure(&new)).await
    }

    /// As [`Cache::maintain`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// # Errors
    /// As [`Cache::maintain`].
    pub async fn maintain(&self) -> Result<()> {
        match self.awaited() {
            Some(backend) => {
                backend.maintain().await.map_err(|error| about(error, "maintain", None))
            }
            None => self.call_blocking("maintain", Cache::maintain).await,
        }
    }

    /// As [`Cache::flush`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// cache.flush().await?; // a power cut cannot undo it from here on
    /// cache.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub async fn flush(&self) -> Result<()> {
        match self.awaited() {
            Some(backend) => backend.flush().await.map_err(|error| about(error, "flush", None)),
            None => self.call_blocking("flush", Cache::flush).await,
        }
    }

    /// As [`Cache::close`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub async fn close(&self) -> Result<()> {
        match self.awaited() {
            Some(backend) => backend.close().await.map_err(|error| about(error, "close", None)),
            None => self.call_blocking("close", Cache::close).await,
        }
    }

    /// As [`Cache::check`]. Runs on a blocking thread, unless the backend is
    /// asynchronous itself.
    ///
    /// # Errors
    /// As [`Cache::check`].
    pub async fn check(&self) -> Result<CheckReport> {
        match self.awaited() {
            Some(backend) => backend.check().await.map_err(|error| about(error, "check", None)),
            None => self.call_blocking("check", Cache::check).await,
        }
    }

    /// Calls `f` on a blocking thread.
    async fn call_blocking<R: Send + 'static>(
        &self,
        name: &'static str,
        f: fn(&Cache) -> Result<R>,
    ) -> Result<R> {
        let cache = self.cache.clone();
        run_blocking(name, move || f(&cache)).await
    }

    /// The result of `f`. Only a closed directory needs a blocking thread, to open it first; if the
    /// runtime shuts down during that, the default value.
    async fn read_gauge<R: Default + Send + 'static>(&self, f: fn(&Cache) -> R) -> R {
        if !self.cache.shared.backend.reads_take_long() {
            return f(&self.cache);
        }
        let cache = self.cache.clone();
        run_blocking("open", move || Ok(f(&cache))).await.unwrap_or_default()
    }
}
