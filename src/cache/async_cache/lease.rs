//! Leases for async code.

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;

use super::AsyncCache;
use crate::cache::Lease;
use crate::cache::call::Call;
use crate::cache::io::Io;
use crate::cache::lease::LeaseId;
use crate::error::Result;

/// A [`Lease`] for async code, held until it is released, dropped or expired. See
/// [`AsyncCache::lease`].
///
/// Dropping it releases the lease at once, on the thread that drops it. If the release must wait
/// for the disk (with [`Durability::Sync`](crate::Durability::Sync)), a blocking thread of the
/// runtime does it, a moment later. Call [`release`](AsyncLease::release) to know when it is done.
#[must_use = "a lease that is not kept is released at once"]
pub struct AsyncLease {
    /// `None` once it is released or dropped.
    lease: Option<Lease>,
    cache: AsyncCache,
    key: String,
    id: LeaseId,
}

impl AsyncLease {
    pub(super) fn new(lease: Lease) -> Self {
        let (cache, key, id) = (lease.cache.clone().into(), lease.key().to_owned(), lease.id);
        Self { lease: Some(lease), cache, key, id }
    }

    /// The key of the lease. Free.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// As [`Lease::is_held`].
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> keepwarm::Result<()> {
    /// # let cache = Cache::in_memory().into_async();
    /// let lease = cache.lease("import", Duration::from_secs(5)).await?.expect("it was free");
    /// assert!(lease.is_held().await?);
    /// assert!(lease.renew(Duration::from_secs(5)).await?);
    /// assert!(lease.release().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Lease::is_held`].
    pub async fn is_held(&self) -> Result<bool> {
        let id = self.id;
        let held = async move |call: &Call<'_>, io: Io<'_>| call.holds_lease(io, id).await;
        self.cache.read("is_held", &self.key, held).await
    }

    /// As [`Lease::renew`].
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub async fn renew(&self, duration: Duration) -> Result<bool> {
        let id = self.id;
        let renew =
            async move |call: &Call<'_>, io: Io<'_>| call.renew_lease(io, id, duration).await;
        self.cache.change("renew", &self.key, renew).await
    }

    /// As [`Lease::release`]. If the future is dropped before it completes, the lease is released
    /// all the same.
    ///
    /// # Errors
    /// As [`Lease::release`].
    pub async fn release(mut self) -> Result<bool> {
        let call = self.cache.cache.call("release", &self.key)?;
        let is_inherited = self.lease.as_ref().is_some_and(|lease| lease.claim.is_inherited());
        if let Some(backend) = self.cache.awaited().filter(|_| !is_inherited) {
            // If this future is dropped here, dropping the lease releases it.
            let released = call.release_lease(Io::Awaited(backend), self.id).await;
            if let Some(mut lease) = self.lease.take() {
                lease.released = true;
            }
            return released;
        }
        let Some(lease) = self.lease.take() else { return Ok(false) };
        let release = async move |_: &Call<'_>, _: Io<'_>| lease.release();
        self.cache.write(&call, 0, release).await
    }
}

impl Drop for AsyncLease {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        if self.cache.is_awaited {
            let (cache, key) = (self.cache.clone(), std::mem::take(&mut self.key));
            drop(runtime.spawn(release_in_background(cache, key, lease)));
        } else if !self.cache.writes_inline(0) {
            drop(runtime.spawn_blocking(move || drop(lease)));
        }
    }
}

/// Releases a dropped lease over the asynchronous side of the backend.
async fn release_in_background(cache: AsyncCache, key: String, mut lease: Lease) {
    // A task that the runtime drops before it polls it releases the lease by blocking.
    let Some(backend) = cache.awaited() else { return };
    lease.released = true;
    if lease.claim.is_inherited() {
        return;
    }
    let released = match cache.cache.call("release", &key) {
        Ok(call) => call.release_lease(Io::Awaited(backend), lease.id).await,
        Err(error) => Err(error),
    };
    if let Err(error) = released {
        tracing::warn!(%error, "a lease could not be released; it ends when it expires");
    }
}

impl fmt::Debug for AsyncLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLease").field("key", &self.key).finish_non_exhaustive()
    }
}
