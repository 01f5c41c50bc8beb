//! Leases: locks on keys that expire by themselves, shared by all users of a cache.
//!
//! A lease is an entry whose value is the id of the lease, and whose expiry ends it. If processes
//! share the store, the holder also has a *claim*: a lock of the operating system under a random
//! number, which is part of the id. The system releases the claim when the holder dies. So any
//! process that finds the entry can ask for the same claim, and gets it only if the holder is dead.
//! It then has the sole right to replace the entry by its own, on the condition that the entry is
//! unchanged: a lease that was renewed, released or expired meanwhile is not taken over. Each lease
//! has its own claim, so the claim of a lost lease blocks no later lease.
//!
//! ```text
//! look the key up
//!   missing:               claim a new number; add the entry, or start over
//!   a lease with a claim:  ask for that claim
//!     refused:             the lease is held
//!     granted:             claim a new number; swap the entry just seen, or start over
//!   any other entry:       the key is held
//! release: remove the entry if it is ours; then release the claim
//! ```

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Cache;
use super::call::Call;
use super::io::{Io, now};
use crate::backend::{Change, Claim, ClaimKey, Claimed, Codec, Condition, Expiry, Item, Soft};
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

/// A lock on a key, held until it is released, dropped or expired. See [`Cache::lease`].
///
/// If the holder is stalled for longer than the duration (suspended, swapped out), it loses the
/// lease without notice; only [`is_held`](Lease::is_held) tells. So a lease avoids most duplicate
/// work, and does not guarantee mutual exclusion.
///
/// A lease belongs to the process that took it. In a child forked from that process, releasing or
/// dropping it does nothing, and it ends when the process that took it dies.
#[must_use = "a lease that is not kept is released at once"]
pub struct Lease {
    pub(super) cache: Cache,
    key: String,
    pub(super) id: LeaseId,
    pub(super) claim: Claim,
    pub(super) released: bool,
}

/// Identifies one lease among those of all processes: the number of its claim, 8 random bytes, and
/// [`CLAIMED`], or zeros if it has no claim.
pub(super) type LeaseId = [u8; 24];

/// The last 8 bytes of the id of a lease that has a claim.
const CLAIMED: [u8; 8] = *b"claimed\n";

impl Cache {
    /// Takes the lease on `key` for `duration`. Returns `None` if it is held. Of any number of
    /// concurrent callers, in any processes, one gets it.
    ///
    /// The lease is an entry of this view like any other: `clear` ends it, and so does eviction. If
    /// `duration` is too long for the clock, the lease lasts until it is released.
    ///
    /// In a directory, a lease also ends when its process dies, in whatever way. The next caller
    /// takes it over at once, with its own duration. (If the system refuses the lock that this
    /// needs, the lease lasts for its duration.)
    ///
    /// Costs a read and a write, and in a directory a lock of the operating system.
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
    /// `InvalidOption` if `duration` is zero, which would protect nothing. Otherwise as
    /// [`set`](Cache::set).
    pub fn lease(&self, key: &str, duration: Duration) -> Result<Option<Lease>> {
        let call = self.call("lease", key)?;
        now(call.lease(call.blocking(), duration))
    }
}

