//! `get_shared`: values that are decoded once, and shared from then on.

use std::any::TypeId;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Cache;
use super::call::Call;
use super::io::{Io, now};
use crate::backend::{Decoded, Item};
use crate::codec;
use crate::error::Result;

impl Cache {
    /// The value of `key`, decoded once and shared by all callers from then on. A hit costs an
    /// index lookup and a reference count, whatever the size of the value. For values that are read
    /// far more often than they are written.
    ///
    /// The result is never out of date: once the entry is replaced, touched, removed or expired, so
    /// is the shared value. An `Arc` that a caller holds does not change. An entry is kept decoded
    /// from about its second read on, in one type: the type of the last call.
    ///
    /// Decoded values share [`hot_bytes`](crate::Builder::hot_bytes) with the bytes of other
    /// entries; the least recently used is evicted first. A value counts as the length of its key
    /// and of its stored bytes, the size of `T`, and about 200 bytes. This is an estimate: heap
    /// memory that `T` itself owns is not known. A value of more than 1/64 of `hot_bytes` is
    /// decoded on each call, and so is every value if `hot_bytes` is 0. If an entry on disk is
    /// removed or replaced, its decoded value stays in memory until it is evicted, or the cache is
    /// cleared or closed.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::sync::Arc;
    /// # let cache = Cache::in_memory();
    /// cache.set("primes", &vec![2u64, 3, 5, 7], Timeout::Default)?;
    /// let primes: Arc<Vec<u64>> = cache.get_shared("primes")?.expect("it was just stored");
    /// let again: Arc<Vec<u64>> = cache.get_shared("primes")?.expect("it is still there");
    /// assert!(Arc::ptr_eq(&primes, &again));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Cache::get).
    pub fn get_shared<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        key: &str,
    ) -> Result<Option<Arc<T>>> {
        let call = self.call("get_shared", key)?;
        now(call.shared(call.blocking()))
    }
}

impl Call<'_> {
    pub(super) async fn shared<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        io: Io<'_>,
    ) -> Result<Option<Arc<T>>> {
        #[cfg_attr(
            not(feature = "async"),
            expect(clippy::infallible_destructuring_match, reason = "with `async` there are two")
        )]
        let backend = match io {
            Io::Blocking(backend) => backend,
            // It keeps no decoded values.
            #[cfg(feature = "async")]
            Io::Awaited(_) => return Ok(self.decoded(io).await?.map(Arc::new)),
        };
        let mut failed = None;
        let mut decode = |item: Item<'_>| match codec::decode::<T>(item) {
            Ok(value) => {
                failed = None;
                let weight = item.value.len() + size_of::<T>();
                Some(Decoded { value: Arc::new(value), weight })
            }
            Err(error) => {
                failed = Some(error);
                None
            }
        };
        let found = backend.get_decoded(&self.full, TypeId::of::<T>(), &mut decode);
        match (found.map_err(|error| self.about(error))?, failed) {
            // The downcast cannot fail: the backend was asked for this type.
            (Some(value), _) => Ok(value.downcast().ok()),
            (None, Some(error)) => Err(self.about(error)),
            (None, None) => Ok(None),
        }
    }
}
