//! Leases: locks between all who use a cache, which end by themselves.
//!
//! A lease is an entry that says who holds it, and that ends with its time. Where processes share the store, the holder
//! also has a claim, under a number that it drew and that the entry tells; so whoever finds the entry can ask for the
//! same claim, and is given it only if the holder is dead. It then has the sole right to put itself in its place, for
//! which the entry must still be the same: a lease that was renewed, given back or ended by its time is not taken
//! over. As each lease has a claim of its own, one that was lost unnoticed is in nobody's way.
//!
//! ```text
//! look.  nothing:              claim a new number; add the entry, or begin again
//!        a lease with a claim: ask for that claim; refused: somebody holds it
//!                              claim a new number; swap the entry that was seen, or begin again
//!        anything else:        somebody holds it
//! give back: remove the entry, if it is ours; then let go of the claim
//! ```

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Cache;
use super::call::Call;
use crate::backend::{
    Change, Claim, Claimed, Codec, Condition, Expiry, Item, Matter, Outcome, Soft,
};
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

/// A lock on a key, held until it is dropped or released, or until its time is over. See [`Cache::lease`].
///
/// A holder that was stopped for longer than the duration (suspended, swapped out) does not know that it no
/// longer holds the lease, unless it asks; so a lease keeps work from being done twice most of the time,
/// and is no proof that it never is.
///
/// It belongs to the process that took it. In one that was forked from that, dropping or releasing it does nothing, and
/// it ends when the process that took it does.
#[must_use = "a lease that is not kept is released at once"]
pub struct Lease {
    pub(super) cache: Cache,
    key: String,
    pub(super) owner: Owner,
    claim: Claim,
    pub(super) released: bool,
}

/// Tells the entry of this lease from that of any other, also of other processes: the number of its claim, 8 random
/// bytes, and [`CLAIMED`] or zeros.
pub(super) type Owner = [u8; 24];

/// In the entry of a lease whose holder has a claim.
const CLAIMED: [u8; 8] = *b"claimed\n";

impl Cache {
    /// Takes the lease on `key` for `duration`, or returns `None` while somebody holds it. Among any number
    /// of callers at the same time, in whatever processes, one gets it.
    ///
    /// The lease is an entry like any other, in this view: `clear` ends it, and so does eviction. A duration
    /// too long for the clock lasts until it is released.
    ///
    /// In a directory it also ends when its process dies, however it does: whoever asks next takes it over at once,
    /// with a duration of its own. (Where the system refuses the lock that this takes, it lasts for its duration.)
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
        let mut ours = None;
        loop {
            // The claim of who died is kept until the entry is ours.
            let (condition, _theirs) = match self.holder()? {
                None => (Condition::Absent, Claim::default()),
                Some((owner, token)) => match self.claim_of_the_dead(owner) {
                    Some(claim) => (Condition::Token(token), claim),
                    None => return Ok(None),
                },
            };
            let (owner, _) = ours.get_or_insert_with(|| self.new_owner());
            let change = Change::Store {
                value: &*owner,
                codec: Codec::Raw,
                expires_at,
                soft: Soft::default(),
            };
            if self.took_effect(condition, change)? {
                break;
            }
        }
        let lease = |(owner, claim)| {
            let (cache, key) = (self.cache.clone(), self.key.to_owned());
            Lease { cache, key, owner, claim, released: false }
        };
        Ok(ours.map(lease))
    }

    /// Who holds the lease, and the token of the entry; somebody unknown, if the entry is no lease.
    fn holder(&self) -> Result<Option<(Owner, u64)>> {
        self.read(|Item { value, codec, token, .. }| {
            let owner = if codec == Codec::Raw { Owner::try_from(value).ok() } else { None };
            (owner.unwrap_or_default(), token)
        })
    }

    /// The claim of a holder that has died.
    fn claim_of_the_dead(&self, owner: Owner) -> Option<Claim> {
        let number = claim_number(&owner)?;
        match self.cache.shared.backend.claim(Matter::Lease(number)) {
            // A claim that nobody sees tells nothing of the holder.
            Claimed::Mine(claim) => claim.is_seen().then_some(claim),
            Claimed::Here | Claimed::Elsewhere => None,
        }
    }

    fn new_owner(&self) -> (Owner, Claim) {
        static LEASES: AtomicU64 = AtomicU64::new(0);
        // The process is a part of it because a forked child has the same keys and counter as its parent.
        let unique = (std::process::id(), LEASES.fetch_add(1, Relaxed));
        let [number, other] = [(); 2].map(|()| RandomState::new().hash_one(unique));
        let claim = match self.cache.shared.backend.claim(Matter::Lease(number)) {
            Claimed::Mine(claim) => claim,
            Claimed::Here | Claimed::Elsewhere => Claim::default(),
        };
        let mark = if claim.is_seen() { CLAIMED } else { [0; 8] };
        let mut owner = Owner::default();
        for (to, from) in owner.chunks_mut(8).zip([number.to_le_bytes(), other.to_le_bytes(), mark])
        {
            to.copy_from_slice(&from);
        }
        (owner, claim)
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
    /// `NoSpace` or `Io` if the disk refuses; then the lease ends when its time is over, or, in a directory, as soon
    /// as somebody asks for it.
    pub fn release(mut self) -> Result<bool> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<bool> {
        self.released = true;
        if self.claim.is_inherited() {
            // It is the parent's, who may still need it.
            return Ok(false);
        }
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

/// The number of the claim, if there is one.
fn claim_number(owner: &Owner) -> Option<u64> {
    let (number, rest) = owner.split_first_chunk()?;
    rest.ends_with(&CLAIMED).then(|| u64::from_le_bytes(*number))
}
