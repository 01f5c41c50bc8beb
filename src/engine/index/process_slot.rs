//! The slot of this process in the attach table, and the [`Owner`] that names a process.
//!
//! A slot is a number. It selects a row of the attach table and a byte of the lock file. Numbers
//! are reused, so locks and segments name a process by an [`Owner`]: number and incarnation.

use std::sync::Arc;

use crate::engine::format::index_header::MOST_PROCESSES;
use crate::sys::fork::OwnFile;

/// The low bits of an owner are the number of the process.
const NUMBER_BITS: u32 = 11;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;
/// The bits of an incarnation.
pub(super) const INCARNATION: u32 = u32::MAX >> NUMBER_BITS;
/// The bit of a row's first word that says that the process is attached.
pub(super) const ATTACHED: u64 = 1 << 32;
const _: () = assert!(MOST_PROCESSES < NUMBER);

/// What names a process in locks and segments: `incarnation (21 bits) | number (11)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// No process.
    pub(crate) const NONE: Self = Self(0);

    pub(super) fn new(incarnation: u32, number: u32) -> Self {
        Self(incarnation << NUMBER_BITS | number)
    }

    /// The owner that a word of the index stores.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The owner as words of the index store it.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    pub(super) fn number(self) -> u32 {
        self.0 & NUMBER
    }

    pub(super) fn incarnation(self) -> u32 {
        self.0 >> NUMBER_BITS
    }
}

/// The slot of this process in the attach table of an index.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSlot {
    /// The lock file; byte n stands for the process with number n. Without a lock file, no other
    /// process uses the index.
    pub(super) locks: Option<Arc<OwnFile>>,
    /// 1 and up; 0 for an observer, which has no row in the table.
    pub(super) number: u32,
    /// The owner that this process is; [`Owner::NONE`] until it has
    /// [entered](super::Index::enter).
    pub(super) owner: Owner,
}

impl ProcessSlot {
    /// The slot with this `number`. No process has the number, and no other takes it before this
    /// one has [entered](super::Index::enter): the caller holds the attach mutex.
    pub(crate) fn new(locks: Arc<OwnFile>, number: u32) -> Self {
        Self { locks: Some(locks), number, owner: Owner::NONE }
    }

    /// The slot of an observer: it has no row in the table, and it changes nothing.
    pub(crate) fn read_only(locks: Arc<OwnFile>) -> Self {
        Self { locks: Some(locks), number: 0, owner: Owner::NONE }
    }

    /// The slot of the only process that uses the index.
    pub(crate) fn alone() -> Self {
        Self { locks: None, number: 1, owner: Owner::NONE }
    }
}
