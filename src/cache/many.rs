//! The same call for many keys. Not atomic: each key is a call of its own.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::context::about;
use crate::error::{Error, Result};
use crate::timeout::Timeout;

impl Cache {
    /// The values of `keys`, in the same order, each as from [`get`](Cache::get). An error for one
    /// key does not affect the others.
    ///
    /// Costs one `get` for each key. Not atomic: other callers may write between two keys.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// let values = cache.get_many::<i32, _>(&["a", "b"]);
    /// assert_eq!(values.into_iter().collect::<Result<Vec<_>, _>>()?, [Some(1), None]);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn get_many<T: DeserializeOwned, K: AsRef<str>>(
        &self,
        keys: &[K],
    ) -> Vec<Result<Option<T>>> {
        keys.iter().map(|key| self.get(key.as_ref())).collect()
    }

    /// Stores each value under its key as [`set`](Cache::set) does. Returns the keys that failed,
    /// each with its error; an empty list if all were stored. Not atomic.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// let failed = cache.set_many([("a", 1), ("b", 2)], Timeout::Default);
    /// assert!(failed.is_empty());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn set_many<K: AsRef<str>, T: Serialize>(
        &self,
        items: impl IntoIterator<Item = (K, T)>,
        timeout: impl Into<Timeout>,
    ) -> Vec<(K, Error)> {
        let timeout = timeout.into();
        items
            .into_iter()
            .filter_map(|(key, value)| {
                self.set(key.as_ref(), &value, timeout).err().map(|error| (key, error))
            })
            .collect()
    }

    /// Removes the entries of `keys`. Returns for each key, in the same order, whether there was an
    /// entry. Not atomic.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// let deleted = cache.delete_many(&["a", "b"]).into_iter().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(deleted, [true, false]);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn delete_many<K: AsRef<str>>(&self, keys: &[K]) -> Vec<Result<bool>> {
        keys.iter().map(|key| self.delete(key.as_ref())).collect()
    }

    /// Fills the cache from an iterator of any length: stores each value under its key, replaces
    /// existing entries, and returns the number of values stored. Unlike
    /// [`set_many`](Cache::set_many) it stops at the first item that fails.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// let squares = (0u64..1000).map(|n| (n.to_string(), n * n));
    /// assert_eq!(cache.warm(squares, Timeout::Never)?, 1000);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Cache::set). The values before the failed one stay stored.
    pub fn warm<K: AsRef<str>, T: Serialize>(
        &self,
        items: impl IntoIterator<Item = (K, T)>,
        timeout: impl Into<Timeout>,
    ) -> Result<u64> {
        let timeout = timeout.into();
        let mut stored = 0;
        for (key, value) in items {
            self.set(key.as_ref(), &value, timeout).map_err(|error| about(error, "warm", None))?;
            stored += 1;
        }
        Ok(stored)
    }
}
