//! Leases for async code.

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;

use super::AsyncCache;
use crate::cache::Lease;
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
        self.cache.read("is_held", &self.key, move |call| call.holds_lease(id)).await
    }

    /// As [`Lease::renew`].
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub async fn renew(&self, duration: Duration) -> Result<bool> {
        let id = self.id;
        self.cache.change("renew", &self.key, move |call| call.renew_lease(id, duration)).await
    }

    /// As [`Lease::release`]. If the future is dropped before it completes, the lease is released
    /// all the same.
    ///
    /// # Errors
    /// As [`Lease::release`].
    pub async fn release(mut self) -> Result<bool> {
        let Some(lease) = self.lease.take() else { return Ok(false) };
        let call = self.cache.cache.call("release", &self.key)?;
        self.cache.write(&call, 0, move |_| lease.release()).await
    }
}

impl Drop for AsyncLease {
    fn drop(&mut self) {
        let lease = self.lease.take();
        if lease.is_some()
            && !self.cache.writes_inline(0)
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(lease)));
        }
    }
}

impl fmt::Debug for AsyncLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLease").field("key", &self.key).finish_non_exhaustive()
    }
}
