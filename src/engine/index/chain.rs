//! A chain: the primary bucket of a key and the overflow buckets linked behind it. This file reads
//! chains without a lock; [`lock`](super::lock) locks them, [`locked_chain`](super::locked_chain)
//! changes them.
//!
//! Readers load words and take no lock. A writer holds the lock of the primary, which covers the
//! whole chain. An entry never moves to another slot, with one exception: when a chain grows, the
//! last word of its last bucket is copied to the first slot of a new overflow bucket before the
//! link replaces it. So a reader that walks a chain once sees each entry that stays.
//!
//! When the last overflow bucket of a chain becomes empty, it is unlinked and put on a free list.
//! Otherwise, in time, every chain that was ever long would keep one. A reader that is still in
//! this bucket misses nothing, because it was empty. Later the bucket may hold words of other
//! chains; a reader compares keys, so it rejects them.

use super::Index;
use super::bucket::{Bucket, Control, SLOTS};
use super::slot::{Found, Probe, Slot};
use crate::engine::format::index_header::MAX_CHAIN;
use crate::engine::format::word::Word;

impl Index {
    /// Walks the chain of `hash` and calls `probe` for each word with its tag, until one matches.
    pub(crate) fn find(&self, hash: u64, mut probe: impl FnMut(Word) -> Probe) -> Found {
        let primary = self.primary_of(hash);
        let mut found =
            Found { control: Control(0), entry: None, unreadable: None, damaged: false };
        let Some(bucket) = self.bucket(primary) else { return found };
        found.control = bucket.control();
        let (mut number, mut bucket) = (primary, bucket);
        for length in 1..=MAX_CHAIN {
            let control = if length == 1 { found.control } else { bucket.control() };
            found.damaged |= self.is_damaged_bucket(primary, length, control, bucket);
            for slot in SLOTS {
                let word = bucket.word(slot);
                if !word.is_entry() || !word.has_tag_of(hash) {
                    continue;
                }
                match probe(word) {
                    Probe::Match => {
                        found.entry = Some((Slot::new(number, slot), word));
                        return found;
                    }
                    Probe::Unreadable if found.unreadable.is_none() => {
                        found.unreadable = Some((Slot::new(number, slot), word));
                    }
                    Probe::Unreadable | Probe::Other => {}
                }
            }
            match self.next_of(bucket) {
                Some(next) => (number, bucket) = next,
                None => break,
            }
        }
        found
    }

    /// Whether [`find`](Index::find) saw damage: words with a wrong check although no process was
    /// changing them.
    pub(crate) fn is_damaged(&self, hash: u64, found: &Found) -> bool {
        found.damaged && !found.control.is_locked() && self.control(hash) == found.control
    }

    /// Whether a bucket has a wrong check, or belongs to another chain. A locked primary has no
    /// check; its owner checked it when it locked.
    pub(super) fn is_damaged_bucket(
        &self,
        primary: u32,
        length: usize,
        control: Control,
        bucket: Bucket<'_>,
    ) -> bool {
        if length == 1 && control.is_locked() {
            return false;
        }
        control.check() != bucket.computed_check() || (length > 1 && control.primary() != primary)
    }

    /// The overflow bucket that `bucket` links to. A link to anything else is damage, and ignored.
    pub(super) fn next_of(&self, bucket: Bucket<'_>) -> Option<(u32, Bucket<'_>)> {
        let link = bucket.link().filter(|number| *number >= self.geometry.primaries)?;
        Some((link, self.bucket(link)?))
    }

    /// The control word of the primary bucket of `hash`.
    pub(crate) fn control(&self, hash: u64) -> Control {
        self.bucket(self.primary_of(hash)).map_or(Control(0), Bucket::control)
    }

    /// The sum of the versions of all chains: if it is the same twice, no chain was unlocked in
    /// between. `None` if a chain is locked.
    pub(crate) fn unlocks(&self) -> Option<u64> {
        (0..self.geometry.primaries).try_fold(0u64, |sum, primary| {
            let control = self.bucket(primary)?.control();
            (!control.is_locked()).then(|| sum.wrapping_add(control.version()))
        })
    }

    /// The word that is in `slot` now.
    pub(crate) fn word(&self, slot: Slot) -> Word {
        self.bucket(slot.bucket()).map_or(Word::EMPTY, |b| b.word(slot.within()))
    }

