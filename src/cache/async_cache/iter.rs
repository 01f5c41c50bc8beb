//! Iteration over the entries of a view: blocking threads read batches of 256 items.

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{AsyncCache, task_result};
use crate::backend::{Item, ScanBatch};
use crate::cache::context::about;
use crate::cache::{Iter, Keys};
use crate::codec;
use crate::error::Result;

impl AsyncCache {
    /// As [`Cache::keys`](crate::Cache::keys); [`AsyncKeys::next`] returns the items.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// let mut keys = cache.keys();
    /// while let Some(key) = keys.next().await {
    ///     assert_eq!(key?, "a");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self) -> AsyncKeys {
        AsyncKeys(match self.is_awaited {
            true => {
                BatchSource::Awaited(Scan::new(self, "keys", true, |key, _| Ok(key.to_owned())))
            }
            false => BatchSource::Blocking(Batches::new(self.cache.keys())),
        })
    }

    /// As [`Cache::iter`](crate::Cache::iter); [`AsyncIter::next`] returns the items.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.set("a", &1, Timeout::Default).await?;
    /// let mut entries = cache.iter::<i32>();
    /// while let Some(entry) = entries.next().await {
    ///     assert_eq!(entry?, ("a".to_owned(), 1));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter<T: DeserializeOwned + Send + 'static>(&self) -> AsyncIter<T> {
        let make = |key: &str, item: Item<'_>| Ok((key.to_owned(), codec::decode(item)?));
        AsyncIter(match self.is_awaited {
            true => BatchSource::Awaited(Scan::new(self, "iter", false, make)),
            false => BatchSource::Blocking(Batches::new(self.cache.iter())),
        })
    }
}

/// The keys of a view; see [`AsyncCache::keys`].
pub struct AsyncKeys(BatchSource<Keys, String>);

/// The entries of a view; see [`AsyncCache::iter`].
pub struct AsyncIter<T>(BatchSource<Iter<T>, (String, T)>);

impl AsyncKeys {
    /// The next key, or `None` at the end. Dropping the future loses no item.
    ///
    /// # Errors
    /// As [`Cache::keys`](crate::Cache::keys).
    pub async fn next(&mut self) -> Option<Result<String>> {
        self.0.next().await
    }
}

impl<T: DeserializeOwned + Send + 'static> AsyncIter<T> {
    /// The next key and value, or `None` at the end. Dropping the future loses no item.
    ///
    /// # Errors
    /// As [`Cache::iter`](crate::Cache::iter).
    pub async fn next(&mut self) -> Option<Result<(String, T)>> {
        self.0.next().await
    }
}

/// Where the items come from.
enum BatchSource<I, R> {
    Blocking(Batches<I, R>),
    Awaited(Scan<R>),
}

impl<I, R> BatchSource<I, R>
where
    I: Iterator<Item = Result<R>> + Send + 'static,
    R: Send + 'static,
{
    async fn next(&mut self) -> Option<Result<R>> {
        match self {
            Self::Blocking(batches) => batches.next().await,
            Self::Awaited(scan) => scan.next().await,
        }
    }
}

/// A scan over the asynchronous side of the backend, with the batch of items that it has returned.
struct Scan<R> {
    cache: AsyncCache,
    name: &'static str,
    keys_only: bool,
    make: fn(&str, Item<'_>) -> Result<R>,
    cursor: Option<u64>,
    batch: VecDeque<Result<R>>,
}

impl<R> Scan<R> {
    fn new(
        cache: &AsyncCache,
        name: &'static str,
        keys_only: bool,
        make: fn(&str, Item<'_>) -> Result<R>,
    ) -> Self {
        let cache = cache.clone();
        Self { cache, name, keys_only, make, cursor: Some(0), batch: VecDeque::new() }
    }

    async fn next(&mut self) -> Option<Result<R>> {
        while self.batch.is_empty() {
            let (cursor, backend) = (self.cursor?, self.cache.awaited()?);
            // If this future is dropped here, the next one asks for the same batch.
            let scanned = match self.keys_only {
                true => backend.scan_keys(cursor).await,
                false => backend.scan(cursor).await,
            };
            match scanned {
                Ok(ScanBatch { entries, next, .. }) => {
                    let cache = &self.cache.cache;
                    self.batch.extend(entries.iter().filter_map(|(full, stored)| {
                        cache.own_item(self.name, full, stored.item(), self.make)
                    }));
                    self.cursor = next;
                }
                Err(error) => {
                    self.cursor = None;
                    self.batch.push_back(Err(about(error, self.name, None)));
                }
            }
        }
        self.batch.pop_front()
    }
}

/// Items that one run of a blocking thread reads.
const BATCH: usize = 256;

/// An iterator that blocking threads advance, one batch at a time.
struct Batches<I, R> {
    batch: VecDeque<Result<R>>,
    rest: Remainder<I, R>,
}

/// The items after the current batch.
enum Remainder<I, R> {
    /// No thread reads them now.
    Idle(I),
    /// A blocking thread reads the next batch.
    Reading(JoinHandle<Filled<I, R>>),
    /// There are none.
    Exhausted,
}

type Filled<I, R> = (VecDeque<Result<R>>, Remainder<I, R>);

impl<I, R> Batches<I, R>
where
    I: Iterator<Item = Result<R>> + Send + 'static,
    R: Send + 'static,
{
    fn new(items: I) -> Self {
        Self { batch: VecDeque::new(), rest: Remainder::Idle(items) }
    }

    async fn next(&mut self) -> Option<Result<R>> {
        loop {
            if let Some(item) = self.batch.pop_front() {
                return Some(item);
            }
            // The awaited handle stays in `self`: if this future is dropped, the next call awaits
            // it.
            (self.batch, self.rest) = match &mut self.rest {
                Remainder::Exhausted => return None,
                Remainder::Idle(_) => {
                    match (
                        mem::replace(&mut self.rest, Remainder::Exhausted),
                        Handle::try_current(),
                    ) {
                        (Remainder::Idle(items), Ok(runtime)) => (
                            VecDeque::new(),
                            Remainder::Reading(runtime.spawn_blocking(move || fill(items))),
                        ),
                        (Remainder::Idle(items), Err(_)) => fill(items),
                        (rest, _) => (VecDeque::new(), rest),
                    }
                }
                Remainder::Reading(filling) => task_result(filling.await, "iter")
                    .unwrap_or_else(|error| (VecDeque::from([Err(error)]), Remainder::Exhausted)),
            };
        }
    }
}

fn fill<I: Iterator<Item = Result<R>>, R>(mut items: I) -> Filled<I, R> {
    let batch: VecDeque<_> = items.by_ref().take(BATCH).collect();
    let rest = if batch.is_empty() { Remainder::Exhausted } else { Remainder::Idle(items) };
    (batch, rest)
}

impl fmt::Debug for AsyncKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncKeys").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for AsyncIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncIter").finish_non_exhaustive()
    }
}
