//! A key's chain: its primary bucket and the overflow buckets linked behind it. Finding, locking, changing.
//!
//! Readers load words and take no lock. Writers hold the primary's lock for the whole chain. An entry never
//! moves to another slot, except that the last word of a bucket moves to the first slot of a new overflow
//! bucket before the link replaces it; so a reader who walks a chain once sees each entry that stays.
//!
//! An overflow bucket at the end of its chain that has become empty is unlinked and kept on a free list, or in
//! time every chain that was ever long would hold one. A reader who still walks into it misses nothing, since it
//! was empty, and what it may find there later are words of other keys, which it compares and passes over.

use super::bucket::{Bucket, Control, LAST_SLOT, SLOTS};
use super::lock::Locked;
use super::{Index, LINE, Word};

/// No chain is longer; what would make it so replaces the coldest of its entries.
pub(super) const MAX_CHAIN: usize = 16;
/// The most entries of one.
pub(crate) const LONGEST_CHAIN: usize = MAX_CHAIN * (LINE - 1);

/// The place of an entry word: bucket and slot in one number, the same in the index and in the hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u64);

impl Slot {
    pub(super) fn new(bucket: u32, slot: usize) -> Self {
        Self(u64::from(bucket) * LINE as u64 + slot as u64)
    }

    pub(super) fn bucket(self) -> u32 {
        (self.0 / LINE as u64) as u32
    }

    pub(super) fn within(self) -> usize {
        self.0 as usize % LINE
    }

    /// The number of this slot among all words of all buckets.
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_number(number: usize) -> Self {
        Self(number as u64)
    }
}

/// What a probe says of a word whose tag fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// It is this key's.
    Match,
    /// It is another key's.
    Other,
    /// Nobody can say.
    Unreadable,
}

/// What a walk along a chain found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    /// The primary's control word before the walk.
    pub(crate) control: Control,
    /// The key's slot and word.
    pub(crate) entry: Option<(Slot, Word)>,
    /// A slot whose word has the key's tag and cannot be read: the first.
    pub(crate) unreadable: Option<(Slot, Word)>,
    /// Whether the walk saw words that do not fit their check.
    damaged: bool,
}

impl Found {
    /// Whether a recovery may bring an entry back that the chain does not have: it lost one, or somebody who may die may
    /// have stamped one.
    pub(crate) fn has_lost(&self) -> bool {
        self.control.has_lost() || self.control.is_locked()
    }
}

impl Index {
    /// Walks the chain of `hash` and asks `probe` about each word with its tag.
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

    /// Whether what [`find`](Index::find) saw was damaged: words that did not fit their check although nobody
    /// was changing them.
    pub(crate) fn is_damaged(&self, hash: u64, found: &Found) -> bool {
        found.damaged && !found.control.is_locked() && self.control(hash) == found.control
    }

    /// Whether the words of a bucket do not fit its control word, or it is of another chain. A locked one has no
    /// check; its holder sees to it.
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

    /// The overflow bucket that `bucket` links to. A link to anything else is damage and leads nowhere.
    pub(super) fn next_of(&self, bucket: Bucket<'_>) -> Option<(u32, Bucket<'_>)> {
        let link = bucket.link().filter(|number| *number >= self.geometry.primaries)?;
        Some((link, self.bucket(link)?))
    }

    /// The control word of the primary bucket of `hash`.
    pub(crate) fn control(&self, hash: u64) -> Control {
        self.bucket(self.primary_of(hash)).map_or(Control(0), Bucket::control)
    }

    /// The versions of all chains, summed up: the same twice if none was unlocked in between. `None` if one is
    /// locked.
    pub(crate) fn unlocks(&self) -> Option<u64> {
        (0..self.geometry.primaries).try_fold(0u64, |sum, primary| {
            let control = self.bucket(primary)?.control();
            (!control.is_locked()).then(|| sum.wrapping_add(control.version()))
        })
    }

    /// The word in `slot` now.
    pub(crate) fn word(&self, slot: Slot) -> Word {
        self.bucket(slot.bucket()).map_or(Word::EMPTY, |b| b.word(slot.within()))
    }

    /// The number of the chain that `slot` is in.
    pub(crate) fn primary_of_slot(&self, slot: Slot) -> u32 {
        let number = slot.bucket();
        let primary = match self.bucket(number) {
            Some(bucket) if number >= self.geometry.primaries => bucket.control().primary(),
            _ => number,
        };
        primary.min(self.geometry.primaries - 1)
    }

    /// All entry words with their slots, one bucket after the other. Some may be in buckets that a process was about to link
    /// when it died: see [`is_reached`](Index::is_reached).
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

    /// All entry words that a key leads to, with their slots. Costs more.
    pub(crate) fn reached_entries(&self) -> impl Iterator<Item = (Slot, Word)> + '_ {
        let linked = (0..self.geometry.buckets).filter(|number| self.is_linked(*number));
        linked.flat_map(|number| self.entries(number..number + 1))
    }

    /// Whether a key may lead to what is in `slot`, whose chain is locked.
    pub(crate) fn is_reached(&self, slot: Slot) -> bool {
        self.is_linked(slot.bucket())
    }

    /// Whether bucket `number` is in the chain that it says it is in. One that a process was about to link when it died is
    /// in none, and what it holds is a copy.
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

    /// The entry words of one primary's chain, as far as it is not damaged.
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
            // One that moved to the next bucket meanwhile is seen twice.
            for word in found {
                if !words.contains(&word) {
                    words.push(word);
                }
            }
            next = self.next_of(bucket).map(|(_, next)| next);
        }
        words
    }

    /// Buckets whose words do not fit their check, for `check`. A chain that somebody changes is passed over.
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
