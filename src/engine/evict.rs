//! Removing entries that nobody asked to remove: expired, evicted, or damaged. Not logged: after a kill such an
//! entry may be back, which for a cache is no loss. Its chain is marked, so that a `delete` which comes too late
//! for the entry keeps it from coming back.

use std::sync::atomic::Ordering;

use super::Engine;
use super::counters::Counter;
use super::index::{Probe, Slot, Word};
use super::log::Evacuate;
use super::record::Record;
use super::segment::Segment;

impl Engine {
    /// Empties `slot` if it still holds `word`. Says whether it did.
    pub(super) fn evict(&self, slot: Slot, word: Word) -> bool {
        self.remove(slot, word, true)
    }

    /// The same, for an entry that a recovery would not bring back unless `comes_back`.
    fn remove(&self, slot: Slot, word: Word, comes_back: bool) -> bool {
        // Read before the lock is taken: the page may have to come from the disk.
        let header = self.header_of(word);
        let locked = self.index.lock_slot(slot);
        self.note_wiped(locked.wiped());
        if locked.word(slot) != word {
            return false;
        }
        locked.clear(slot);
        if comes_back {
            locked.note_lost();
        }
        match header {
            Some((generation, _)) => self.index.count_down(generation),
            // Nobody can say whether it counted. Too high a count is safe, and is put right later.
            None => self.recount.store(true, Ordering::Relaxed),
        }
        drop(locked);
        if let Some((_, len)) = header {
            self.index.add_live_bytes(word.segment(), -i64::from(len));
        }
        true
    }

    /// Removes the entry if its record is expired or of an older generation. Says whether an entry that
    /// counted is gone.
    pub(super) fn reap(&self, slot: Slot, word: Word) -> bool {
        let guard = self.log.segment(word.segment());
        let record = guard.get().and_then(|s| s.record(word.offset()));
        let Some(record) = record else { return false };
        let outdated = record.generation < self.index.generation();
        if !outdated && !record.is_expired(self.options.clock.now()) {
            return false;
        }
        let expired = self.remove(slot, word, false) && !outdated;
        self.counters.add(Counter::Expired, u64::from(expired));
        expired
    }

    /// Counts the entries of the current generation and corrects the count, unless others keep changing entries.
    ///
    /// The count and the entries change under bucket locks only. So if no lock was held or taken from before the count
    /// was read until after the entries were counted, both are of one moment, and their difference is what is
    /// wrong with the count, then and later.
    pub(super) fn count_again(&self) {
        const ATTEMPTS: usize = 4;
        for _ in 0..ATTEMPTS {
            let Some(before) = self.index.unlocks() else { continue };
            let (generation, seen) = self.index.generation_and_count();
            let counted = self
                .index
                .entries(0..self.index.geometry().buckets)
                .filter(|(_, word)| self.header_of(*word).is_none_or(|(g, _)| g == generation))
                .count();
            if self.index.unlocks() == Some(before) {
                self.index.correct_count(generation, counted as i64 - i64::from(seen));
                self.recount.store(false, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl Engine {
    /// Whether the index names nothing in `segment`. The count of live bytes says when it is worth a look, and is
    /// put right where it was wrong.
    pub(super) fn is_dead(&self, segment: &Segment) -> bool {
        if self.index.live_bytes(segment.id) > 0 {
            return false;
        }
        let named = values(segment).filter(|(offset, record)| {
            let (hash, word) = self.word_of(segment, *offset, record);
            self.slot_of(hash, word).is_some()
        });
        let alive = named.map(|(_, record)| i64::from(record.len)).sum();
        self.index.add_live_bytes(segment.id, alive);
        alive == 0
    }

    /// The word that names the record at `offset` of `segment`, and the hash of its key.
    fn word_of(&self, segment: &Segment, offset: u32, record: &Record<'_>) -> (u64, Word) {
        let hash = self.hasher.hash(record.key);
        (hash, Word::new(hash, segment.id, offset))
    }

    /// The slot that holds exactly `word`.
    pub(super) fn slot_of(&self, hash: u64, word: Word) -> Option<Slot> {
        let here = |w: Word| if w == word { Probe::Match } else { Probe::Other };
        self.index.find(hash, here).entry.map(|(slot, _)| slot)
    }
}

/// The sound records of values in `segment`, with their offsets.
fn values(segment: &Segment) -> impl Iterator<Item = (u32, Record<'_>)> {
    segment.records().filter(|(_, record)| record.is_entry())
}

impl Evacuate for Engine {
    fn give_up_blob(&self, beyond: u64) -> bool {
        self.give_up_a_blob(beyond)
    }

    fn evacuate(&self, segment: &Segment) {
        let mut evicted = 0;
        for (offset, record) in values(segment) {
            let (hash, word) = self.word_of(segment, offset, &record);
            let current = record.generation == self.index.generation();
            // An entry that moves along its chain at this moment is looked for again.
            while let Some(slot) = self.slot_of(hash, word) {
                if self.evict(slot, word) {
                    evicted += u64::from(current && !self.has_passed(record.expires_at));
                    break;
                }
            }
        }
        if evicted > 0 {
            self.counters.add(Counter::Evicted, evicted);
            self.tell_once(&self.told_of_bytes, "max_bytes");
        }
    }
}
