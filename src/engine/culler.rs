//! The culler: keeps the number of entries within `max_entries`, least recently used first.
//!
//! Which entries go is a pure function of their ages ([`Choice`]); the rest is walking the hints twice. Up to
//! 10,000 entries the inserting call culls, with exact counts. Above, the background does, from a mark a little
//! below the bound; an insert that reaches the bound all the same makes room for itself alone.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Engine;
use super::counters::Counter;
use super::index::{Slot, Word};
use crate::entry::Expiry;
use crate::error::Result;
use crate::options;

/// Ages are told apart up to this many ticks; the clock ticks 256 times while the cache turns over once.
const AGES: usize = 1024;

/// How many entries there are of each age.
struct Ages(Box<[u64; AGES]>);

/// Which entries go: all that are older than an age, and so many of that age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    age: usize,
    of_that_age: u64,
}

fn bin(age: u32) -> usize {
    (age as usize).min(AGES - 1)
}

impl Ages {
    fn new() -> Self {
        Self(Box::new([0; AGES]))
    }

    fn add(&mut self, age: u32) {
        self.0[bin(age)] += 1;
    }

    /// The choice that makes `count` entries go, the oldest first.
    fn choose(&self, count: u64) -> Choice {
        let mut left = count;
        for (age, there) in self.0.iter().enumerate().rev() {
            if *there >= left {
                return Choice { age, of_that_age: left };
            }
            left -= there;
        }
        Choice { age: 0, of_that_age: self.0[0] }
    }
}

impl Engine {
    /// From how many entries on the background culls.
    fn crowded_at(&self) -> u64 {
        self.max_entries - (self.max_entries / 256).max(1)
    }

    /// Wakes the culler if the cache is nearly full and the culling is its business.
    pub(super) fn ring_if_crowded(&self) {
        if !self.culls_inline() && self.index.count() >= self.crowded_at() {
            self.bell.ring();
        }
    }

    /// Makes room for one more entry, at least.
    pub(super) fn make_room(&self) -> Result<()> {
        self.tell_once(&self.told_of_entries, "max_entries");
        if !self.culls_inline() {
            self.bell.ring();
            self.evict_one();
            return Ok(());
        }
        let _culling = self.culling.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have made room while this call waited.
        if self.index.count() >= self.max_entries {
            self.cull()?;
        }
        Ok(())
    }

    /// Culls if the cache is nearly full and the culling is the background's business.
    pub(super) fn cull_if_crowded(&self) -> Result<()> {
        if self.culls_inline() || self.index.count() < self.crowded_at() {
            return Ok(());
        }
        self.tell_once(&self.told_of_entries, "max_entries");
        let _culling = self.culling.lock().unwrap_or_else(PoisonError::into_inner);
        self.cull()
    }

    /// Removes one in `cull_frequency` entries, or all for 0. Expired ones go first and count.
    fn cull(&self) -> Result<()> {
        let Some(wanted) = options::due(self.index.count(), self.options.cull_frequency) else {
            return self.clear();
        };
        let reaped = self.reap_all();
        if reaped < wanted && self.evict_coldest(wanted - reaped) + reaped == 0 {
            self.count_again();
        }
        Ok(())
    }

    /// Removes all entries that are expired or of an older generation, and says how many counted.
    pub(super) fn reap_all(&self) -> u64 {
        let (now, generation) = (self.options.clock.now(), self.index.generation());
        let (mut reaped, mut next) = (0, u64::MAX);
        // A commit notes its expiry after its hint is there, so either this pass or the note sees to it.
        self.next_expiry.store(u64::MAX, Ordering::SeqCst);
        for (slot, word) in self.index.entries(0..self.index.geometry().buckets) {
            let hint = self.hints.get(slot);
            if hint.is_expired(now) || hint.is_of_other(generation) {
                reaped += u64::from(self.reap(slot, word));
            } else {
                next = next.min(hint.expiry_millis());
            }
        }
        self.next_expiry.fetch_min(next, Ordering::SeqCst);
        self.swept.fetch_max(generation, Ordering::AcqRel);
        reaped
    }

