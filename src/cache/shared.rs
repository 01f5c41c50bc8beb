//! Values that are decoded once and shared from then on.

use std::any::TypeId;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Cache;
use super::call::Call;
use crate::backend::{Decoded, Item};
use crate::codec;
use crate::error::Result;

impl Cache {
    /// The value of `key`, decoded once and shared by all who read it from then on: a hit costs a look into the
    /// index and a count of references, whatever the size of the value. For values that are read far more often
    /// than they are written.
    ///
    /// It is never stale: as soon as the entry is replaced, touched, removed or has expired, so is what is given
    /// here; an `Arc` that a caller holds stays as it is. Entries are kept decoded from about their second read on,
    /// in one type each, the one that was asked for last.
    ///
    /// Decoded values share [`hot_bytes`](crate::Builder::hot_bytes) with the bytes of other entries, the least
    /// recently used going first. A value counts as the length of its key and of its stored bytes, the size of `T`
    /// and about 200 bytes: an estimate, as what `T` itself allocated is not known. One that takes more than 1/64
    /// of `hot_bytes` is decoded each time, and with `hot_bytes` of 0 all are. A value that nothing names any
    /// more, on disk, stays in memory until others push it out, or the cache is cleared or closed.
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
        self.call("get_shared", key)?.shared()
    }
}

impl Call<'_> {
    pub(super) fn shared<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
    ) -> Result<Option<Arc<T>>> {
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
        let found =
            self.cache.shared.backend.get_decoded(&self.full, TypeId::of::<T>(), &mut decode);
        match (found.map_err(|error| self.about(error))?, failed) {
            // Of another type it cannot be, as that is what was asked for.
            (Some(value), _) => Ok(value.downcast().ok()),
            (None, Some(error)) => Err(self.about(error)),
            (None, None) => Ok(None),
        }
    }
}
