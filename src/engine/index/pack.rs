//! Copies of chains, for a snapshot: out of the index, each as it is at one moment, and back into
//! an empty index.

use super::Index;
use super::bucket::{Bucket, Control, SLOTS};
use super::locked_chain::Vacancy;
use crate::engine::format::index_header::LINE;
use crate::engine::format::index_header::MAX_CHAIN;
use crate::engine::format::word::Word;
use crate::sys::wait::Backoff;

/// The words of one chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// The words of the primary bucket, in the order of its slots.
    pub(crate) primary: [Word; LINE - 1],
    /// The words of the overflow buckets, in any order.
    pub(crate) overflow: Vec<Word>,
}

impl Index {
    /// Copies the words of chain `primary` as they are at one moment at which it is not locked.
    /// Returns `false` if there was no such moment within about half a second.
    pub(crate) fn pack(&self, primary: u32, packed: &mut Packed) -> bool {
        let Some(first) = self.bucket(primary) else { return false };
        let mut wait = Backoff::default();
        loop {
            let control = first.control();
            if !control.is_locked() {
                self.copy_chain(primary, control, first, packed);
                if first.control() == control {
                    return true;
                }
            } else if wait.should_check_owner() && self.lock_primary(primary).is_err() {
                // The owner is alive. The lock of a dead owner would have been taken over and
                // freed.
                return false;
            }
            if wait.is_long() {
                return false;
            }
            wait.pause();
        }
    }

    /// Copies the chain up to the first damaged bucket: readers reject its words too.
    fn copy_chain(&self, primary: u32, control: Control, first: Bucket<'_>, packed: &mut Packed) {
        packed.primary = [Word::EMPTY; LINE - 1];
        packed.overflow.clear();
        let (mut bucket, mut control) = (first, control);
        for length in 1..=MAX_CHAIN {
            if self.is_damaged_bucket(primary, length, control, bucket) {
                return;
            }
            let words = SLOTS.map(|slot| bucket.word(slot));
            if length == 1 {
                for (copy, word) in packed.primary.iter_mut().zip(words) {
                    *copy = if word.is_entry() { word } else { Word::EMPTY };
                }
            } else {
                packed.overflow.extend(words.filter(|word| word.is_entry()));
            }
            match self.next_of(bucket) {
                Some((_, next)) => (bucket, control) = (next, next.control()),
                None => return,
            }
        }
    }

    /// Fills the empty chain `primary`: `words` into their slots, and `overflow` into any empty
    /// slots. No other process uses the index. Returns how many words it stored.
    pub(crate) fn unpack(&self, primary: u32, words: &[(usize, Word)], overflow: &[Word]) -> u64 {
        if primary >= self.geometry.primaries {
            return 0;
        }
        let Some(bucket) = self.bucket(primary) else { return 0 };
        let mut placed = 0;
        for (slot, word) in words.iter().filter(|(_, word)| word.is_entry()) {
            bucket.set_word(SLOTS.start + slot, *word);
            placed += 1;
        }
        bucket.set_control(Control::unlocked_first(bucket.computed_check()));
        if !overflow.is_empty() {
            let Ok(locked) = self.lock_primary(primary) else { return placed };
            for word in overflow.iter().filter(|word| word.is_entry()) {
                let Ok(Vacancy { slot, .. }) = locked.vacant() else { break };
                locked.set(slot, *word);
                placed += 1;
            }
        }
        placed
    }
}
