//! The same call for many keys. Each loop consumes tokio's [cooperative budget](tokio::task::coop),
//! so that it yields to other tasks of the thread about every hundred keys.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::coop::consume_budget;

use super::AsyncCache;
use crate::cache::context::about;
use crate::error::{Error, Result};
use crate::timeout::Timeout;

impl AsyncCache {
    /// As [`Cache::get_many`](crate::Cache::get_many). Yields to other tasks about every hundred
    /// keys.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// let values = cache.get_many::<i32, _>(&["a", "b"]).await;
    /// assert_eq!(values.into_iter().collect::<Result<Vec<_>, _>>()?, [Some(1), None]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many<T: DeserializeOwned + Send + 'static, K: AsRef<str>>(
        &self,
        keys: &[K],
    ) -> Vec<Result<Option<T>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            consume_budget().await;
            values.push(self.get(key.as_ref()).await);
        }
        values
    }

    /// As [`Cache::set_many`](crate::Cache::set_many). Yields to other tasks about every hundred
    /// keys.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let failed = cache.set_many([("a", 1), ("b", 2)], Timeout::Default).await;
    /// assert!(failed.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_many<K: AsRef<str>, T: Serialize>(
        &self,
        items: impl IntoIterator<Item = (K, T)>,
        timeout: impl Into<Timeout>,
    ) -> Vec<(K, Error)> {
        let timeout = timeout.into();
        let mut failed = Vec::new();
        for (key, value) in items {
            consume_budget().await;
            if let Err(error) = self.set(key.as_ref(), &value, timeout).await {
                failed.push((key, error));
            }
        }
        failed
    }

    /// As [`Cache::delete_many`](crate::Cache::delete_many). Yields to other tasks about every
    /// hundred keys.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// let deleted = cache.delete_many(&["a", "b"]).await;
    /// assert_eq!(deleted.into_iter().collect::<Result<Vec<_>, _>>()?, [true, false]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_many<K: AsRef<str>>(&self, keys: &[K]) -> Vec<Result<bool>> {
        let mut deleted = Vec::with_capacity(keys.len());
        for key in keys {
            consume_budget().await;
            deleted.push(self.delete(key.as_ref()).await);
        }
        deleted
    }

    /// As [`Cache::warm`](crate::Cache::warm). Yields to other tasks about every hundred keys.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let squares = (0u64..1000).map(|n| (n.to_string(), n * n));
    /// assert_eq!(cache.warm(squares, Timeout::Never).await?, 1000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::warm`](crate::Cache::warm).
    pub async fn warm<K: AsRef<str>, T: Serialize>(
        &self,
        items: impl IntoIterator<Item = (K, T)>,
        timeout: impl Into<Timeout>,
    ) -> Result<u64> {
        let timeout = timeout.into();
        let mut stored = 0;
        for (key, value) in items {
            consume_budget().await;
            self.set(key.as_ref(), &value, timeout)
                .await
                .map_err(|error| about(error, "warm", None))?;
            stored += 1;
        }
        Ok(stored)
    }
}
