//! The cache for programs on tokio. What is decided, and every read and write, is the blocking facade's; what is
//! here is only how callers wait, and what leaves their thread.

mod compute;
mod iter;
mod lease;
mod many;
mod values;

use std::fmt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;

use super::call::Call;
use super::flight::Computation;
use super::{Builder, Cache};
use crate::backend::{CheckReport, Limits, NewLimits, ProcessStats, Stats};
use crate::error::{Error, ErrorKind, Result};

pub use iter::{AsyncIter, AsyncKeys};
pub use lease::AsyncLease;

/// Calls with a value of at least so many bytes leave the thread. Below, they take some tens of microseconds at
/// most, which is about what it costs to leave it and come back.
const LARGE_VALUE: usize = 64 << 10;

/// The same cache as [`Cache`], for programs on [tokio](https://docs.rs/tokio): the same names, and the same
/// answers. Made from a `Cache`, with [`into_async`](Cache::into_async) or `From`, or opened.
///
/// A call is nearly always over faster than it could be handed to another thread and back, so nearly all of them
/// are done where they are awaited, at once: **a hit costs no task switch**, nor does a write. What leaves the
/// thread, by [`spawn_blocking`](tokio::task::spawn_blocking), is:
///
/// - a value of 64 KiB or more, read or written (it is encoded, but not decoded, where it is awaited);
/// - a write with [`Durability::Sync`](crate::Durability::Sync), which waits for the disk;
/// - a write to a full cache that makes room by itself: one of 1,000 to 10,000 entries, or one with a
///   [`cull_frequency`](Builder::cull_frequency) of 0;
/// - the pauses, of 2 ms at most, in which another process computes what is missing;
/// - `open`, `flush`, `close`, `clear`, `check`, `maintain`, iteration, and any call on a directory that was closed.
///
/// **A cold page blocks the worker.** A directory is read by way of mapped memory: what the kernel has not in its
/// page cache is fetched from the disk while the thread stands still, 0.1 ms on a good SSD to 10 ms on a disk
/// that turns. Nobody can tell beforehand whether a page is there. Where the directory is much larger than the
/// memory of the machine, and a pause of the worker is worse than a switch each time, call the `Cache` in
/// `spawn_blocking`. Likewise a thread waits where a write is faster than the background makes new segments, and
/// where the last handle of a directory is dropped, which closes it; [`close`](AsyncCache::close) before that
/// leaves nothing to wait for.
///
/// [`get_or_set`](AsyncCache::get_or_set) takes an async closure, which may borrow what is around it, and shares its
/// single flights with the blocking calls of the same cache. Futures may be dropped at any time. One that was
/// computing makes way for one of those who wait. A write whose future is dropped before its end may or may not
/// take effect, and, where it had left the thread, may do so later.
///
/// A runtime of tokio does not survive a `fork`, so neither does this: a child makes its own, of the inherited [`Cache`].
///
/// Works on runtimes with one and with many threads. Without a runtime of tokio around it everything is done where
/// it is awaited. Typed values that are read must be `Send` and `'static`, as their decoding may leave the thread.
///
/// ```
/// use keepwarm::{AsyncCache, Cache, Timeout};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> keepwarm::Result<()> {
/// let cache: AsyncCache = Cache::in_memory().into_async(); // AsyncCache::open("/var/cache/app").await?
/// cache.set("greeting", "hello", Duration::from_secs(60)).await?;
/// assert_eq!(cache.get::<String>("greeting").await?.as_deref(), Some("hello"));
///
/// let name = String::from("rows");
/// let rows = cache.get_or_set(&name, Timeout::Default, || async {
///     tokio::task::yield_now().await; // a query, say
///     format!("all {name}")
/// });
/// assert_eq!(rows.await?, "all rows");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncCache {
    cache: Cache,
}

impl From<Cache> for AsyncCache {
    fn from(cache: Cache) -> Self {
        Self { cache }
    }
}

impl Cache {
    /// The same cache for async code. See [`AsyncCache`].
    pub fn into_async(self) -> AsyncCache {
        self.into()
    }
}

impl Builder {
    /// As [`open`](Builder::open), on a thread where it may block.
    ///
    /// # Errors
    /// As [`open`](Builder::open).
    pub async fn open_async(self) -> Result<AsyncCache> {
        Ok(elsewhere("open", move || self.open()).await?.into_async())
    }
}

/// Calls `f` on a thread that may block, if there is a runtime that has such threads, else here. What `f` does
/// belongs to the computation that the caller is in.
async fn elsewhere<R: Send + 'static>(
    name: &'static str,
    f: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let Ok(runtime) = Handle::try_current() else { return f() };
    let computation = Computation::here();
    let called = runtime.spawn_blocking(move || {
        let _within = computation.enter();
        f()
    });
    joined(called.await, name)?
}

/// Lets `duration` pass on a thread that may block, and not by tokio's timer: that panics on a runtime that was built
/// without one.
async fn pause(duration: Duration) -> Result<()> {
    elsewhere("wait", move || {
        thread::sleep(duration);
        Ok(())
    })
    .await
}

/// What another thread gave. A panic there goes on here.
fn joined<R>(given: Result<R, JoinError>, name: &'static str) -> Result<R> {
    given.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => Error::new(ErrorKind::Interrupted, name)
            .with_source(format!("the runtime ends: {error}")),
    })
}

