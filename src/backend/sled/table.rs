//! The entries by key, by recency, and by slot.

use std::hash::RandomState;
use std::sync::Arc;

use hashlink::LinkedHashMap;

use crate::backend::Expiry;
use crate::backend::expiries::Expiries;
use crate::time::Timestamp;

/// What is known of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// What it counts against `max_bytes`: key and record.
    pub(super) bytes: u64,
    pub(super) expires_at: Expiry,
    pub(super) token: u64,
}

type Entries = LinkedHashMap<Arc<str>, (Entry, usize), RandomState>;

/// Least recently used first. An entry has a slot from its insertion to its removal, and no other
/// has it meanwhile.
#[derive(Default)]
pub(super) struct Table {
    entries: Entries,
    slots: Vec<Option<Arc<str>>>,
    free: Vec<usize>,
    bytes: u64,
    expiries: Expiries,
}

/// When the entry in `slot` expires, if there is one that does.
fn expiry_in(slots: &[Option<Arc<str>>], entries: &Entries, slot: usize) -> Expiry {
    entries.get(slots.get(slot)?.as_ref()?)?.0.expires_at
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
        if let Some((old, slot)) = self.entries.to_back(key) {
            self.bytes -= old.bytes;
            *old = entry;
            let slot = *slot;
            self.note_expiry(slot, entry.expires_at);
            return;
        }
        let (key, slot): (Arc<str>, _) = (key.into(), self.free.pop().unwrap_or(self.slots.len()));
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(key.clone());
        self.entries.insert(key, (entry, slot));
        self.note_expiry(slot, entry.expires_at);
    }

    fn note_expiry(&mut self, slot: usize, expires_at: Expiry) {
        let Self { entries, slots, expiries, .. } = self;
        expiries.note(slot, expires_at, entries.len(), |slot| expiry_in(slots, entries, slot));
    }

    /// An entry that has expired, if there is one, with its token. The caller removes it or
    /// [puts it back](Table::put_back).
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Option<(Arc<str>, u64)> {
        let Self { entries, slots, expiries, .. } = self;
        let slot = expiries.take_expired(now, |slot| expiry_in(slots, entries, slot))?;
        let (key, entry) = self.at(slot)?;
        Some((key.clone(), entry.token))
    }

    /// The entry of `key`, if it is still there, is to be found by its expiry again.
    pub(super) fn put_back(&mut self, key: &str) {
        if let Some(&(Entry { expires_at, .. }, slot)) = self.entries.get(key) {
            self.note_expiry(slot, expires_at);
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some((entry, slot)) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.slots[slot] = None;
            self.free.push(slot);
        }
    }
}
