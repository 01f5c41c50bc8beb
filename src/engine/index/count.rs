//! The count of entries, exact at the bound, and the lock of `clear`.
//!
//! One word holds the generation and the number of its entries. So a `clear` and a new entry cannot
//! miss each other. A writer counts up before it publishes and counts down after it removes. If it
//! is killed in between, the count is too high, and never too low: the cache never overfills.
//!
//! A `clear` begins a generation in two stores: the generation that all processes work with, which
//! is the moment at which the clear takes effect, then the count. A process that finds the first
//! store without the second does the second itself. So the counted generation is never later than
//! the generation; where damage makes it so, the next count repairs it.

use std::cell::Cell;

use super::Index;
use super::lock::{Busy, Stolen};
use super::process_slot::Owner;
use crate::engine::format::index_header::at;
use crate::engine::format::word::Word;
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
        let (counted, count) = self.generation_and_count();
        if counted < self.generation() { 0 } else { u64::from(count) }
    }

    /// The same; first ensures that the generation that all processes work with is the counted one.
    pub(crate) fn settled_count(&self) -> u64 {
        let (counted, generation) = (self.generation_and_count().0, self.generation());
        if counted < generation {
            self.count_from_zero(generation);
        } else if counted > generation {
            self.reach_generation(counted);
        }
        self.count()
    }

    /// How many entries all processes evicted, including those that were killed since.
    pub(crate) fn evicted(&self) -> u64 {
        self.words()[at::EVICTED].load(Ordering::Relaxed)
    }

    /// Counts evictions before they happen: a process that dies in between counts too many, never
    /// too few.
    pub(crate) fn count_evicted(&self, entries: u64) {
        self.words()[at::EVICTED].fetch_add(entries, Ordering::Relaxed);
    }

    /// Takes the count of one eviction back that did not happen.
    pub(crate) fn uncount_evicted(&self) {
        self.words()[at::EVICTED].fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn set_evicted(&self, entries: u64) {
        self.words()[at::EVICTED].store(entries, Ordering::Relaxed);
    }

    // Keeps invariant I13.
    pub(crate) fn count_up(&self, generation: u32, max: u64) -> CountUp {
        let word = &self.words()[at::COUNT];
        let mut seen = word.load(Ordering::Acquire);
        loop {
            let counted = (seen >> 32) as u32;
            if counted < generation {
                // The process that began it may be stopped or dead before its second store.
                self.count_from_zero(generation);
                seen = word.load(Ordering::Acquire);
                continue;
            }
            if counted > generation {
                // The caller's is outdated, or the word is damaged: then this corrects it.
                self.reach_generation(counted);
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
        self.reach_generation(next);
        step!("clear::begun");
        self.count_from_zero(next);
    }

    /// The first store: all processes work with `generation`, or a later one. A word with more than
    /// 32 bits is damaged; what they are is ignored, as in [`generation`](Index::generation).
    pub(crate) fn reach_generation(&self, generation: u32) {
        let raise = |word: u64| ((word as u32) < generation).then_some(u64::from(generation));
        let _ =
            self.words()[at::GENERATION].fetch_update(Ordering::AcqRel, Ordering::Acquire, raise);
    }

    /// The second store: from here on, entries of `next` are counted. Every process that counts
    /// does this if it finds an older generation counted.
    fn count_from_zero(&self, next: u32) {
        self.words()[at::COUNT].fetch_max(u64::from(next) << 32, Ordering::AcqRel);
    }

    /// Where the record of the last clear is.
    pub(crate) fn clear_record(&self) -> Word {
        Word(self.words()[at::CLEAR_RECORD].load(Ordering::Acquire))
    }

    /// Notes where the record of a clear will be, before it is stamped: a process that takes the
    /// lock over makes it void. The caller holds the clear lock.
    pub(crate) fn set_clear_record(&self, word: Word) {
        self.words()[at::CLEAR_RECORD].store(word.0, Ordering::Release);
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
                // The dead owner may have stamped the record of its clear. The caller makes it
                // void; otherwise a recovery would apply it, to what was written since.
                let unfinished =
                    before != 0 && before >> GENERATION_SHIFT == next() >> GENERATION_SHIFT;
                return Ok(ClearLock {
                    index: self,
                    unfinished: Cell::new(unfinished),
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
    /// Whether the last owner died before its clear took effect. Then the caller must make its
    /// record void, and note it.
    unfinished: Cell<bool>,
    mine: u64,
    /// The word of the last owner.
    before: u64,
    unlocked: Cell<bool>,
}

impl ClearLock<'_> {
    /// Whether the last owner died before its clear took effect, and its record may still be in the
    /// log.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.unfinished.get()
    }

    /// Notes that no recovery can apply the clear of the last owner.
    pub(crate) fn note_voided(&self) {
        self.unfinished.set(false);
    }

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
        // If the record of the dead owner is not void, the next process must still see it.
        let left = if self.unfinished.get() && is_next { self.before } else { 0 };
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