    /// The number of the chain that contains `slot`.
    pub(crate) fn primary_of_slot(&self, slot: Slot) -> u32 {
        let number = slot.bucket();
        let primary = match self.bucket(number) {
            Some(bucket) if number >= self.geometry.primaries => bucket.control().primary(),
            _ => number,
        };
        primary.min(self.geometry.primaries - 1)
    }

    /// All entry words with their slots, bucket by bucket. A bucket may be one that a process was
    /// about to link when it died: see [`is_reached`](Index::is_reached).
    pub(crate) fn entries(
        &self,
        buckets: std::ops::Range<u32>,
    ) -> impl Iterator<Item = (Slot, Word)> + '_ {
        buckets.filter_map(|number| Some((number, self.bucket(number)?))).flat_map(
            |(number, bucket)| {
                SLOTS
                    .map(move |slot| (Slot::new(number, slot), bucket.word(slot)))
                    .filter(|(_, w)| w.is_entry())
            },
        )
    }

    /// All entry words that a lookup can reach, with their slots. Costs more than
    /// [`entries`](Index::entries): it walks the chain of each overflow bucket.
    pub(crate) fn reached_entries(&self) -> impl Iterator<Item = (Slot, Word)> + '_ {
        let linked = (0..self.geometry.buckets).filter(|number| self.is_linked(*number));
        linked.flat_map(|number| self.entries(number..number + 1))
    }

    /// Whether a lookup can reach `slot`. The chain is locked.
    pub(crate) fn is_reached(&self, slot: Slot) -> bool {
        self.is_linked(slot.bucket())
    }

    /// Whether bucket `number` is linked in the chain that it names. A bucket that a process was
    /// about to link when it died is in no chain; its word is a copy of one that is.
    fn is_linked(&self, number: u32) -> bool {
        if number < self.geometry.primaries {
            return true;
        }
        let Some(primary) = self.bucket(number).map(|bucket| bucket.control().primary()) else {
            return false;
        };
        let mut last = self.bucket(primary).filter(|_| primary < self.geometry.primaries);
        for _ in 1..MAX_CHAIN {
            match last.and_then(|bucket| self.next_of(bucket)) {
                Some((next, _)) if next == number => return true,
                Some((_, next)) => last = Some(next),
                None => return false,
            }
        }
        false
    }

    /// The entry words of one chain, up to the first damaged bucket.
    pub(crate) fn chain_words(&self, primary: u32) -> Vec<Word> {
        let mut words = Vec::new();
        let mut next = self.bucket(primary);
        for length in 1..=MAX_CHAIN {
            let Some(bucket) = next else { break };
            let control = bucket.control();
            let found = SLOTS.map(|slot| bucket.word(slot)).filter(|w| w.is_entry());
            let found: Vec<Word> = found.collect();
            if self.is_damaged_bucket(primary, length, control, bucket)
                && bucket.control() == control
            {
                break;
            }
            // A word that moved to the next bucket meanwhile is seen twice.
            for word in found {
                if !words.contains(&word) {
                    words.push(word);
                }
            }
            next = self.next_of(bucket).map(|(_, next)| next);
        }
        words
    }

    /// The buckets with a wrong check. Skips chains that a process is changing.
    pub(crate) fn damaged_buckets(&self) -> Vec<u32> {
        let damaged_in = |primary| {
            let control = || self.bucket(primary).map(Bucket::control);
            let before = control();
            let damaged = self.damaged_in_chain(primary);
            let is_at_rest =
                control() == before && before.is_some_and(|control| !control.is_locked());
            if is_at_rest { damaged } else { Vec::new() }
        };
        (0..self.geometry.primaries).flat_map(damaged_in).collect()
    }

    fn damaged_in_chain(&self, primary: u32) -> Vec<u32> {
        let mut damaged = Vec::new();
        let mut next = self.bucket(primary).map(|bucket| (primary, bucket));
        for length in 1..=MAX_CHAIN {
            let Some((number, bucket)) = next else { break };
            if self.is_damaged_bucket(primary, length, bucket.control(), bucket) {
                damaged.push(number);
            }
            next = self.next_of(bucket);
        }
        damaged
    }
}
