//! The asynchronous facade, for programs on tokio. The blocking facade makes every decision, read
//! and write. This module only decides how a caller waits, and which calls run on a blocking
//! thread.

mod compute;
mod counter;
mod iter;
mod lease;
mod many;
mod store;
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
use super::flight_table::Computation;
use super::io::{Io, now};
use super::{Builder, Cache};
use crate::backend::AsyncBackend;
use crate::error::{Error, ErrorKind, Result};

pub use iter::{AsyncIter, AsyncKeys};
pub use lease::AsyncLease;

/// Calls with a value of at least this many bytes run on a blocking thread. A smaller value takes
/// some tens of microseconds at most, about the cost of a switch to another thread and back.
const LARGE_VALUE: usize = 64 << 10;

/// A [`Cache`] for programs on [tokio](https://docs.rs/tokio): the same methods with the same
/// results. Convert a `Cache` with [`into_async`](Cache::into_async) or `From`, or call
/// [`open`](AsyncCache::open).
///
/// Most calls take less time than a switch to another thread and back. They run at once, on the
/// thread that polls the future: **a hit costs no task switch**, and neither does a small write.
/// The following run on a blocking thread, by [`spawn_blocking`](tokio::task::spawn_blocking):
///
/// - a read or write of a value of 64 KiB or more. A written value is encoded on the polling
///   thread; a value that is read is decoded on the blocking thread;
/// - a write with [`Durability::Sync`](crate::Durability::Sync), which waits for the disk;
/// - a write to a full cache that evicts within the call: a cache of 1,000 to 10,000 entries, or
///   one with a [`cull_frequency`](Builder::cull_frequency) of 0;
/// - the pauses, of at most 2 ms each, while another process computes a missing value;
/// - `open`, `flush`, `close`, `clear`, `check`, `maintain`, `configure`, iteration, the statistics
///   of other processes, and any call on a directory that was closed.
///
/// A [backend](crate::backend) that is asynchronous itself needs none of this: every call is
/// awaited on the task of the caller, and only the pauses run elsewhere, if other processes can
/// claim a computation there.
///
/// **A cold page blocks the worker thread.** A directory is read through mapped memory. If a page
/// is not in the page cache of the kernel, the thread waits for the disk: about 0.1 ms on a good
/// SSD, up to 10 ms on a rotating disk. keepwarm cannot tell in advance whether a page is cached.
/// If the directory is much larger than the memory of the machine, and such a pause is worse than a
/// thread switch for each call, call the [`Cache`] inside `spawn_blocking`. A thread also waits if
/// it writes faster than the background creates segments, and when the last handle of a directory
/// is dropped, which closes it. Call [`close`](AsyncCache::close) first, and the drop does not
/// wait.
///
/// [`get_or_set`](AsyncCache::get_or_set) takes an async closure, which may borrow from its
/// surroundings. It shares its single flights with the blocking calls of the same cache.
///
/// Any future may be dropped at any time. If the future that computes a value is dropped, one of
/// its waiters computes instead. If the future of a write is dropped before it completes, the write
/// may or may not take effect. If it was already on a blocking thread, it may take effect later.
///
/// A tokio runtime does not survive a `fork`, so an `AsyncCache` does not either. The child must
/// create its own runtime, and an `AsyncCache` from the inherited [`Cache`].
///
/// Works on single-threaded and multi-threaded runtimes. Without a tokio runtime every call runs on
/// the thread that polls it. A typed value that is read must be `Send` and `'static`, because it
/// may be decoded on another thread.
///
/// ```
/// use keepwarm::{AsyncCache, Cache, Timeout};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> keepwarm::Result<()> {
/// // or AsyncCache::open("/var/cache/app").await?
/// let cache: AsyncCache = Cache::in_memory().into_async();
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
    /// Whether the backend has an asynchronous side.
    is_awaited: bool,
}

impl From<Cache> for AsyncCache {
    fn from(cache: Cache) -> Self {
        let is_awaited = cache.shared.backend.as_async().is_some();
        Self { cache, is_awaited }
    }
}

impl Cache {
    /// This cache for async code; see [`AsyncCache`]. Free.
    ///
    /// ```
    /// # use keepwarm::{AsyncCache, Cache};
    /// let cache: AsyncCache = Cache::in_memory().into_async();
    /// ```
    pub fn into_async(self) -> AsyncCache {
        self.into()
    }
}

impl Builder {
    /// As [`open`](Builder::open), on a blocking thread.
    ///
    /// ```
    /// # use keepwarm::{Builder, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// let cache = Builder::in_memory().max_entries(10_000).open_async().await?;
    /// cache.set("a", &1, Timeout::Default).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`open`](Builder::open).
    pub async fn open_async(self) -> Result<AsyncCache> {
        Ok(run_blocking("open", move || self.open()).await?.into_async())
    }
}

