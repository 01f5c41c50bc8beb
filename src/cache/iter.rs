//! Iteration over the entries of a view.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::Cache;
use super::context::about;
use crate::backend::{Backend, Item};
use crate::codec;
use crate::error::Result;

impl Cache {
    /// The keys of this view, in no particular order, without its prefix and version. Expired
    /// entries are left out. An entry that exists during the whole iteration is returned exactly
    /// once. An entry that is added or removed meanwhile is returned at most once.
    ///
    /// A [key function](crate::Builder::key_function) cannot be inverted. With one, this returns
    /// the stored keys of the whole cache, whatever their prefix and version.
    ///
    /// Costs a pass over the whole cache, some hundred entries at a time. It does not count as a
    /// use of the entries.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Default)?;
    /// cache.with_version(2).set("b", &2, Timeout::Default)?;
    /// let keys = cache.keys().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(keys, ["a"]);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// An item is `Io` if the disk fails. It is the last item then.
    pub fn keys(&self) -> Keys {
        Keys(Scan::new(self, "keys"))
    }

    /// The keys and values of this view, in no particular order. Otherwise as
    /// [`keys`](Cache::keys).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::collections::BTreeMap;
    /// let cache = Cache::in_memory();
    /// cache.set_many([("a", 1), ("b", 2)], Timeout::Default);
    /// let all = cache.iter::<i32>().collect::<Result<BTreeMap<_, _>, _>>()?;
    /// assert_eq!(all["b"], 2);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// An item is `Decode`, with the key, if the value is not a `T`; further items follow. It is
    /// `Io` if the disk fails, and the last item then.
    pub fn iter<T: DeserializeOwned>(&self) -> Iter<T> {
        Iter { scan: Scan::new(self, "iter"), values: PhantomData }
    }
}

/// The keys of a view; see [`Cache::keys`].
pub struct Keys(Scan<String>);

/// The entries of a view; see [`Cache::iter`].
pub struct Iter<T> {
    scan: Scan<(String, T)>,
    values: PhantomData<fn() -> T>,
}

/// A scan of the backend, with the batch of items that it has returned.
struct Scan<I> {
    cache: Cache,
    name: &'static str,
    cursor: Option<u64>,
    batch: VecDeque<Result<I>>,
}

/// Receives each key and entry of a scan.
type Visit<'a> = dyn FnMut(&str, Item<'_>) + 'a;

impl<I> Scan<I> {
    fn new(cache: &Cache, name: &'static str) -> Self {
        Self { cache: cache.clone(), name, cursor: Some(0), batch: VecDeque::new() }
    }

    fn next(
        &mut self,
        scan: impl Fn(&dyn Backend, u64, &mut Visit<'_>) -> Result<Option<u64>>,
        make: impl Fn(&str, Item<'_>) -> Result<I>,
    ) -> Option<Result<I>> {
        while self.batch.is_empty() {
            let cursor = self.cursor?;
            let (cache, batch, name) = (&self.cache, &mut self.batch, self.name);
            let scanned =
                scan(&*cache.shared.backend, cursor, &mut |full: &str, item: Item<'_>| {
                    batch.extend(cache.own_item(name, full, item, &make));
                });
            match scanned {
                Ok(next) => self.cursor = next,
                Err(error) => {
                    self.cursor = None;
                    self.batch.push_back(Err(about(error, name, None)));
                }
            }
        }
        self.batch.pop_front()
    }
}

impl Cache {
    /// The name of the stored key `full` in this view; `None` if it belongs to another view.
    fn own_key<'k>(&self, full: &'k str) -> Option<&'k str> {
        match self.shared.keys.function {
            Some(_) => Some(full),
            None => full.strip_prefix(&*self.view.head),
        }
    }

    /// What `make` gives for an entry of a scan; `None` if it belongs to another view.
    pub(super) fn own_item<R>(
        &self,
        name: &'static str,
        full: &str,
        item: Item<'_>,
        make: impl Fn(&str, Item<'_>) -> Result<R>,
    ) -> Option<Result<R>> {
        let key = self.own_key(full)?;
        Some(make(key, item).map_err(|error| about(error, name, Some(key))))
    }
}

impl Iterator for Keys {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(
            |backend, cursor, visit| backend.scan_keys(cursor, visit),
            |key, _| Ok(key.to_owned()),
        )
    }
}

impl<T: DeserializeOwned> Iterator for Iter<T> {
    type Item = Result<(String, T)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.scan.next(
            |backend, cursor, visit| backend.scan(cursor, visit),
            |key, item| Ok((key.to_owned(), codec::decode(item)?)),
        )
    }
}

impl FusedIterator for Keys {}
impl<T: DeserializeOwned> FusedIterator for Iter<T> {}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("cache", &self.0.cache).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Iter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("cache", &self.scan.cache).finish_non_exhaustive()
    }
}
