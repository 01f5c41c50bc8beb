//! The number of entries, exact against the bound: one word holds the generation and the count of it.
//!
//! Counting up comes before publishing and counting down after removing, so a kill in between leaves a count
//! that is too high, never one that lets the cache overfill.

use std::cell::Cell;

use super::Index;
use super::lock::{Busy, Stolen};
use crate::engine::format::index_header::at;
use crate::sys::atomic::Ordering;
use crate::sys::step;
use crate::sys::wait::Backoff;

/// The owner and the lock bit take so many bits of the clear lock; above are the low ones of the generation that is to
/// begin.
const GENERATION_SHIFT: u32 = 33;
const OWNER: u64 = (1 << GENERATION_SHIFT) - 1;

/// What became of counting a new entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountUp {
    Counted,
    /// A `clear` came in between: nothing was counted. Whoever reads the generation now reads the later one.
    OtherGeneration,
    Full,
}

impl Index {
    /// Entries of the current generation.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.words()[at::COUNT].load(Ordering::Acquire) as u32)
    }

    /// The same, once everybody works with the generation that is counted.
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
                // Whoever began it may stand still, or be dead, before it says so to all.
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

    /// Takes back one entry of `generation`; nothing if that is over.
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

    /// Sets generation and count as they are found by a recovery.
    pub(crate) fn set_count(&self, generation: u32, count: u64) {
        self.words()[at::GENERATION].store(u64::from(generation), Ordering::Release);
        self.words()[at::COUNT].store(u64::from(generation) << 32 | count, Ordering::Release);
    }

    /// Adds what was missing in the count of `generation`, or takes what was too much; nothing if that is over.
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

    /// The generation and the count, of one moment.
    pub(crate) fn generation_and_count(&self) -> (u32, u32) {
        let word = self.words()[at::COUNT].load(Ordering::Acquire);
        ((word >> 32) as u32, word as u32)
    }

    /// Whether a `clear` is under way, or was when its process died.
    pub(crate) fn is_clearing(&self) -> bool {
        self.words()[at::CLEAR_LOCK].load(Ordering::Acquire) != 0
    }

    /// Begins generation `next`: every entry there is is gone, at once. Nothing, if it or a later one has begun. The caller
    /// holds the clear lock.
    pub(crate) fn begin_generation(&self, next: u32) {
        self.count_from_zero(next);
        step!("clear::counted");
        self.reach_generation(next);
    }

    /// The first half of it: from here on entries of `next` alone are counted.
    pub(crate) fn count_from_zero(&self, next: u32) {
        self.words()[at::COUNT].fetch_max(u64::from(next) << 32, Ordering::AcqRel);
    }

    /// The second half: has everybody work with `generation`, or a later one. Whoever finds that it is counted does this, as
    /// what is written in the one before would not be counted.
    fn reach_generation(&self, generation: u32) {
        self.words()[at::GENERATION].fetch_max(u64::from(generation), Ordering::AcqRel);
    }

    /// Takes the lock that one `clear` at a time holds, and returns what gives it back.
    ///
    /// # Errors
    /// If somebody who lives does not let go of it for about half a second.
    // Keeps invariant I16.
    pub(crate) fn lock_clear(&self) -> Result<ClearLock<'_>, Busy> {
        let word = &self.words()[at::CLEAR_LOCK];
        let next = || u64::from(self.generation().wrapping_add(1)) << GENERATION_SHIFT;
        let mut wait = Backoff::default();
        loop {
            let before = word.load(Ordering::Acquire);
            let mine = next() | u64::from(self.owner()) << 1 | 1;
            let is_free =
                before == 0 || (wait.should_check_owner() && !self.is_alive((before >> 1) as u32));
            if is_free
                && word.compare_exchange(before, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                // Another may have ended since this one looked which generation is next.
                let now = (mine & OWNER) | next();
                let _ = word.compare_exchange(mine, now, Ordering::AcqRel, Ordering::Relaxed);
                // Who died with it may have stamped its record, and a recovery must not be the first to heed that.
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

/// The clear lock, held.
pub(crate) struct ClearLock<'a> {
    index: &'a Index,
    /// Whether its last holder died before its clear had come to its end: the caller is to do it, whole.
    pub(crate) unfinished: bool,
    mine: u64,
    /// The word of its last holder.
    before: u64,
    unlocked: Cell<bool>,
}

impl ClearLock<'_> {
    /// # Errors
    /// If another process took the lock over meanwhile: it took this one for dead.
    pub(crate) fn check(&self) -> Result<(), Stolen> {
        let word = self.index.words()[at::CLEAR_LOCK].load(Ordering::Acquire);
        if word == self.mine { Ok(()) } else { Err(self.stolen()) }
    }

    /// Lets go of the lock.
    ///
    /// # Errors
    /// As [`check`](ClearLock::check).
    pub(crate) fn unlock(self) -> Result<(), Stolen> {
        self.let_go()
    }

    fn let_go(&self) -> Result<(), Stolen> {
        if self.unlocked.replace(true) {
            return Ok(());
        }
        let word = &self.index.words()[at::CLEAR_LOCK];
        let is_next = u64::from(self.index.generation().wrapping_add(1)) << GENERATION_SHIFT
            == self.mine & !OWNER;
        // A clear of the dead that was not done is left to whoever comes next.
        let left = if self.unfinished && is_next { self.before } else { 0 };
        match word.compare_exchange(self.mine, left, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.stolen()),
        }
    }

    /// It is not this one's any more, so there is nothing to let go of.
    fn stolen(&self) -> Stolen {
        self.unlocked.set(true);
        tracing::error!("the lock of `clear` was taken over while it was held");
        Stolen
    }
}

impl Drop for ClearLock<'_> {
    fn drop(&mut self) {
        // Who has to know has called `unlock`.
        let _ = self.let_go();
    }
}
