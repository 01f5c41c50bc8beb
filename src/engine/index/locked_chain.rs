//! Changes to a chain whose lock is held.

use super::bucket::{Bucket, Control, LAST_SLOT, SLOTS};
use super::lock::Locked;
use super::slot::{Found, Slot};
use crate::engine::format::index_header::MAX_CHAIN;
use crate::engine::format::word::Word;

impl Locked<'_> {
    /// Whether nothing in the chain changed since `found`.
    pub(crate) fn unchanged_since(&self, found: &Found) -> bool {
        // Its holder may have changed it after it was looked at.
        !found.control.is_locked() && self.before == found.control && self.wiped == 0
    }

    /// How many entries were wiped because something else than the engine had written over them.
    pub(crate) fn wiped(&self) -> usize {
        self.wiped
    }

    pub(crate) fn word(&self, slot: Slot) -> Word {
        self.index.word(slot)
    }

    /// Notes that the chain loses an entry which nobody asked to remove: a recovery may bring it back.
    pub(crate) fn note_lost(&self) {
        self.lost.set(true);
    }

    /// Whether the chain ever lost an entry so.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost.get() || self.before.has_lost()
    }

    /// The number of the chain.
    pub(crate) fn primary(&self) -> u32 {
        self.primary
    }

    /// Stores `word`, which may be empty, in `slot` of this chain.
    /// Keeps invariant I11.
    pub(crate) fn set(&self, slot: Slot, word: Word) {
        let number = slot.bucket();
        if let Some(bucket) = self.index.bucket(number) {
            bucket.set_word(slot.within(), word);
            if number != self.primary {
                bucket.set_control(Control::of_overflow(bucket.computed_check(), self.primary));
            }
        }
    }

    /// Empties `slot`, and gives back the overflow buckets at the end of the chain that hold nothing any more.
    pub(crate) fn clear(&self, slot: Slot) {
        self.set(slot, Word::EMPTY);
        while self.bucket.link().is_some() && self.unlink_empty_end() {}
    }

    /// Unlinks the last bucket of the chain if it is empty. Says whether it did.
    fn unlink_empty_end(&self) -> bool {
        let (mut before, mut bucket) = (self.primary, self.bucket);
        for _ in 0..MAX_CHAIN {
            let Some((end, end_bucket)) = self.index.next_of(bucket) else { return false };
            if end_bucket.link().is_none() {
                let empty = end_bucket.is_empty();
                if empty {
                    self.set(Slot::new(before, LAST_SLOT), Word::EMPTY);
                    self.index.give_back_overflow(end, end_bucket);
                }
                return empty;
            }
            (before, bucket) = (end, end_bucket);
        }
        false
    }

    /// An empty slot of the chain as it is.
    pub(crate) fn empty_slot(&self) -> Option<Slot> {
        let (mut number, mut bucket) = (self.primary, self.bucket);
        for _ in 0..MAX_CHAIN {
            if let Some(slot) = SLOTS.into_iter().find(|s| bucket.word(*s) == Word::EMPTY) {
                return Some(Slot::new(number, slot));
            }
            (number, bucket) = self.index.next_of(bucket)?;
        }
        None
    }

    /// An empty slot, from a new overflow bucket if need be. Refused if there is no room for one more: the
    /// caller gives up an entry of the chain.
    pub(crate) fn vacant(&self) -> Result<Vacancy, ChainFull> {
        if let Some(slot) = self.empty_slot() {
            return Ok(Vacancy { slot, moved: None });
        }
        let (mut number, mut bucket) = (self.primary, self.bucket);
        for _ in 1..MAX_CHAIN {
            match self.index.next_of(bucket) {
                Some(next) => (number, bucket) = next,
                None => return self.extend(number, bucket),
            }
        }
        Err(ChainFull)
    }

    /// Links a new overflow bucket behind `last`, whose last word moves there.
    /// Keeps invariant I12: the word is in its new slot before it leaves the old one.
    fn extend(&self, last: u32, bucket: Bucket<'_>) -> Result<Vacancy, ChainFull> {
        let taken = self.index.take_overflow().ok_or(ChainFull)?;
        let (from, to) = (Slot::new(last, LAST_SLOT), Slot::new(taken, SLOTS.start));
        // Before a word is there: whoever sees one and wants to lock its chain asks the bucket for the primary.
        if let Some(bucket) = self.index.bucket(taken) {
            bucket.set_control(Control::of_overflow(0, self.primary));
        }
        self.set(to, bucket.word(LAST_SLOT));
        self.set(from, Word(u64::from(taken)));
        Ok(Vacancy { slot: Slot::new(taken, SLOTS.start + 1), moved: Some((from, to)) })
    }

    /// Every slot of the chain that holds an entry.
    pub(crate) fn slots(&self, mut visit: impl FnMut(Slot, Word)) {
        let (mut number, mut bucket) = (self.primary, self.bucket);
        for _ in 0..MAX_CHAIN {
            for slot in SLOTS {
                let word = bucket.word(slot);
                if word.is_entry() {
                    visit(Slot::new(number, slot), word);
                }
            }
            match self.index.next_of(bucket) {
                Some(next) => (number, bucket) = next,
                None => return,
            }
        }
    }

    /// Empties what does not fit its check: nothing that it says can be believed.
    pub(super) fn verify(&mut self) {
        let (mut number, mut bucket) = (self.primary, self.bucket);
        let mut before = number;
        for length in 1..=MAX_CHAIN {
            let control = if length == 1 { self.before } else { bucket.control() };
            if length > 1 && control.primary() != self.primary {
                // Not of this chain, whatever the link says.
                self.lost.set(true);
                self.wiped += 1;
                self.set(Slot::new(before, LAST_SLOT), Word::EMPTY);
                return;
            }
            if control.check() != bucket.computed_check() {
                self.lost.set(true);
                self.wiped += SLOTS.filter(|s| bucket.word(*s).is_entry()).count().max(1);
                for slot in SLOTS {
                    self.set(Slot::new(number, slot), Word::EMPTY);
                }
                return;
            }
            match self.index.next_of(bucket) {
                Some(next) => (before, (number, bucket)) = (number, next),
                None => return,
            }
        }
    }
}

/// A place for one more entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vacancy {
    pub(crate) slot: Slot,
    /// The entry that moved, from where to where, because the chain grew: what is kept by slot moves with it.
    pub(crate) moved: Option<(Slot, Slot)>,
}

/// A chain has no room for one more entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainFull;
