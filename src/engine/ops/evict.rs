//! Removing entries that nobody asked to remove: expired, evicted, or damaged. Not logged: after a kill such an
//! entry may be back, which for a cache is no loss. Its chain is marked, so that a `delete` which comes too late
//! for the entry keeps it from coming back.

use std::collections::HashSet;
use std::sync::PoisonError;

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::format::word::Word;
use crate::engine::hints::Hint;
use crate::engine::index::{Busy, Role, Slot};

/// What a pass over many entries could not do.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The chains that it found held for long, so that it waits once for each.
    held: HashSet<u32>,
    /// Whether something that was to go is still there.
    pub(crate) is_any: bool,
}

impl Engine {
    /// Empties `slot` if it still holds `word`. Says whether it did.
    pub(crate) fn evict(&self, slot: Slot, word: Word) -> bool {
        // Where somebody holds it for long, the entry stays for now.
        self.remove(slot, word, true).unwrap_or(false)
    }

    /// [`remove`](Engine::remove), in a pass. What is in a chain that is held stays.
    pub(crate) fn remove_in_pass(
        &self,
        slot: Slot,
        word: Word,
        comes_back: bool,
        left: &mut Left,
    ) -> bool {
        let chain = self.index.primary_of_slot(slot);
        if !left.held.contains(&chain) {
            match self.remove(slot, word, comes_back) {
                Ok(gone) => return gone,
                Err(Busy) => drop(left.held.insert(chain)),
            }
        }
        left.is_any = true;
        false
    }

    /// Empties the slot of the key with this `hash` that holds `word`, wherever it moves meanwhile. Says whether it did.
    ///
    /// # Errors
    /// If somebody holds the lock of its chain for long.
    pub(crate) fn evict_word(&self, hash: u64, word: Word) -> Result<bool, Busy> {
        while let Some(slot) = self.index.slot_of(hash, word) {
            if self.remove(slot, word, true)? {
                return Ok(true);
            }
            // It moves along its chain at this moment; or its bucket says that it is in another one, which the lock of its own
            // puts right.
            self.note_wiped(self.index.lock(hash)?.wiped());
        }
        Ok(false)
    }

    /// The same, for an entry that a recovery would not bring back unless `comes_back`.
    ///
    /// # Errors
    /// If somebody holds the lock of its chain for long.
    pub(crate) fn remove(&self, slot: Slot, word: Word, comes_back: bool) -> Result<bool, Busy> {
        // Read before the lock is taken: the page may have to come from the disk.
        let header = self.header_of(word);
        let locked = self.index.lock_slot(slot)?;
        self.note_wiped(locked.wiped());
        if locked.word(slot) != word || !self.index.is_reached(slot) {
            return Ok(false);
        }
        locked.clear(slot);
        if comes_back {
            locked.note_lost();
        }
        match header {
            Some((generation, _)) => self.index.count_down(generation),
            // Nobody can say whether it counted. Too high a count is safe, and is put right later.
            None => self.index.set_wants_recount(true),
        }
        drop(locked);
        if let Some((_, len)) = header {
            self.index.add_live_bytes(word.segment(), -i64::from(len));
        }
        Ok(true)
    }

    /// Removes the entry if its record is expired or of an older generation. Says whether an entry that
    /// counted is gone. Of a pass, as [`remove_in_pass`](Engine::remove_in_pass).
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
            // The hint is wrong, perhaps from before a power cut. It is put right, so that nobody is misled again.
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

    /// Counts the entries of the current generation and corrects the count, unless others keep changing entries.
    ///
    /// The count and the entries change under bucket locks only. So if no lock was held or taken from before the count
    /// was read until after the entries were counted, both are of one moment, and their difference is what is
    /// wrong with the count, then and later.
    ///
    /// One at a time does: of two who find the same thing wrong, both would correct it.
    pub(crate) fn count_again(&self) {
        const ATTEMPTS: usize = 4;
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(Some(_turn)) = self.index.try_acquire(Role::Count) else { return };
        // Before it counts: who asks for a recount from here on may mean what is not seen below.
        self.index.set_wants_recount(false);
        let mut none_is_lost = false;
        for _ in 0..ATTEMPTS {
            // Or what the dead were about to move would count twice.
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
