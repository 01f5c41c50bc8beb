//! The lock of a chain: who holds it, how long it is waited for, and what becomes of it when its holder dies.

use std::cell::Cell;

use super::Index;
use super::bucket::{Bucket, Control};
use super::slot::Slot;
use crate::engine::format::index_header::MAX_CHAIN;
use crate::error::{Error, ErrorKind};
use crate::sys::wait::Backoff;

/// A lock that somebody else holds for long.
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
    /// If somebody who lives does not let go of it for about half a second.
    pub(crate) fn lock(&self, hash: u64) -> Result<Locked<'_>, Busy> {
        self.lock_primary(self.primary_of(hash))
    }

    /// Locks the chain that `slot` is in, likewise.
    pub(crate) fn lock_slot(&self, slot: Slot) -> Result<Locked<'_>, Busy> {
        self.lock_primary(self.primary_of_slot(slot))
    }

    // Keeps invariant I10.
    pub(super) fn lock_primary(&self, primary: u32) -> Result<Locked<'_>, Busy> {
        // A primary's number is below the number of buckets, by construction of both callers.
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
            } else if wait.should_check_owner() && !self.is_alive(before.check()) {
                if bucket.swap_control(before, locked) {
                    return Ok(self.take_over(Locked::new(self, primary, bucket, before, locked)));
                }
            } else if wait.is_long() {
                return Err(Busy);
            }
            wait.pause();
        }
    }

    /// Goes on with a chain whose holder died. Each change that a holder makes is one word, so the words are good as
    /// they are, and no check says so; the checks of the overflow buckets, which come second, are made to fit.
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
        // A record that it stamped and did not publish may come back with a recovery.
        chain.lost.set(true);
        // It may have counted an entry that it did not publish.
        self.set_wants_recount(true);
        chain
    }

    /// Takes over what the dead have locked.
    pub(crate) fn release_locks_of_dead(&self) {
        for primary in 0..self.geometry.primaries {
            let is_locked = |bucket: Bucket<'_>| bucket.control().is_locked();
            if self.bucket(primary).is_some_and(is_locked) {
                drop(self.lock_primary(primary));
            }
        }
    }
}

/// A chain whose lock is held. Dropping it unlocks.
///
/// While one is alive: no system call, no allocation, no code of users, no other lock.
pub(crate) struct Locked<'a> {
    pub(super) index: &'a Index,
    pub(super) primary: u32,
    pub(super) bucket: Bucket<'a>,
    pub(super) before: Control,
    pub(super) locked: Control,
    /// Entries that were wiped because their bucket was damaged.
    pub(super) wiped: usize,
    /// Whether an entry is lost that a recovery may bring back.
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

    /// Lets go of the chain.
    ///
    /// # Errors
    /// If another process took the lock over meanwhile: it took this one for dead.
    #[inline]
    pub(crate) fn unlock(self) -> Result<(), Stolen> {
        self.let_go()
    }

    #[inline]
    fn let_go(&self) -> Result<(), Stolen> {
        if self.unlocked.replace(true) {
            return Ok(());
        }
        let unlocked = self.locked.unlocked(self.bucket.computed_check(), self.lost.get());
        if self.bucket.swap_control(self.locked, unlocked) {
            return Ok(());
        }
        tracing::error!(
            bucket = self.primary,
            "the lock of a bucket was taken over while it was held"
        );
        Err(Stolen)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Who has to know has called `unlock`.
        let _ = self.let_go();
    }
}

/// A lock was taken over by another process while this one held it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stolen;

impl From<Stolen> for Error {
    fn from(Stolen: Stolen) -> Self {
        let why = "another process took this one for dead; was the lock file replaced?";
        Self::new(ErrorKind::LockLost, "unlock").with_source(why)
    }
}
