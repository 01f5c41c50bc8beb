//! The lock of a chain: a bit and an owner in the control word of its primary bucket.
//!
//! A writer locks with one compare-and-swap and unlocks with another. It waits for a living owner
//! for about half a second, then returns [`Busy`]. It takes over the lock of a dead owner: each
//! change under the lock is one word, so the chain is valid at every moment. An owner whose lock
//! was taken over learns that at its unlock ([`Stolen`]).

use std::cell::Cell;

use super::Index;
use super::bucket::{Bucket, Control};
use super::slot::Slot;
use crate::engine::format::index_header::MAX_CHAIN;
use crate::error::{Error, ErrorKind};
use crate::sys::wait::Backoff;

/// A living process held a lock for longer than the wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

impl From<Busy> for Error {
    fn from(Busy: Busy) -> Self {
        let why = "another process holds a lock of the index; it may be stopped";
        Self::new(ErrorKind::Busy, "lock").with_source(why)
    }
}

impl Index {
    /// Locks the chain of `hash`.
    ///
    /// # Errors
    /// If a living owner does not release it within about half a second.
    pub(crate) fn lock(&self, hash: u64) -> Result<Locked<'_>, Busy> {
        self.lock_primary(self.primary_of(hash))
    }

    /// Locks the chain that contains `slot`.
    ///
    /// # Errors
    /// As [`lock`](Index::lock).
    pub(crate) fn lock_slot(&self, slot: Slot) -> Result<Locked<'_>, Busy> {
        self.lock_primary(self.primary_of_slot(slot))
    }

    // Keeps invariant I10.
    pub(super) fn lock_primary(&self, primary: u32) -> Result<Locked<'_>, Busy> {
        // All callers pass the number of a primary, which is below the number of buckets.
        #[expect(
            clippy::expect_used,
            reason = "the number was scaled or clamped to the primaries just before"
        )]
        let bucket = self.bucket(primary).expect("a primary bucket is in the index");
        let mut wait = Backoff::default();
        loop {
            let before = bucket.control();
            let locked = before.locked_by(self.owner());
            if !before.is_locked() {
                if bucket.swap_control(before, locked) {
                    let mut chain = Locked::new(self, primary, bucket, before, locked);
                    chain.verify();
                    return Ok(chain);
                }
            } else if wait.should_check_owner() && !self.is_alive(before.owner()) {
                if bucket.swap_control(before, locked) {
                    return Ok(self.take_over(Locked::new(self, primary, bucket, before, locked)));
                }
            } else if wait.is_long() {
                return Err(Busy);
            }
            wait.pause();
        }
    }

    /// Takes over a chain whose holder died. Each change by a holder is one word, so the entry
    /// words are valid, but the checks may be old. Recomputes those of the overflow buckets, which
    /// a holder writes after the words; the unlock recomputes that of the primary.
    /// Keeps invariant I23.
    fn take_over<'a>(&'a self, chain: Locked<'a>) -> Locked<'a> {
        let mut bucket = chain.bucket;
        for _ in 1..MAX_CHAIN {
            match self.next_of(bucket) {
                Some((_, next)) if next.control().primary() == chain.primary => bucket = next,
                _ => break,
            }
            bucket.set_control(Control::of_overflow(bucket.computed_check(), chain.primary));
        }
        // The holder may have stamped a record and not published it: a recovery may bring it back.
        chain.lost.set(true);
        // The holder may have counted an entry and not published it.
        self.set_wants_recount(true);
        chain
    }

    /// Releases the locks of dead processes on all chains.
    pub(crate) fn release_locks_of_dead(&self) {
        for primary in 0..self.geometry.primaries {
            let is_locked = |bucket: Bucket<'_>| bucket.control().is_locked();
            if self.bucket(primary).is_some_and(is_locked) {
                drop(self.lock_primary(primary));
            }
        }
    }
}

/// A chain whose lock this process holds. Dropping it unlocks the chain.
///
/// While it exists: no system call, no allocation, no code of users, no other lock.
pub(crate) struct Locked<'a> {
    pub(super) index: &'a Index,
    pub(super) primary: u32,
    pub(super) bucket: Bucket<'a>,
    pub(super) before: Control,
    pub(super) locked: Control,
    /// How many entries were wiped because their bucket was damaged.
    pub(super) wiped: usize,
    /// Whether the chain lost an entry that a recovery may bring back.
    pub(super) lost: Cell<bool>,
    unlocked: Cell<bool>,
}

impl<'a> Locked<'a> {
    fn new(
        index: &'a Index,
        primary: u32,
        bucket: Bucket<'a>,
        before: Control,
        locked: Control,
    ) -> Self {
        Self {
            index,
            primary,
            bucket,
            before,
            locked,
            wiped: 0,
            lost: Cell::new(false),
            unlocked: Cell::new(false),
        }
    }

    /// Unlocks the chain.
    ///
    /// # Errors
    /// If another process took the lock over meanwhile because it considered this one dead.
    #[inline]
    pub(crate) fn unlock(self) -> Result<(), Stolen> {
        self.release()
    }

    #[inline]
    fn release(&self) -> Result<(), Stolen> {
        if self.unlocked.replace(true) {
            return Ok(());
        }
        let unlocked = self.locked.unlocked(self.bucket.computed_check(), self.lost.get());
        if self.bucket.swap_control(self.locked, unlocked) {
            return Ok(());
        }
        tracing::error!(
            bucket = self.primary,
            "the lock of a chain was taken over while it was held"
        );
        Err(Stolen)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // A caller that needs the result has called `unlock`.
        let _ = self.release();
    }
}

/// Another process took a lock over while this one held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stolen;

impl From<Stolen> for Error {
    fn from(Stolen: Stolen) -> Self {
        let why = "another process considered this one dead and took its lock over; \
                   was the lock file replaced?";
        Self::new(ErrorKind::LockLost, "unlock").with_source(why)
    }
}
