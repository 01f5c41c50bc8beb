//! The entries by key, by recency, and by slot.

use std::hash::RandomState;
use std::sync::Arc;

use hashlink::LinkedHashMap;

use crate::backend::Expiry;
use crate::time::Timestamp;

/// What is known of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// What it counts against `max_bytes`: key and record.
    pub(super) bytes: u64,
    pub(super) expires_at: Expiry,
    pub(super) token: u64,
}

impl Entry {
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Least recently used first. An entry has a slot from its insertion to its removal, and no other
/// has it meanwhile.
#[derive(Default)]
pub(super) struct Table {
    entries: LinkedHashMap<Arc<str>, (Entry, usize), RandomState>,
    slots: Vec<Option<Arc<str>>>,
    free: Vec<usize>,
    bytes: u64,
}

impl Table {
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// What all entries count against `max_bytes`.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One more than the last slot that was ever in use.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry of `key`, its recency unchanged.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).map(|(entry, _)| entry)
    }

    /// Makes the entry of `key` the most recently used one.
    pub(super) fn use_entry(&mut self, key: &str) {
        self.entries.to_back(key);
    }

    /// The entry in `slot`, its recency unchanged.
    pub(super) fn at(&self, slot: usize) -> Option<(&Arc<str>, &Entry)> {
        let key = self.slots.get(slot)?.as_ref()?;
        Some((key, self.get(key)?))
    }

    /// The entries, the least recently used one first.
    pub(super) fn coldest(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.entries.iter().map(|(key, (entry, _))| (key, entry))
    }

    /// Enters the entry of `key`, in place of its old one, as the most recently used one.
    pub(super) fn put(&mut self, key: &str, entry: Entry) {
        self.bytes += entry.bytes;
        if let Some((old, _)) = self.entries.to_back(key) {
            self.bytes -= old.bytes;
            *old = entry;
            return;
        }
        let (key, slot): (Arc<str>, _) = (key.into(), self.free.pop().unwrap_or(self.slots.len()));
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(key.clone());
        self.entries.insert(key, (entry, slot));
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some((entry, slot)) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.slots[slot] = None;
            self.free.push(slot);
        }
    }
}
