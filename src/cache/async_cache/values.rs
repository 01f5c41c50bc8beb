//! Calls on one key: the asynchronous twins of `values`, `entry`, `expiry`, `counter`, `versions`
//! and `lease`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncCache, AsyncLease};
use crate::backend::Codec;
use crate::cache::call::Call;
use crate::cache::{Entry, Swap, Token};
use crate::error::Result;
use crate::time::Timestamp;
use crate::timeout::{Timeout, Ttl};

impl AsyncCache {
    /// As [`Cache::get`](crate::Cache::get).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("answer", &42, Timeout::Default).await?;
    /// assert_eq!(cache.get::<u8>("answer").await?, Some(42));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get`](crate::Cache::get).
    pub async fn get<T: DeserializeOwned + Send + 'static>(&self, key: &str) -> Result<Option<T>> {
        self.read("get", key, |call| call.decoded()).await
    }

    /// As [`Cache::get_bytes`](crate::Cache::get_bytes).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set_bytes("page", b"<html>", Timeout::Default).await?;
    /// assert_eq!(cache.get_bytes("page").await?.as_deref(), Some(&b"<html>"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_bytes`](crate::Cache::get_bytes).
    pub async fn get_bytes(&self, key: &str) -> Result<Option<Bytes>> {
        self.read("get_bytes", key, |call| call.bytes()).await
    }

    /// As [`Cache::get_shared`](crate::Cache::get_shared). A stored value of 64 KiB or more needs a
    /// blocking thread even if it is already decoded.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::sync::Arc;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("primes", &vec![2u64, 3, 5], Timeout::Default).await?;
    /// let primes: Option<Arc<Vec<u64>>> = cache.get_shared("primes").await?;
    /// assert_eq!(primes.unwrap().len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get`](crate::Cache::get).
    pub async fn get_shared<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        key: &str,
    ) -> Result<Option<Arc<T>>> {
        self.read("get_shared", key, |call| call.shared()).await
    }

    /// As [`Cache::get_entry`](crate::Cache::get_entry).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Never).await?;
    /// let entry = cache.get_entry::<u8>("a").await?.unwrap();
    /// assert_eq!((entry.value, entry.expires_at), (1, None));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_entry`](crate::Cache::get_entry).
    pub async fn get_entry<T: DeserializeOwned + Send + 'static>(
        &self,
        key: &str,
    ) -> Result<Option<Entry<T>>> {
        self.read("get_entry", key, |call| call.entry()).await
    }

    /// As [`Cache::contains_key`](crate::Cache::contains_key).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// assert!(cache.contains_key("a").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::contains_key`](crate::Cache::contains_key).
    #[doc(alias = "has_key")]
    pub async fn contains_key(&self, key: &str) -> Result<bool> {
        self.read("contains_key", key, |call| call.exists()).await
    }

    /// As [`Cache::ttl`](crate::Cache::ttl).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout, Ttl};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Never).await?;
    /// assert_eq!(cache.ttl("a").await?, Some(Ttl::Never));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::ttl`](crate::Cache::ttl).
    pub async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        self.read("ttl", key, |call| call.ttl()).await
    }

    /// As [`Cache::set`](crate::Cache::set). The value is encoded on the polling thread, whatever
    /// its size.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("list", &[1, 2, 3], Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`](crate::Cache::set).
    ///
    /// # Panics
    /// As [`Cache::set`](crate::Cache::set).
    pub async fn set<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<()> {
        let call = self.cache.call("set", key)?;
        let (encoded, expires_at) = (call.encode(value)?, self.cache.expiry(timeout));
        self.write(&call, encoded.len(), move |call| {
            call.set(Codec::MessagePack, &encoded, expires_at)
        })
        .await
    }

    /// As [`Cache::set_bytes`](crate::Cache::set_bytes). If the write runs on a blocking thread,
    /// the value is copied once more.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set_bytes("page", b"<html>", Timeout::Default).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set_bytes`](crate::Cache::set_bytes).
    pub async fn set_bytes(
        &self,
        key: &str,
        value: &[u8],
        timeout: impl Into<Timeout>,
    ) -> Result<()> {
        let call = self.cache.call("set_bytes", key)?;
        let expires_at = self.cache.expiry(timeout);
        if self.writes_inline(value.len()) {
            return call.set(Codec::Raw, value, expires_at);
        }
        let value = value.to_vec();
        self.write(&call, value.len(), move |call| call.set(Codec::Raw, &value, expires_at)).await
    }

    /// As [`Cache::add`](crate::Cache::add).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// assert!(cache.add("first", "me", Timeout::Default).await?);
    /// assert!(!cache.add("first", "you", Timeout::Default).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`](crate::Cache::set).
    ///
    /// # Panics
    /// As [`Cache::set`](crate::Cache::set).
    pub async fn add<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<bool> {
        let call = self.cache.call("add", key)?;
        let (encoded, expires_at) = (call.encode(value)?, self.cache.expiry(timeout));
        self.write(&call, encoded.len(), move |call| call.add(&encoded, expires_at)).await
    }

    /// As [`Cache::compare_and_swap`](crate::Cache::compare_and_swap).
    ///
    /// ```
    /// # use keepwarm::{Cache, Swap, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let swap = cache.compare_and_swap("a", None, &1, Timeout::Default).await?;
    /// assert!(matches!(swap, Swap::Stored(_)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`](crate::Cache::set).
    ///
    /// # Panics
    /// As [`Cache::set`](crate::Cache::set).
    pub async fn compare_and_swap<T: Serialize + ?Sized>(
        &self,
        key: &str,
        expected: Option<Token>,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<Swap> {
        let call = self.cache.call("compare_and_swap", key)?;
        let (encoded, expires_at) = (call.encode(value)?, self.cache.expiry(timeout));
        let len = encoded.len();
        let swap = move |call: &Call<'_>| call.compare_and_swap(expected, &encoded, expires_at);
        self.write(&call, len, swap).await
    }

    /// As [`Cache::delete`](crate::Cache::delete).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// assert!(cache.delete("a").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::delete`](crate::Cache::delete).
    pub async fn delete(&self, key: &str) -> Result<bool> {
        self.write(&self.cache.call("delete", key)?, 0, |call| call.delete()).await
    }

    /// As [`Cache::touch`](crate::Cache::touch).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout, Ttl};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("session", "x", Duration::from_secs(10)).await?;
    /// assert!(cache.touch("session", Timeout::Never).await?);
    /// assert_eq!(cache.ttl("session").await?, Some(Ttl::Never));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::touch`](crate::Cache::touch).
    pub async fn touch(&self, key: &str, timeout: impl Into<Timeout>) -> Result<bool> {
        let expires_at = self.cache.expiry(timeout);
        self.change("touch", key, move |call| call.reschedule(expires_at)).await
    }

    /// As [`Cache::persist`](crate::Cache::persist).
    ///
    /// ```
    /// # use keepwarm::{Cache, Ttl};
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("session", "x", Duration::from_secs(10)).await?;
    /// assert!(cache.persist("session").await?);
    /// assert_eq!(cache.ttl("session").await?, Some(Ttl::Never));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::touch`](crate::Cache::touch).
    pub async fn persist(&self, key: &str) -> Result<bool> {
        self.change("persist", key, |call| call.reschedule(None)).await
    }

    /// As [`Cache::expire_at`](crate::Cache::expire_at).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::time::{Duration, SystemTime};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("report", "x", Timeout::Never).await?;
    /// assert!(cache.expire_at("report", SystemTime::now() + Duration::from_secs(60)).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::touch`](crate::Cache::touch).
    pub async fn expire_at(&self, key: &str, at: impl Into<Timestamp>) -> Result<bool> {
        let at = at.into();
        self.change("expire_at", key, move |call| call.reschedule(Some(at))).await
    }

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
        self.write(&self.cache.call(name, key)?, 0, move |call| call.count(delta, init)).await
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
        self.change("incr_version", key, move |call| call.change_version(version)).await
    }

    /// As [`Cache::decr_version`](crate::Cache::decr_version).
    ///
    /// # Errors
    /// As [`Cache::incr_version`](crate::Cache::incr_version).
    pub async fn decr_version(&self, key: &str, delta: i64) -> Result<i64> {
        let version = self.version().checked_sub(delta);
        self.change("decr_version", key, move |call| call.change_version(version)).await
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
            .write(&self.cache.call("lease", key)?, 0, move |call| call.lease(duration))
            .await?;
        Ok(lease.map(AsyncLease::new))
    }
}
