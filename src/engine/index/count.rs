//! The count of entries, exact at the bound, and the lock of `clear`.
//!
//! One word holds the generation and the number of its entries. So a `clear` and a new entry cannot
//! miss each other. A writer counts up before it publishes and counts down after it removes. If it
//! is killed in between, the count is too high, and never too low: the cache never overfills.
//!
//! A `clear` begins a generation in two stores: the count, then the generation that all processes
//! work with. A process that finds the first store without the second does the second itself.

use std::cell::Cell;

use super::Index;
use super::lock::{Busy, Stolen};
use super::process_slot::Owner;
use crate::engine::format::index_header::at;
use crate::sys::atomic::Ordering;
use crate::sys::step;
use crate::sys::wait::Backoff;

/// The clear lock is 0, or `next generation (its low 31 bits) | owner (32) | 1`.
const GENERATION_SHIFT: u32 = 33;
/// The owner and the lock bit.
const OWNER: u64 = (1 << GENERATION_SHIFT) - 1;

/// The owner of a clear lock.
fn owner_of(word: u64) -> Owner {
    Owner::from_bits((word >> 1) as u32)
}

/// The result of counting a new entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountUp {
    Counted,
    /// A `clear` came in between: nothing was counted. Every later read of the generation returns
    /// the new one.
    OtherGeneration,
    Full,
}

