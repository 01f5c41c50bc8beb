//! Leases: locks between all who use a cache, which end by themselves.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Cache;
use super::call::Call;
use crate::backend::{Change, Codec, Condition, Expiry, Outcome, Soft};
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

/// A lock on a key, held until it is dropped or released, or until its time is over. See [`Cache::lease`].
///
/// A holder that was stopped for longer than the duration (suspended, swapped out) does not know that it no
/// longer holds the lease, unless it asks; so a lease keeps work from being done twice most of the time,
/// and is no proof that it never is.
#[must_use = "a lease that is not kept is released at once"]
pub struct Lease {
    pub(super) cache: Cache,
    key: String,
    pub(super) owner: Owner,
    pub(super) released: bool,
}

/// Tells the entry of this lease from that of any other, also of other processes.
pub(super) type Owner = [u8; 16];

impl Cache {
    /// Takes the lease on `key` for `duration`, or returns `None` while somebody holds it. Among any number
    /// of callers at the same time, in whatever processes, one gets it.
    ///
    /// The lease is an entry like any other, in this view: `clear` ends it, and so does eviction. A duration
    /// too long for the clock lasts until it is released, even if the process dies.
    ///
    /// ```
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::in_memory();
    /// if let Some(lease) = cache.lease("nightly report", Duration::from_secs(60))? {
    ///     assert!(cache.lease("nightly report", Duration::from_secs(60))?.is_none());
    ///     // … the work …
    ///     lease.release()?;
    /// }
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidOption` if the duration is zero, which would protect nothing; otherwise as
    /// [`set`](Cache::set).
    pub fn lease(&self, key: &str, duration: Duration) -> Result<Option<Lease>> {
        self.call("lease", key)?.lease(duration)
    }
}

impl Call<'_> {
    pub(super) fn lease(&self, duration: Duration) -> Result<Option<Lease>> {
        let expires_at = self.lease_expiry(duration)?;
        let owner = new_owner();
        let claim = Change::Store { value: &owner, codec: Codec::Raw, expires_at, soft: Soft::default() };
        if !self.took_effect(Condition::Absent, claim)? {
            return Ok(None);
        }
        let (cache, key) = (self.cache.clone(), self.key.to_owned());
        Ok(Some(Lease { cache, key, owner, released: false }))
    }

    pub(super) fn holds_lease(&self, owner: Owner) -> Result<bool> {
        Ok(self.token_of(owner)?.is_some())
    }

    pub(super) fn renew_lease(&self, owner: Owner, duration: Duration) -> Result<bool> {
        let expires_at = self.lease_expiry(duration)?;
        self.change_lease(owner, Change::Touch { expires_at })
    }

    pub(super) fn release_lease(&self, owner: Owner) -> Result<bool> {
        self.change_lease(owner, Change::Delete)
    }

    /// Makes `change` if the entry is the owner's, even if its token has changed because it was touched.
    fn change_lease(&self, owner: Owner, change: Change<'_>) -> Result<bool> {
        while let Some(token) = self.token_of(owner)? {
            if let Outcome::Done { .. } = self.commit(Condition::Token(token), change)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The token of the entry, if it is the owner's.
    fn token_of(&self, owner: Owner) -> Result<Option<u64>> {
        let ours = |value: &[u8], codec| codec == Codec::Raw && value == owner;
        Ok(self.read(|item| ours(item.value, item.codec).then_some(item.token))?.flatten())
    }

    fn lease_expiry(&self, duration: Duration) -> Result<Expiry> {
        if duration.is_zero() {
            let error = Error::new(ErrorKind::InvalidOption, self.name).with_option("duration");
            return Err(error.with_source("a lease of no duration protects nothing"));
        }
        Ok(self.cache.expiry(Timeout::After(duration)))
    }
}

impl Lease {
    /// The key that the lease is on.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether the lease still holds at this moment.
    ///
    /// # Errors
    /// `Io` if the disk refuses.
    pub fn is_held(&self) -> Result<bool> {
        self.cache.call("is_held", &self.key)?.holds_lease(self.owner)
    }

    /// Lets the lease last for `duration` from now on, and says whether it still held; if not, it is not
    /// taken again.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let lease = cache.lease("import", Duration::from_secs(5))?.expect("nobody else has it");
    /// assert!(lease.renew(Duration::from_secs(5))?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::lease`].
    pub fn renew(&self, duration: Duration) -> Result<bool> {
        self.cache.call("renew", &self.key)?.renew_lease(self.owner, duration)
    }

    /// Gives the lease back, and says whether it still held. Dropping it does the same, but cannot tell.
    ///
    /// # Errors
    /// `NoSpace` or `Io` if the disk refuses; then the lease ends when its time is over.
    pub fn release(mut self) -> Result<bool> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<bool> {
        self.released = true;
        self.cache.call("release", &self.key)?.release_lease(self.owner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.released
            && let Err(error) = self.give_back()
        {
            tracing::warn!(%error, "a lease could not be released; it ends when its time is over");
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

fn new_owner() -> Owner {
    static LEASES: AtomicU64 = AtomicU64::new(0);
    // The process is a part of it because a forked child has the same keys and counter as its parent.
    let unique = (std::process::id(), LEASES.fetch_add(1, Relaxed));
    let mut owner = Owner::default();
    let (high, low) = owner.split_at_mut(8);
    high.copy_from_slice(&RandomState::new().hash_one(unique).to_le_bytes());
    low.copy_from_slice(&RandomState::new().hash_one(unique).to_le_bytes());
    owner
}
