//! Changes to a chain by the holder of its lock: storing and clearing words, growing, shrinking.
//!
//! Each change is one store of one word, so readers, which take no lock, always see a valid chain.
//! The check of an overflow bucket is stored right after its words, that of the primary at the
//! unlock. Before the first change, [`verify`](Locked::verify) wipes damaged buckets.

use super::bucket::{Bucket, Control, LAST_SLOT, SLOTS};
use super::lock::Locked;
use super::slot::{Found, Slot};
use crate::engine::format::index_header::MAX_CHAIN;
use crate::engine::format::word::Word;

impl Locked<'_> {
    /// Whether nothing in the chain changed since `found`.
    pub(crate) fn unchanged_since(&self, found: &Found) -> bool {
        // If the chain was locked at that time, its owner may have changed it afterwards.
        !found.control.is_locked() && self.before == found.control && self.wiped == 0
    }

    /// How many entries were wiped because something outside the engine wrote into their bucket.
    pub(crate) fn wiped(&self) -> usize {
        self.wiped
    }

    pub(crate) fn word(&self, slot: Slot) -> Word {
        self.index.word(slot)
    }

    /// Notes that the chain loses an entry that no caller asked to remove: a recovery may bring it
    /// back.
    pub(crate) fn note_lost(&self) {
        self.lost.set(true);
    }

    /// Whether the chain ever lost such an entry.
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

    /// Empties `slot`, and frees the empty overflow buckets at the end of the chain.
    pub(crate) fn clear(&self, slot: Slot) {
        self.set(slot, Word::EMPTY);
        while self.bucket.link().is_some() && self.unlink_empty_end() {}
    }

    /// Unlinks the last bucket of the chain if it is empty. Returns whether it did.
    fn unlink_empty_end(&self) -> bool {
        let (mut before, mut bucket) = (self.primary, self.bucket);
        for _ in 0..MAX_CHAIN {
            let Some((end, end_bucket)) = self.index.next_of(bucket) else { return false };
            if end_bucket.link().is_none() {
                let empty = end_bucket.is_empty();
                if empty {
                    self.set(Slot::new(before, LAST_SLOT), Word::EMPTY);
                    self.index.free_overflow(end, end_bucket);
                }
                return empty;
            }
            (before, bucket) = (end, end_bucket);
        }
        false
    }

    /// An empty slot in the buckets that the chain has.
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

    /// An empty slot, in a new overflow bucket if necessary.
    ///
    /// # Errors
    /// If the chain cannot grow. Then the caller evicts an entry of the chain.
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

    /// Links a new overflow bucket behind `last`, and moves the last word of `last` into it.
    /// Keeps invariant I12: the word is in its new slot before it leaves the old one.
    fn extend(&self, last: u32, bucket: Bucket<'_>) -> Result<Vacancy, ChainFull> {
        let new = self.index.allocate_overflow().ok_or(ChainFull)?;
        let (from, to) = (Slot::new(last, LAST_SLOT), Slot::new(new, SLOTS.start));
        // Before the first word: a process that sees a word and locks its chain reads the primary
        // from this control word.
        if let Some(bucket) = self.index.bucket(new) {
            bucket.set_control(Control::of_overflow(0, self.primary));
        }
        self.set(to, bucket.word(LAST_SLOT));
        self.set(from, Word(u64::from(new)));
        Ok(Vacancy { slot: Slot::new(new, SLOTS.start + 1), moved: Some((from, to)) })
    }

    /// Calls `visit` for each slot of the chain that holds an entry.
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

    /// Wipes the first bucket with a wrong check, or unlinks it if it belongs to another chain:
    /// none of its words is valid, its link neither.
    pub(super) fn verify(&mut self) {
        let (mut number, mut bucket) = (self.primary, self.bucket);
        let mut before = number;
        for length in 1..=MAX_CHAIN {
            let control = if length == 1 { self.before } else { bucket.control() };
            if length > 1 && control.primary() != self.primary {
                // The link is wrong: the bucket belongs to another chain.
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

/// An empty slot for one more entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vacancy {
    pub(crate) slot: Slot,
    /// The old and the new slot of the entry that moved because the chain grew. Its hint, which is
    /// stored by slot, must move too.
    pub(crate) moved: Option<(Slot, Slot)>,
}

/// A chain has no empty slot and cannot grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChainFull;