/// Makes `call` here, or else on a thread that may block.
async fn make<R: Send + 'static>(
    call: &Call<'_>,
    here: bool,
    f: impl FnOnce(&Call<'_>) -> Result<R> + Send + 'static,
) -> Result<R> {
    if here {
        return f(call);
    }
    let detached = call.detach();
    elsewhere(call.name, move || detached.make(f)).await.map_err(|error| call.about(error))
}

impl AsyncCache {
    /// As [`Cache::open`], on a thread where it may block.
    ///
    /// ```no_run
    /// # async fn f() -> keepwarm::Result<()> {
    /// let cache = keepwarm::AsyncCache::open("/var/cache/app").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Builder::new(dir).open_async().await
    }

    /// The same cache for code that blocks. Its calls must not wait on a thread of the runtime, except for
    /// reads and small writes, for which it is as good.
    ///
    /// A blocking `get_or_set` of a key that an async one computes waits for it; on a thread that belongs to a
    /// runtime, where that might be for ever, it computes for itself instead.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::in_memory().into_async();
    /// cache.blocking().set("a", &1, Timeout::Never)?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn blocking(&self) -> &Cache {
        &self.cache
    }

    /// As [`Cache::with_version`].
    #[must_use]
    pub fn with_version(&self, version: i64) -> Self {
        self.cache.with_version(version).into()
    }

    /// As [`Cache::with_prefix`].
    #[must_use]
    pub fn with_prefix(&self, prefix: impl Into<Arc<str>>) -> Self {
        self.cache.with_prefix(prefix).into()
    }

    /// The prefix of this view.
    pub fn prefix(&self) -> &str {
        self.cache.prefix()
    }

    /// The version of this view.
    pub fn version(&self) -> i64 {
        self.cache.version()
    }

    /// As [`Cache::clear`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::clear`].
    pub async fn clear(&self) -> Result<()> {
        self.chore("clear", Cache::clear).await
    }

    /// As [`Cache::len`].
    pub async fn len(&self) -> u64 {
        self.gauge(Cache::len).await
    }

    /// As [`Cache::is_empty`].
    pub async fn is_empty(&self) -> bool {
        self.len().await == 0
    }

    /// As [`Cache::stats`].
    pub async fn stats(&self) -> Stats {
        self.gauge(Cache::stats).await
    }

    /// As [`Cache::total_stats`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::total_stats`].
    pub async fn total_stats(&self) -> Result<Stats> {
        self.chore("stats", Cache::total_stats).await
    }

    /// As [`Cache::process_stats`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::total_stats`].
    pub async fn process_stats(&self) -> Result<Vec<ProcessStats>> {
        self.chore("stats", Cache::process_stats).await
    }

    /// As [`Cache::limits`]. Of a directory that was closed, the thread waits until it is open again.
    pub fn limits(&self) -> Limits {
        self.cache.limits()
    }

    /// As [`Cache::configure`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::configure`].
    pub async fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let (cache, new) = (self.cache.clone(), *new);
        elsewhere("configure", move || cache.configure(&new)).await
    }

    /// As [`Cache::maintain`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::maintain`].
    pub async fn maintain(&self) -> Result<()> {
        self.chore("maintain", Cache::maintain).await
    }

    /// As [`Cache::flush`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.chore("flush", Cache::flush).await
    }

    /// As [`Cache::close`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub async fn close(&self) -> Result<()> {
        self.chore("close", Cache::close).await
    }

    /// As [`Cache::check`]. Always leaves the thread.
    ///
    /// # Errors
    /// As [`Cache::check`].
    pub async fn check(&self) -> Result<CheckReport> {
        self.chore("check", Cache::check).await
    }

    /// Calls `f` elsewhere.
    async fn chore<R: Send + 'static>(
        &self,
        name: &'static str,
        f: fn(&Cache) -> Result<R>,
    ) -> Result<R> {
        let cache = self.cache.clone();
        elsewhere(name, move || f(&cache)).await
    }

    /// What `f` shows; nothing if the runtime ends while the directory is opened for it.
    async fn gauge<R: Default + Send + 'static>(&self, f: fn(&Cache) -> R) -> R {
        if !self.cache.shared.backend.reads_take_long() {
            return f(&self.cache);
        }
        let cache = self.cache.clone();
        elsewhere("open", move || Ok(f(&cache))).await.unwrap_or_default()
    }

    /// Makes a call that reads the value of `key`: here, if it is small.
    async fn read<R: Send + 'static>(
        &self,
        name: &'static str,
        key: &str,
        f: impl FnOnce(&Call<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let call = self.cache.call(name, key)?;
        make(&call, self.reads_here(&call), f).await
    }

    fn reads_here(&self, call: &Call<'_>) -> bool {
        let backend = &self.cache.shared.backend;
        !backend.reads_take_long() && backend.weight(&call.full) < LARGE_VALUE
    }

    /// Makes a call that stores a value of `len` bytes: here, if that is quick.
    async fn write<R: Send + 'static>(
        &self,
        call: &Call<'_>,
        len: usize,
        f: impl FnOnce(&Call<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        make(call, self.writes_here(len), f).await
    }

    fn writes_here(&self, len: usize) -> bool {
        len < LARGE_VALUE && !self.cache.shared.backend.commits_take_long()
    }

    /// Makes a call that changes the entry of `key`, whatever its value: here, if that is quick.
    async fn change<R: Send + 'static>(
        &self,
        name: &'static str,
        key: &str,
        f: impl FnOnce(&Call<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let call = self.cache.call(name, key)?;
        let weight = self.cache.shared.backend.weight(&call.full);
        self.write(&call, weight, f).await
    }
}

impl fmt::Debug for AsyncCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncCache").field(&self.cache).finish()
    }
}