/// Calls `f` on a blocking thread of the current runtime, or on this thread if there is no runtime.
/// `f` runs inside the computation of the caller, so that recursion through it is detected.
async fn run_blocking<R: Send + 'static>(
    name: &'static str,
    f: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let Ok(runtime) = Handle::try_current() else { return f() };
    let computation = Computation::current();
    let called = runtime.spawn_blocking(move || {
        let _entered = computation.enter();
        f()
    });
    task_result(called.await, name)?
}

/// Sleeps for `duration` on a blocking thread. Not with the timer of tokio, which panics on a
/// runtime that was built without one.
async fn pause(duration: Duration) -> Result<()> {
    run_blocking("wait", move || {
        thread::sleep(duration);
        Ok(())
    })
    .await
}

/// The result of a blocking task. A panic of the task resumes here.
fn task_result<R>(joined: Result<R, JoinError>, name: &'static str) -> Result<R> {
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => Error::new(ErrorKind::Interrupted, name)
            .with_source(format!("the async runtime is shutting down: {error}")),
    })
}

impl AsyncCache {
    /// As [`Cache::open`], on a blocking thread.
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

    /// The same cache for blocking code. On a thread of the runtime, use it for reads and small
    /// writes only: its calls may wait with the thread.
    ///
    /// A blocking `get_or_set` waits if an async one already computes its key. On a thread of a
    /// runtime that wait might never end, because the computation may need that thread. There it
    /// computes the value itself instead.
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

    /// As [`Cache::with_version`]: a view of the same cache, whose keys have version `version`.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.with_version(2).set("a", &1, Timeout::Default).await?;
    /// assert_eq!(cache.get::<u8>("a").await?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_version(&self, version: i64) -> Self {
        self.cache.with_version(version).into()
    }

    /// As [`Cache::with_prefix`]: a view of the same cache, whose keys have the prefix `prefix`.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// cache.with_prefix("users").set("7", "Ada", Timeout::Default).await?;
    /// assert_eq!(cache.get::<String>("7").await?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_prefix(&self, prefix: impl Into<Arc<str>>) -> Self {
        self.cache.with_prefix(prefix).into()
    }

    /// The prefix of this view. Free.
    pub fn prefix(&self) -> &str {
        self.cache.prefix()
    }

    /// The version of this view. Free.
    pub fn version(&self) -> i64 {
        self.cache.version()
    }

    /// The asynchronous side of the backend, if it has one.
    fn awaited(&self) -> Option<&dyn AsyncBackend> {
        // Only a backend that has one pays for the question.
        if self.is_awaited { self.cache.shared.backend.as_async() } else { None }
    }

    /// Runs an operation: on this task over the asynchronous side of the backend, if it has one;
    /// else on this thread if `inline`, else on a blocking thread.
    async fn run<R: Send + 'static>(
        &self,
        call: &Call<'_>,
        inline: bool,
        operation: impl AsyncFnOnce(&Call<'_>, Io<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if let Some(backend) = self.awaited() {
            return operation(call, Io::Awaited(backend)).await;
        }
        if inline {
            return now(operation(call, call.blocking()));
        }
        let detached = call.detach();
        let run = move |call: &Call<'_>| now(operation(call, call.blocking()));
        let ran = run_blocking(call.name, move || detached.make(run)).await;
        ran.map_err(|error| call.about(error))
    }

    /// Runs an operation that reads the value of `key`: on this thread if the value is small.
    async fn read<R: Send + 'static>(
        &self,
        name: &'static str,
        key: &str,
        operation: impl AsyncFnOnce(&Call<'_>, Io<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let call = self.cache.call(name, key)?;
        self.run(&call, self.reads_inline(&call), operation).await
    }

    fn reads_inline(&self, call: &Call<'_>) -> bool {
        let backend = &self.cache.shared.backend;
        !backend.reads_take_long() && backend.weight(&call.full) < LARGE_VALUE
    }

    /// Runs an operation that stores a value of `len` bytes: on this thread if it does not take
    /// long.
    async fn write<R: Send + 'static>(
        &self,
        call: &Call<'_>,
        len: usize,
        operation: impl AsyncFnOnce(&Call<'_>, Io<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run(call, self.writes_inline(len), operation).await
    }

    fn writes_inline(&self, len: usize) -> bool {
        len < LARGE_VALUE && !self.cache.shared.backend.commits_take_long()
    }

    /// Runs an operation that changes the entry of `key` and keeps its value, so that the size of
    /// the stored value decides: on this thread if it does not take long.
    async fn change<R: Send + 'static>(
        &self,
        name: &'static str,
        key: &str,
        operation: impl AsyncFnOnce(&Call<'_>, Io<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let call = self.cache.call(name, key)?;
        let weight = self.cache.shared.backend.weight(&call.full);
        self.write(&call, weight, operation).await
    }
}

impl fmt::Debug for AsyncCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncCache").field(&self.cache).finish()
    }
}
