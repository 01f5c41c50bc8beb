//! A slot of a bucket, and the types of a lookup: [`Probe`], the answer about one word, and
//! [`Found`], the result of a walk along a chain.

use super::bucket::Control;
use crate::engine::format::index_header::LINE;
use crate::engine::format::word::Word;

/// The position of an entry word: bucket and slot in one number, the same in the index and in the
/// hints.
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

/// What the record of a word with the right tag turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A record of this key.
    Match,
    /// A record of another key.
    Other,
    /// The record cannot be read.
    Unreadable,
}

/// The result of a walk along a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    /// The control word of the primary before the walk.
    pub(crate) control: Control,
    /// The slot and the word of the key.
    pub(crate) entry: Option<(Slot, Word)>,
    /// The first slot whose word has the tag of the key and whose record cannot be read.
    pub(crate) unreadable: Option<(Slot, Word)>,
    /// Whether the walk saw a wrong check.
    pub(super) damaged: bool,
}

impl Found {
    /// Whether a recovery may bring back an entry that the chain does not have: the chain lost one,
    /// or its owner may have stamped one and may die before it publishes it.
    pub(crate) fn has_lost(&self) -> bool {
        self.control.has_lost() || self.control.is_locked()
    }
}
