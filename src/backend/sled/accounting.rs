//! What is known of the entries without asking the tree: how many there are, how large, when each
//! ends, and in what order they were used. The tree has nothing of that, and counting its keys
//! would read all of it.

use super::table::{Entry, Table};

/// Exact for the current generation: who changes an entry holds the lock of its stripe, so that the
/// tree and the books change together.
pub(super) struct Books {
    pub(super) table: Table,
    pub(super) generation: u32,
    /// Where the look for expired entries goes on.
    pub(super) swept: usize,
}

/// Why an entry cannot be put down now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The key's record, or the generation, is another one by now.
    Changed,
    /// There are as many entries as there may be.
    Full,
    /// There is no room for so many bytes more.
    Large(u64),
}

impl Books {
    pub(super) fn new(generation: u32) -> Self {
        Self { table: Table::default(), generation, swept: 0 }
    }

    /// Puts the entry down before it is stored, so that the bounds hold at any time. Returns what
    /// it replaces.
    pub(super) fn reserve(
        &mut self,
        key: &str,
        entry: Entry,
        generation: u32,
        max_entries: u64,
        max_bytes: u64,
    ) -> Result<Option<Entry>, Again> {
        let before = self.table.get(key).copied();
        let more = entry.bytes.saturating_sub(before.map_or(0, |b| b.bytes));
        match before {
            _ if generation != self.generation => Err(Again::Changed),
            None if self.table.len() >= max_entries => Err(Again::Full),
            _ if self.table.bytes() + more > max_bytes => Err(Again::Large(more)),
            before => {
                self.table.put(key, entry);
                Ok(before)
            }
        }
    }

    /// Takes back a reservation of `generation`: the entry was not stored.
    pub(super) fn restore(&mut self, key: &str, before: Option<Entry>, generation: u32) {
        if generation == self.generation {
            match before {
                Some(entry) => self.table.put(key, entry),
                None => self.table.remove(key),
            }
        }
    }
}
