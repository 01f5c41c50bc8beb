//! Accounting of the entries in memory: their number, sizes, expiries and order of last uses. The
//! tree keeps none of these, and counting its keys would read all of it.

use super::table::{Entry, Table};

/// Exact for the current generation: a writer holds the lock of the key's stripe while it changes
/// the tree and the accounting.
pub(super) struct Accounting {
    pub(super) table: Table,
    pub(super) generation: u32,
    /// The slot at which the sweep for expired entries continues.
    pub(super) swept: usize,
}

/// Why an attempt to store an entry must be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The key's record or the generation has changed since it was read.
    Changed,
    /// The cache has `max_entries` entries.
    Full,
    /// The entry needs this many bytes more, beyond `max_bytes`.
    Large(u64),
}

impl Accounting {
    pub(super) fn new(generation: u32) -> Self {
        Self { table: Table::default(), generation, swept: 0 }
    }

    /// Counts the entry before it is stored, so that the bounds hold at any time. Returns the
    /// entry that it replaces.
    pub(super) fn reserve(
        &mut self,
        key: &str,
        entry: Entry,
        generation: u32,
        max_entries: u64,
        max_bytes: u64,
    ) -> Result<Option<Entry>, Retry> {
        let before = self.table.get(key).copied();
        let more = entry.bytes.saturating_sub(before.map_or(0, |b| b.bytes));
        match before {
            _ if generation != self.generation => Err(Retry::Changed),
            None if self.table.len() >= max_entries => Err(Retry::Full),
            _ if self.table.bytes() + more > max_bytes => Err(Retry::Large(more)),
            before => {
                self.table.put(key, entry);
                Ok(before)
            }
        }
    }

    /// Undoes `reserve` in `generation`, because the entry was not stored.
    pub(super) fn restore(&mut self, key: &str, before: Option<Entry>, generation: u32) {
        if generation == self.generation {
            match before {
                Some(entry) => self.table.put(key, entry),
                None => self.table.remove(key),
            }
        }
    }
}
