//! Calls on one key: the asynchronous twins of `values`, `entry` and `expiry`.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::AsyncCache;
use crate::backend::Codec;
use crate::cache::call::Call;
use crate::cache::io::{Io, now};
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
        self.read("get", key, async |call: &Call<'_>, io: Io<'_>| call.decoded(io).await).await
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
        self.read("get_bytes", key, async |call: &Call<'_>, io: Io<'_>| call.bytes(io).await).await
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
        self.read("get_shared", key, async |call: &Call<'_>, io: Io<'_>| call.shared(io).await)
            .await
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
        self.read("get_entry", key, async |call: &Call<'_>, io: Io<'_>| call.entry(io).await).await
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
        self.read("contains_key", key, async |call: &Call<'_>, io: Io<'_>| call.exists(io).await)
            .await
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
        self.read("ttl", key, async |call: &Call<'_>, io: Io<'_>| call.ttl(io).await).await
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
        let len = encoded.len();
        let set = async move |call: &Call<'_>, io: Io<'_>| {
            call.set(io, Codec::MessagePack, &encoded, expires_at).await
        };
        self.write(&call, len, set).await
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
        // What does not go to another thread needs no copy.
        if let Some(backend) = self.awaited() {
            return call.set(Io::Awaited(backend), Codec::Raw, value, expires_at).await;
        }
        if self.writes_inline(value.len()) {
            return now(call.set(call.blocking(), Codec::Raw, value, expires_at));
        }
        let value = value.to_vec();
        let len = value.len();
        let set = async move |call: &Call<'_>, io: Io<'_>| {
            call.set(io, Codec::Raw, &value, expires_at).await
        };
        self.write(&call, len, set).await
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
        let len = encoded.len();
        let add = async move |call: &Call<'_>, io: Io<'_>| call.add(io, &encoded, expires_at).await;
        self.write(&call, len, add).await
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
        let swap = async move |call: &Call<'_>, io: Io<'_>| {
            call.compare_and_swap(io, expected, &encoded, expires_at).await
        };
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
        self.write(&self.cache.call("delete", key)?, 0, async |call: &Call<'_>, io: Io<'_>| {
            call.delete(io).await
        })
        .await
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
        self.change("touch", key, async move |call: &Call<'_>, io: Io<'_>| {
            call.reschedule(io, expires_at).await
        })
        .await
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
        self.change("persist", key, async |call: &Call<'_>, io: Io<'_>| {
            call.reschedule(io, None).await
        })
        .await
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
        self.change("expire_at", key, async move |call: &Call<'_>, io: Io<'_>| {
            call.reschedule(io, Some(at)).await
        })
        .await
    }
}
