//! What the backends that cull exactly know of their entries: by key, by recency, and by slot.

use std::hash::RandomState;
use std::mem;
use std::sync::Arc;

use hashlink::LinkedHashMap;

use super::Expiry;
use crate::time::Timestamp;

/// What is known of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<V> {
    pub(super) value: V,
    /// What it counts against `max_bytes`.
    pub(super) bytes: u64,
    pub(super) expires_at: Expiry,
    pub(super) token: u64,
}

impl<V> Entry<V> {
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        has_passed(self.expires_at, now)
    }
}

pub(super) fn has_passed(expires_at: Expiry, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

struct Node<V> {
    entry: Entry<V>,
    slot: usize,
}

/// All entries, least recently used first. An entry has a slot from its insertion to its removal, and no
/// other has it meanwhile.
pub(super) struct Table<V> {
    entries: LinkedHashMap<Arc<str>, Node<V>, RandomState>,
    slots: Vec<Option<Arc<str>>>,
    free: Vec<usize>,
    bytes: u64,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { entries: LinkedHashMap::default(), slots: Vec::new(), free: Vec::new(), bytes: 0 }
    }
}

impl<V> Table<V> {
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
    pub(super) fn get(&self, key: &str) -> Option<&Entry<V>> {
        self.entries.get(key).map(|node| &node.entry)
    }

    /// The entry of `key`, from now on the most recently used one.
    pub(super) fn use_entry(&mut self, key: &str) -> Option<&Entry<V>> {
        self.entries.to_back(key).map(|node| &node.entry)
    }

    /// The entry in `slot`, its recency unchanged.
    pub(super) fn at(&self, slot: usize) -> Option<(&Arc<str>, &Entry<V>)> {
        let key = self.slots.get(slot)?.as_ref()?;
        Some((key, self.get(key)?))
    }

    /// The entries, the least recently used one first.
    #[cfg(feature = "sled")]
    pub(super) fn coldest(&self) -> impl Iterator<Item = (&Arc<str>, &Entry<V>)> {
        self.entries.iter().map(|(key, node)| (key, &node.entry))
    }

    /// Stores the most recently used entry and returns what it replaces.
    pub(super) fn put(&mut self, key: &str, entry: Entry<V>) -> Option<Removed<V>> {
        self.bytes += entry.bytes;
        if let Some(node) = self.entries.to_back(key) {
            self.bytes -= node.entry.bytes;
            let old = mem::replace(&mut node.entry, entry);
            return Some(Removed { _entry: old, _key: None });
        }
        let key: Arc<str> = key.into();
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(key.clone()),
            None => self.slots.push(Some(key.clone())),
        }
        self.entries.insert(key, Node { entry, slot });
        None
    }

    /// Gives the entry of `key`, if there is one, another expiry and token.
    pub(super) fn touch(&mut self, key: &str, expires_at: Expiry, token: u64) {
        if let Some(node) = self.entries.to_back(key) {
            (node.entry.expires_at, node.entry.token) = (expires_at, token);
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Removed<V>> {
        let (key, node) = self.entries.remove_entry(key)?;
        Some(self.removed(key, node))
    }

    /// Removes the least recently used entry.
    pub(super) fn pop_lru(&mut self) -> Option<Removed<V>> {
        let (key, node) = self.entries.pop_front()?;
        Some(self.removed(key, node))
    }

    /// Removes the entry of `key` if it has expired.
    pub(super) fn take_expired(&mut self, key: &str, now: Timestamp) -> Option<Removed<V>> {
        self.get(key)?.has_expired(now).then(|| self.remove(key))?
    }

    /// Removes the entry in `slot` if it has expired.
    pub(super) fn take_expired_at(&mut self, slot: usize, now: Timestamp) -> Option<Removed<V>> {
        let key = self.at(slot)?.0.clone();
        self.take_expired(&key, now)
    }

    fn removed(&mut self, key: Arc<str>, node: Node<V>) -> Removed<V> {
        self.bytes -= node.entry.bytes;
        if let Some(slot) = self.slots.get_mut(node.slot) {
            *slot = None;
            self.free.push(node.slot);
        }
        Removed { _entry: node.entry, _key: Some(key) }
    }
}

/// What was an entry, or a part of one, still to be freed.
pub(super) struct Removed<V> {
    _entry: Entry<V>,
    _key: Option<Arc<str>>,
}

/// What is to be freed once the mutex is released: declared before the guard, it is dropped after it.
pub(super) struct Garbage<V> {
    /// Most calls leave one thing at most, and need no allocation for it.
    first: Option<Removed<V>>,
    removed: Vec<Removed<V>>,
    tables: Vec<Table<V>>,
}

impl<V> Default for Garbage<V> {
    fn default() -> Self {
        Self { first: None, removed: Vec::new(), tables: Vec::new() }
    }
}

impl<V> Garbage<V> {
    pub(super) fn push(&mut self, removed: Removed<V>) {
        match &self.first {
            None => self.first = Some(removed),
            Some(_) => self.removed.push(removed),
        }
    }

    pub(super) fn extend(&mut self, removed: Option<Removed<V>>) {
        if let Some(removed) = removed {
            self.push(removed);
        }
    }

    /// Empties `table` at once, whatever its size.
    pub(super) fn take_all(&mut self, table: &mut Table<V>) {
        self.tables.push(mem::take(table));
    }
}
