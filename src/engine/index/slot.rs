//! A slot of a bucket, what a probe says of the word in it, and what a walk along a chain found.

use super::bucket::Control;
use crate::engine::format::index_header::LINE;
use crate::engine::format::word::Word;

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
    pub(super) damaged: bool,
}

impl Found {
    /// Whether a recovery may bring an entry back that the chain does not have: it lost one, or somebody who may die may
    /// have stamped one.
    pub(crate) fn has_lost(&self) -> bool {
        self.control.has_lost() || self.control.is_locked()
    }
}
