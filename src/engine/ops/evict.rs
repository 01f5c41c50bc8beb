//! Eviction: removes expired, evicted and damaged entries, without a record in the log. After a
//! kill, a recovery may restore such an entry, which a cache tolerates. Its chain is marked, so
//! that a later `delete` of the key writes a tombstone, and no recovery restores the entry after
//! it.

use std::collections::HashSet;
use std::sync::PoisonError;

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::format::word::Word;
use crate::engine::hints::Hint;
use crate::engine::index::{Busy, Role, Slot};

/// The entries that a pass could not remove.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The chains whose lock was held for long. The pass waits once for each.
    held: HashSet<u32>,
    /// Whether an entry that should be removed is still there.
    pub(crate) is_any: bool,
}

impl Engine {
    /// Empties `slot` if it still holds `word`. Returns whether it did.
    pub(crate) fn evict(&self, slot: Slot, word: Word) -> bool {
        // If the chain's lock is held for long, the entry stays for now.
        self.remove(slot, word, true).unwrap_or(false)
    }

    /// [`remove`](Engine::remove), in a pass. Entries in a chain whose lock is held for long stay.
    pub(crate) fn remove_in_pass(
        &self,
        slot: Slot,
        word: Word,
        is_restorable: bool,
        left: &mut Left,
    ) -> bool {
        let chain = self.index.primary_of_slot(slot);
        if !left.held.contains(&chain) {
            match self.remove(slot, word, is_restorable) {
                Ok(gone) => return gone,
                Err(Busy) => drop(left.held.insert(chain)),
            }
        }
        left.is_any = true;
        false
    }

    /// Empties the slot that holds `word` of the key with this `hash`, also if the word moves to
    /// another slot meanwhile. Returns whether it did.
    ///
    /// # Errors
    /// `Busy` if the lock of its chain is held for long.
    pub(crate) fn evict_word(&self, hash: u64, word: Word) -> Result<bool, Busy> {
        while let Some(slot) = self.index.slot_of(hash, word) {
            if self.remove(slot, word, true)? {
                return Ok(true);
            }
            // The word is just moved along its chain; or its bucket says that it is part of another
            // chain, which taking the lock of its own chain corrects.
            self.note_wiped(self.index.lock(hash)?.wiped());
        }
        Ok(false)
    }

    /// Empties `slot` if it still holds `word`. Returns whether it did. `is_restorable`: a recovery
    /// could restore the entry.
    ///
    /// # Errors
    /// `Busy` if the lock of its chain is held for long.
    pub(crate) fn remove(&self, slot: Slot, word: Word, is_restorable: bool) -> Result<bool, Busy> {
        // Read before the lock is taken, because the page may have to be read from the disk.
        let header = self.header_of(word);
        let locked = self.index.lock_slot(slot)?;
        self.note_wiped(locked.wiped());
        if locked.word(slot) != word || !self.index.is_reached(slot) {
            return Ok(false);
        }
        locked.clear(slot);
        if is_restorable {
            locked.note_lost();
        }
        match header {
            Some((generation, _)) => self.index.count_down(generation),
            // Unknown whether the entry was counted. A count that is too high is safe, and is
            // corrected later.
            None => self.index.set_wants_recount(true),
        }
        drop(locked);
        if let Some((_, len)) = header {
            self.index.add_live_bytes(word.segment(), -i64::from(len));
        }
        Ok(true)
    }

    /// Removes the entry if its record is expired or of an older generation. Returns whether a
    /// counted entry was removed. In a pass, like [`remove_in_pass`](Engine::remove_in_pass).
    /// Keeps invariant I32: the record decides, not the hint.
    pub(crate) fn reap(&self, slot: Slot, word: Word, left: &mut Left) -> bool {
        let Ok(guard) = self.log.fetch(word.segment()) else {
            left.is_any = true;
            return false;
        };
        let record = guard.get().and_then(|s| s.record(word.offset()));
        let Some(record) = record else { return false };
        let outdated = record.generation < self.index.generation();
        if !outdated && !record.is_expired(self.options.clock.now()) {
            // The hint is wrong, perhaps from before a power cut. It is corrected, so that no later
            // pass reads the record for it.
            if self.index.word(slot) == word {
                let tick = self.hints.get(slot).tick();
                self.hints.set(slot, Hint::new(record.expires_at, record.generation, tick));
                self.note_expiry(record.expires_at);
            }
            return false;
        }
        let expired = self.remove_in_pass(slot, word, false, left) && !outdated;
        self.counters.add(Counter::Expired, u64::from(expired));
        expired
    }

    /// Counts the entries of the current generation and corrects the count, unless writers keep
    /// changing entries.
    ///
    /// The count and the entries change only under chain locks. So if no lock was held or taken
    /// from before the count was read until after the entries were counted, both are of one moment.
    /// Their difference is then the error of the count, at that moment and later.
    ///
    /// Only one thread of one process does so at a time. Two that find the same error would both
    /// correct it.
    pub(crate) fn count_again(&self) {
        const ATTEMPTS: usize = 4;
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Some(_role)) = self.index.try_acquire(Role::Count) else { return };
        // Reset before counting: a request for a recount from here on may be about a change that
        // the pass below does not see.
        self.index.set_wants_recount(false);
        let mut none_is_lost = false;
        for _ in 0..ATTEMPTS {
            // Otherwise an entry that a dead process was moving would count twice.
            none_is_lost = none_is_lost || self.index.free_lost_overflow();
            let Some(before) = self.index.unlocks().filter(|_| none_is_lost) else {
                self.index.release_locks_of_dead();
                continue;
            };
            let (generation, seen) = self.index.generation_and_count();
            let counted = self
                .index
                .reached_entries()
                .filter(|(_, word)| self.header_of(*word).is_none_or(|(g, _)| g == generation))
                .count();
            if self.index.unlocks() == Some(before) {
                self.index.correct_count(generation, counted as i64 - i64::from(seen));
                return;
            }
        }
        self.index.set_wants_recount(true);
    }
}