    /// Notes that an entry expires then.
    pub(super) fn note_expiry(&self, expires_at: Expiry) {
        let Some(end) = expires_at else { return };
        if end.as_millis() < self.next_expiry.load(Ordering::SeqCst) {
            self.next_expiry.fetch_min(end.as_millis(), Ordering::SeqCst);
        }
    }

    /// Whether an entry may have expired that was not reaped.
    pub(super) fn has_expired_entries(&self) -> bool {
        self.options.clock.now().as_millis() >= self.next_expiry.load(Ordering::SeqCst)
    }

    /// Evicts `count` entries, the least recently used ones. Says how many it did.
    pub(super) fn evict_coldest(&self, count: u64) -> u64 {
        let (clock, buckets) = (self.index.recency(), 0..self.index.geometry().buckets);
        let age = |slot| self.hints.get(slot).age(clock);
        let mut ages = Ages::new();
        self.index.entries(buckets.clone()).for_each(|(slot, _)| ages.add(age(slot)));
        let choice = ages.choose(count);
        let mut evicted = 0;
        // Of one age, what was written first goes first.
        let mut at_the_edge: Vec<(std::cmp::Reverse<u32>, u64, Slot, Word)> = Vec::new();
        for (slot, word) in self.index.entries(buckets) {
            let age = age(slot);
            match bin(age).cmp(&choice.age) {
                std::cmp::Ordering::Greater => evicted += u64::from(self.evict(slot, word)),
                std::cmp::Ordering::Equal => {
                    at_the_edge.push((std::cmp::Reverse(age), word.age(), slot, word));
                }
                std::cmp::Ordering::Less => {}
            }
        }
        at_the_edge.sort_unstable();
        for (.., slot, word) in at_the_edge.into_iter().take(choice.of_that_age as usize) {
            evicted += u64::from(self.evict(slot, word));
        }
        self.counters.add(Counter::Evicted, evicted);
        evicted
    }

    /// Evicts the coldest of a few entries. If there are none at all, the count is wrong.
    fn evict_one(&self) {
        /// Enough that the coldest of them is, on average, among the coldest sixteenth of all.
        const SAMPLE: usize = 16;
        let buckets = self.index.geometry().buckets;
        let clock = self.index.recency();
        let random = self.index.last_sequence().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let start = (random % u64::from(buckets)) as u32;
        let coldest = self
            .index
            .entries(start..buckets)
            .chain(self.index.entries(0..start))
            .take(SAMPLE)
            .max_by_key(|(slot, word)| (self.hints.get(*slot).age(clock), std::cmp::Reverse(word.age())));
        match coldest {
            // Somebody else may have been faster; then there is room as well.
            Some((slot, word)) => self.counters.add(Counter::Evicted, u64::from(self.evict(slot, word))),
            None => self.count_again(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ages(of: &[(u32, u64)]) -> Ages {
        let mut ages = Ages::new();
        for (age, count) in of {
            (0..*count).for_each(|_| ages.add(*age));
        }
        ages
    }

    #[test]
    fn the_oldest_go_first() {
        let ages = ages(&[(0, 10), (3, 5), (7, 2)]);
        assert_eq!(ages.choose(1), Choice { age: 7, of_that_age: 1 });
        assert_eq!(ages.choose(2), Choice { age: 7, of_that_age: 2 });
        assert_eq!(ages.choose(4), Choice { age: 3, of_that_age: 2 });
        assert_eq!(ages.choose(8), Choice { age: 0, of_that_age: 1 });
    }

    #[test]
    fn more_than_there_are_is_all_of_them() {
        assert_eq!(ages(&[(0, 2), (5, 1)]).choose(100), Choice { age: 0, of_that_age: 2 });
        assert_eq!(ages(&[]).choose(1), Choice { age: 0, of_that_age: 0 });
    }

    #[test]
    fn what_is_older_than_can_be_told_apart_is_one_age() {
        assert_eq!(ages(&[(2000, 3), (5, 1)]).choose(3), Choice { age: AGES - 1, of_that_age: 3 });
    }
}