impl Index {
    /// Entries of the current generation.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.words()[at::COUNT].load(Ordering::Acquire) as u32)
    }

    /// The same; first ensures that all processes work with the generation that is counted.
    pub(crate) fn settled_count(&self) -> u64 {
        let (generation, count) = self.generation_and_count();
        if self.generation() < generation {
            self.reach_generation(generation);
        }
        u64::from(count)
    }

    // Keeps invariant I13.
    pub(crate) fn count_up(&self, generation: u32, max: u64) -> CountUp {
        let word = &self.words()[at::COUNT];
        let mut seen = word.load(Ordering::Acquire);
        loop {
            if (seen >> 32) as u32 != generation {
                // The process that began it may be stopped or dead before its second store.
                self.reach_generation((seen >> 32) as u32);
                return CountUp::OtherGeneration;
            }
            if u64::from(seen as u32) >= max {
                return CountUp::Full;
            }
            match word.compare_exchange_weak(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return CountUp::Counted,
                Err(now) => seen = now,
            }
        }
    }

    /// Subtracts one entry of `generation`; does nothing if that generation is over.
    pub(crate) fn count_down(&self, generation: u32) {
        let word = &self.words()[at::COUNT];
        let mut seen = word.load(Ordering::Acquire);
        while (seen >> 32) as u32 == generation && seen as u32 > 0 {
            match word.compare_exchange_weak(seen, seen - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Sets generation and count, for a recovery.
    pub(crate) fn set_count(&self, generation: u32, count: u64) {
        self.words()[at::GENERATION].store(u64::from(generation), Ordering::Release);
        self.words()[at::COUNT].store(u64::from(generation) << 32 | count, Ordering::Release);
    }

    /// Adds `missing`, which may be negative, to the count of `generation`; does nothing if that
    /// generation is over.
    pub(crate) fn correct_count(&self, generation: u32, missing: i64) {
        let word = &self.words()[at::COUNT];
        let mut seen = word.load(Ordering::Acquire);
        while (seen >> 32) as u32 == generation {
            let count =
                u32::try_from((i64::from(seen as u32) + missing).max(0)).unwrap_or(u32::MAX);
            let corrected = u64::from(generation) << 32 | u64::from(count);
            match word.compare_exchange_weak(seen, corrected, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// The generation and the count, read at one moment.
    pub(crate) fn generation_and_count(&self) -> (u32, u32) {
        let word = self.words()[at::COUNT].load(Ordering::Acquire);
        ((word >> 32) as u32, word as u32)
    }

    /// Whether a `clear` is running, or its process died during it.
    pub(crate) fn is_clearing(&self) -> bool {
        self.words()[at::CLEAR_LOCK].load(Ordering::Acquire) != 0
    }

    /// Begins generation `next`: all entries are gone at once. Does nothing if it or a later one
    /// has begun. The caller holds the clear lock.
    pub(crate) fn begin_generation(&self, next: u32) {
        self.count_from_zero(next);
        step!("clear::counted");
        self.reach_generation(next);
    }

    /// The first store: from here on, only entries of `next` are counted.
    pub(crate) fn count_from_zero(&self, next: u32) {
        self.words()[at::COUNT].fetch_max(u64::from(next) << 32, Ordering::AcqRel);
    }

    /// The second store: all processes work with `generation`, or a later one. Every process that
    /// finds `generation` counted does this, because entries of the one before are not counted.
    fn reach_generation(&self, generation: u32) {
        self.words()[at::GENERATION].fetch_max(u64::from(generation), Ordering::AcqRel);
    }

    /// Takes the lock that one `clear` at a time holds.
    ///
    /// # Errors
    /// If a living owner does not release it within about half a second.
    // Keeps invariant I16.
    pub(crate) fn lock_clear(&self) -> Result<ClearLock<'_>, Busy> {
        let word = &self.words()[at::CLEAR_LOCK];
        let next = || u64::from(self.generation().wrapping_add(1)) << GENERATION_SHIFT;
        let mut wait = Backoff::default();
        loop {
            let before = word.load(Ordering::Acquire);
            let mine = next() | u64::from(self.owner().bits()) << 1 | 1;
            let is_free =
                before == 0 || (wait.should_check_owner() && !self.is_alive(owner_of(before)));
            if is_free
                && word.compare_exchange(before, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                // Another clear may have finished since `next` was computed.
                let now = (mine & OWNER) | next();
                let _ = word.compare_exchange(mine, now, Ordering::AcqRel, Ordering::Relaxed);
                // The dead owner may have stamped the record of its clear. This clear must finish
                // it; otherwise a recovery would be the first to apply it.
                let unfinished =
                    before != 0 && before >> GENERATION_SHIFT == next() >> GENERATION_SHIFT;
                return Ok(ClearLock {
                    index: self,
                    unfinished,
                    mine: now,
                    before,
                    unlocked: Cell::new(false),
                });
            }
            if wait.is_long() {
                return Err(Busy);
            }
            wait.pause();
        }
    }
}

/// The clear lock. This process holds it until it is dropped.
pub(crate) struct ClearLock<'a> {
    index: &'a Index,
    /// Whether the last owner died before it finished its clear. Then the caller must do that clear
    /// completely.
    pub(crate) unfinished: bool,
    mine: u64,
    /// The word of the last owner.
    before: u64,
    unlocked: Cell<bool>,
}

impl ClearLock<'_> {
    /// # Errors
    /// If another process took the lock over meanwhile because it considered this one dead.
    pub(crate) fn check(&self) -> Result<(), Stolen> {
        let word = self.index.words()[at::CLEAR_LOCK].load(Ordering::Acquire);
        if word == self.mine { Ok(()) } else { Err(self.stolen()) }
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// As [`check`](ClearLock::check).
    pub(crate) fn unlock(self) -> Result<(), Stolen> {
        self.release()
    }

    fn release(&self) -> Result<(), Stolen> {
        if self.unlocked.replace(true) {
            return Ok(());
        }
        let word = &self.index.words()[at::CLEAR_LOCK];
        let is_next = u64::from(self.index.generation().wrapping_add(1)) << GENERATION_SHIFT
            == self.mine & !OWNER;
        // If the clear of the dead owner was not finished, the next process must still see it.
        let left = if self.unfinished && is_next { self.before } else { 0 };
        match word.compare_exchange(self.mine, left, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.stolen()),
        }
    }

    /// Notes that this process does not hold the lock any more, so that it does not release it.
    fn stolen(&self) -> Stolen {
        self.unlocked.set(true);
        tracing::error!("the lock of `clear` was taken over while it was held");
        Stolen
    }
}

impl Drop for ClearLock<'_> {
    fn drop(&mut self) {
        // A caller that needs the result has called `unlock`.
        let _ = self.release();
    }
}
