//! The number of entries, exact against the bound: one word holds the generation and the count of it.
//!
//! Counting up comes before publishing and counting down after removing, so a kill in between leaves a count
//! that is too high, never one that lets the cache overfill.

use std::sync::atomic::Ordering;

use super::{Index, at};
use crate::sys::step;

/// What became of counting a new entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountUp {
    Counted,
    /// A `clear` came in between: the entry is dead before it is born, and is not counted.
    OtherGeneration,
    Full,
}

impl Index {
    /// Entries of the current generation.
    pub(crate) fn count(&self) -> u64 {
        u64::from(self.words()[at::COUNT].load(Ordering::Acquire) as u32)
    }

    pub(crate) fn count_up(&self, generation: u32, max: u64) -> CountUp {
        let word = &self.words()[at::COUNT];
        let mut seen = word.load(Ordering::Acquire);
        loop {
            if (seen >> 32) as u32 != generation {
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
            let count = u32::try_from((i64::from(seen as u32) + missing).max(0)).unwrap_or(u32::MAX);
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

    /// The generation, once no `clear` is under way that took its sequence before this call. `None` if one does not
    /// end within about a quarter of a second.
    pub(crate) fn settled_generation(&self) -> Option<u32> {
        let mut wait = super::chain::Backoff::default();
        while self.words()[at::CLEAR_LOCK].load(Ordering::Acquire) != 0 {
            if wait.is_long() {
                return None;
            }
            wait.pause();
        }
        Some(self.generation())
    }

    /// Begins generation `next`: every entry there is is gone, at once. The caller holds the clear lock.
    pub(crate) fn begin_generation(&self, next: u32) {
        self.words()[at::COUNT].store(u64::from(next) << 32, Ordering::Release);
        step!("clear::counted");
        self.words()[at::GENERATION].store(u64::from(next), Ordering::Release);
    }

    /// Takes the lock that one `clear` at a time holds, and returns what gives it back.
    pub(crate) fn lock_clear(&self) -> ClearLock<'_> {
        let mut wait = super::chain::Backoff::default();
        let word = &self.words()[at::CLEAR_LOCK];
        while word
            .compare_exchange(0, u64::from(self.owner) << 1 | 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            wait.pause();
        }
        ClearLock(self)
    }
}

/// The clear lock, held.
pub(crate) struct ClearLock<'a>(&'a Index);

impl Drop for ClearLock<'_> {
    fn drop(&mut self) {
        self.0.words()[at::CLEAR_LOCK].store(0, Ordering::Release);
    }
}
