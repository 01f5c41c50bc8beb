//! The slot of this process in the attach table: its number, and the name it goes by in locks.

use std::sync::Arc;

use crate::engine::format::index_header::MOST_PROCESSES;
use crate::sys::fork::OwnFile;

/// The number of a process takes the low bits of an owner.
pub(super) const NUMBER_BITS: u32 = 11;
pub(super) const NUMBER: u32 = (1 << NUMBER_BITS) - 1;
pub(super) const INCARNATION: u32 = u32::MAX >> NUMBER_BITS;
pub(super) const ATTACHED: u64 = 1 << 32;
const _: () = assert!(MOST_PROCESSES < NUMBER);

/// Who this process is among those that share an index.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSlot {
    /// The lock file; byte n stands for the process of number n. Without one, nobody else is alive.
    pub(super) locks: Option<Arc<OwnFile>>,
    /// 1 and up; 0 of an onlooker, who is not in the table.
    pub(super) number: u32,
    /// `incarnation | number`; what names this process.
    pub(super) owner: u32,
}

impl ProcessSlot {
    /// The process of this `number`, which nobody has, nor takes before it has [entered](Index::enter): the caller holds the
    /// attach mutex.
    pub(crate) fn new(locks: Arc<OwnFile>, number: u32) -> Self {
        Self { locks: Some(locks), number, owner: 0 }
    }

    /// One who looks on: nobody knows of it, and it changes nothing.
    pub(crate) fn read_only(locks: Arc<OwnFile>) -> Self {
        Self { locks: Some(locks), number: 0, owner: 0 }
    }

    /// The only one there is.
    pub(crate) fn alone() -> Self {
        Self { locks: None, number: 1, owner: 0 }
    }
}