impl Call<'_> {
    pub(super) async fn lease(&self, io: Io<'_>, duration: Duration) -> Result<Option<Lease>> {
        let expires_at = self.lease_expiry(duration)?;
        let mut ours = None;
        loop {
            // Keep the claim of the dead holder until the entry is ours.
            let (condition, _dead_holders) = match self.holder(io).await? {
                None => (Condition::Absent, Claim::default()),
                Some((id, token)) => match self.claim_of_dead_holder(io, id).await {
                    Some(claim) => (Condition::Token(token), claim),
                    None => return Ok(None),
                },
            };
            let (id, _) = match &mut ours {
                Some(ours) => ours,
                none => none.insert(self.new_id(io).await),
            };
            let change =
                Change::Store { value: &*id, codec: Codec::Raw, expires_at, soft: Soft::default() };
            if self.took_effect(io, condition, change).await? {
                break;
            }
        }
        let lease = |(id, claim)| {
            let (cache, key) = (self.cache.clone(), self.key.to_owned());
            Lease { cache, key, id, claim, released: false }
        };
        Ok(ours.map(lease))
    }

    /// The id of the held lease and the token of its entry. An id of zeros if the entry is no
    /// lease.
    async fn holder(&self, io: Io<'_>) -> Result<Option<(LeaseId, u64)>> {
        let holder = self.read(io, |Item { value, codec, token, .. }| {
            let id = if codec == Codec::Raw { LeaseId::try_from(value).ok() } else { None };
            (id.unwrap_or_default(), token)
        });
        holder.await
    }

    /// Takes the claim of the holder, which succeeds only if the holder is dead.
    async fn claim_of_dead_holder(&self, io: Io<'_>, id: LeaseId) -> Option<Claim> {
        let number = claim_number(&id)?;
        match io.claim(ClaimKey::Lease(number)).await {
            // A claim that no process can see says nothing about the holder.
            Claimed::Mine(claim) => claim.is_seen().then_some(claim),
            Claimed::Here | Claimed::Elsewhere => None,
        }
    }

    async fn new_id(&self, io: Io<'_>) -> (LeaseId, Claim) {
        static LEASES: AtomicU64 = AtomicU64::new(0);
        // Includes the process id, because a forked child inherits the hash keys and the counter.
        let unique = (std::process::id(), LEASES.fetch_add(1, Relaxed));
        let [number, other] = [(); 2].map(|()| RandomState::new().hash_one(unique));
        let claim = match io.claim(ClaimKey::Lease(number)).await {
            Claimed::Mine(claim) => claim,
            Claimed::Here | Claimed::Elsewhere => Claim::default(),
        };
        let mark = if claim.is_seen() { CLAIMED } else { [0; 8] };
        let mut id = LeaseId::default();
        for (to, from) in id.chunks_mut(8).zip([number.to_le_bytes(), other.to_le_bytes(), mark]) {
            to.copy_from_slice(&from);
        }
        (id, claim)
    }

    pub(super) async fn holds_lease(&self, io: Io<'_>, id: LeaseId) -> Result<bool> {
        Ok(self.token_of(io, id).await?.is_some())
    }

    pub(super) async fn renew_lease(
        &self,
        io: Io<'_>,
        id: LeaseId,
        duration: Duration,
    ) -> Result<bool> {
        let expires_at = self.lease_expiry(duration)?;
        self.change_lease(io, id, Change::Touch { expires_at }).await
    }

    pub(super) async fn release_lease(&self, io: Io<'_>, id: LeaseId) -> Result<bool> {
        self.change_lease(io, id, Change::Delete).await
    }

    /// Applies `change` if the entry is this lease, also if a renewal has changed its token.
    async fn change_lease(&self, io: Io<'_>, id: LeaseId, change: Change<'_>) -> Result<bool> {
        while let Some(token) = self.token_of(io, id).await? {
            if self.took_effect(io, Condition::Token(token), change).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The token of the entry, if the entry is this lease.
    async fn token_of(&self, io: Io<'_>, id: LeaseId) -> Result<Option<u64>> {
        let ours = |value: &[u8], codec| codec == Codec::Raw && value == id;
        let token = self.read(io, |item| ours(item.value, item.codec).then_some(item.token));
        Ok(token.await?.flatten())
    }

    fn lease_expiry(&self, duration: Duration) -> Result<Expiry> {
        if duration.is_zero() {
            let error = Error::new(ErrorKind::InvalidOption, self.name).with_option("duration");
            return Err(error.with_source("a lease with a duration of zero protects nothing"));
        }
        Ok(self.cache.expiry(Timeout::After(duration)))
    }
}

impl Lease {
    /// The key of the lease. Free.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether the lease is still held at this moment. Costs a read.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let lease = cache.lease("import", Duration::from_secs(5))?.expect("it is free");
    /// assert!(lease.is_held()?);
    /// cache.clear()?;
    /// assert!(!lease.is_held()?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Io` if the disk fails.
    pub fn is_held(&self) -> Result<bool> {
        let call = self.cache.call("is_held", &self.key)?;
        now(call.holds_lease(call.blocking(), self.id))
    }

    /// Extends the lease to `duration` from now, and returns whether it was still held. A lost
    /// lease is not taken again. Costs a read and a write.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let lease = cache.lease("import", Duration::from_secs(5))?.expect("it is free");
    /// assert!(lease.renew(Duration::from_secs(5))?);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cache::lease`].
    pub fn renew(&self, duration: Duration) -> Result<bool> {
        let call = self.cache.call("renew", &self.key)?;
        now(call.renew_lease(call.blocking(), self.id, duration))
    }

    /// Releases the lease, and returns whether it was still held. Dropping it also releases it,
    /// without a result.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// # use std::time::Duration;
    /// # let cache = Cache::in_memory();
    /// let lease = cache.lease("import", Duration::from_secs(5))?.expect("it is free");
    /// assert!(lease.release()?);
    /// assert!(cache.lease("import", Duration::from_secs(5))?.is_some());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `NoSpace` or `Io` if the disk is full or fails. Then the lease ends when it expires; in a
    /// directory, as soon as another caller asks for it.
    pub fn release(mut self) -> Result<bool> {
        self.release_once()
    }

    fn release_once(&mut self) -> Result<bool> {
        self.released = true;
        if self.claim.is_inherited() {
            // It belongs to the parent, which may still need it.
            return Ok(false);
        }
        let call = self.cache.call("release", &self.key)?;
        now(call.release_lease(call.blocking(), self.id))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.released
            && let Err(error) = self.release_once()
        {
            tracing::warn!(%error, "a lease could not be released; it ends when it expires");
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The number of the claim, if the lease has one.
fn claim_number(id: &LeaseId) -> Option<u64> {
    let (number, rest) = id.split_first_chunk()?;
    rest.ends_with(&CLAIMED).then(|| u64::from_le_bytes(*number))
}
