//! Leases in async code.

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;

use super::AsyncCache;
use crate::cache::Lease;
use crate::error::Result;

/// A [`Lease`] in async code: held until it is dropped or released, or until its time is over. See
/// [`AsyncCache::lease`].
///
/// Dropping it gives it back at once, on the thread where it is dropped; only where that has to wait for the disk
/// (with [`Durability::Sync`](crate::Durability::Sync)) it is left to another thread of the runtime, and the lease
/// ends a moment later. [`release`](AsyncLease::release) says when it has.
#[must_use = "a lease that is not kept is released at once"]
pub struct AsyncLease {
    /// Until it is dropped.
    lease: Option<Lease>,
    cache: AsyncCache,
    key: String,
    owner: crate::cache::lease::Owner,
}

impl AsyncLease {
    pub(super) fn new(lease: Lease) -> Self {
        let (cache, key, owner) = (lease.cache.clone().into(), lease.key().to_owned(), lease.owner);
        Self { lease: Some(lease), cache, key, owner }
    }

    /// The key that the lease is on.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// As [`Lease::is_held`].
    ///
    /// # Errors
    /// As [`Lease::is_held`].
    pub async fn is_held(&self) -> Result<bool> {
        let owner = self.owner;
        self.cache.read("is_held", &self.key, move |call| call.holds_lease(owner)).await
    }

    /// As [`Lease::renew`].
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub async fn renew(&self, duration: Duration) -> Result<bool> {
        let owner = self.owner;
        self.cache.change("renew", &self.key, move |call| call.renew_lease(owner, duration)).await
    }

    /// As [`Lease::release`]. If the future is dropped before its end, the lease is given back all the same.
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
            && !self.cache.writes_here(0)
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
