//! The entries of a memory backend: by key, by recency, and by slot.

use std::any::TypeId;
use std::hash::RandomState;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use hashlink::LinkedHashMap;

use super::decoded::DecodedValues;
use crate::backend::{Codec, Decoded, Expiry, SharedValue, Soft, Stored};
use crate::time::Timestamp;

/// What an entry costs beside its key and value: its node, its share of the hash table, its slot,
/// the counts of shared ownership and the allocator's rounding. An estimate, on the high side.
const ENTRY_OVERHEAD: u64 = 256;

/// What an entry counts against `max_bytes`.
pub(super) fn entry_bytes(key: &str, value_len: usize) -> u64 {
    (key.len() + value_len) as u64 + ENTRY_OVERHEAD
}

/// What an entry consists of.
pub(super) struct Content {
    pub(super) value: Bytes,
    pub(super) codec: Codec,
    pub(super) expires_at: Expiry,
    pub(super) soft: Soft,
}

/// One entry.
pub(super) struct Node {
    content: Content,
    token: u64,
    slot: usize,
}

impl Node {
    pub(super) fn stored(&self) -> Stored {
        let &Content { ref value, codec, expires_at, soft } = &self.content;
        Stored { value: value.clone(), codec, expires_at, soft, token: self.token }
    }
}

/// All entries, least recently used first. An entry has a slot from its insertion to its removal,
/// and no other has it meanwhile.
#[derive(Default)]
pub(super) struct Table {
    entries: LinkedHashMap<Arc<str>, Node, RandomState>,
    slots: Vec<Option<Arc<str>>>,
    free: Vec<usize>,
    bytes: u64,
    /// Values that were decoded from entries, by their slots.
    decoded: DecodedValues,
}

impl Table {
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes that decoded values take.
    pub(super) fn decoded_bytes(&self) -> u64 {
        self.decoded.bytes()
    }

    /// One more than the last slot that was ever in use.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn token(&self, key: &str) -> Option<u64> {
        self.entries.get(key).map(|node| node.token)
    }

    /// The length of the value of `key`; 0 if there is none.
    pub(super) fn weight(&self, key: &str) -> usize {
        self.entries.get(key).map_or(0, |node| node.content.value.len())
    }

    /// The entry of `key`, from now on the most recently used one.
    pub(super) fn use_entry(&mut self, key: &str) -> Option<&Node> {
        self.entries.to_back(key).map(|node| &*node)
    }

    /// The value that was decoded from the entry of `key`, if it is a `wanted`.
    pub(super) fn use_decoded(&mut self, key: &str, wanted: TypeId) -> Option<SharedValue> {
        self.decoded.get(self.entries.get(key)?.slot, wanted)
    }

    /// Keeps what was decoded from the entry of `key`, if that is still the one with this token.
    pub(super) fn keep_decoded(
        &mut self,
        key: &str,
        token: u64,
        value: Decoded,
        capacity: u64,
        garbage: &mut Garbage,
    ) {
        if let Some(node) = self.entries.get(key).filter(|node| node.token == token) {
            let weight = (value.weight + key.len()) as u64;
            self.decoded.insert(node.slot, value, weight, capacity, &mut garbage.decoded);
        }
    }

    /// The entry in `slot`, its recency unchanged.
    pub(super) fn at(&self, slot: usize) -> Option<(Arc<str>, Stored)> {
        let key = self.slots.get(slot)?.as_ref()?;
        Some((key.clone(), self.entries.get(key)?.stored()))
    }

    /// Stores a value as the most recently used entry and returns the value that it replaces.
    pub(super) fn put(&mut self, key: &str, content: Content, token: u64) -> Option<Removed> {
        self.bytes += entry_bytes(key, content.value.len());
        if let Some(node) = self.entries.to_back(key) {
            self.bytes -= entry_bytes(key, node.content.value.len());
            node.token = token;
            let old = mem::replace(&mut node.content, content);
            let decoded = self.decoded.remove(node.slot);
            return Some(Removed { _value: old.value, _key: None, _decoded: decoded });
        }
        let key: Arc<str> = key.into();
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(free) => *free = Some(key.clone()),
            None => self.slots.push(Some(key.clone())),
        }
        self.entries.insert(key, Node { content, token, slot });
        None
    }

    /// Gives the entry of `key`, if there is one, another expiry and token.
    pub(super) fn touch(&mut self, key: &str, expires_at: Expiry, token: u64) {
        if let Some(node) = self.entries.to_back(key) {
            node.token = token;
            node.content.expires_at = expires_at;
            node.content.soft = node.content.soft.touched();
        }
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Removed> {
        let (key, node) = self.entries.remove_entry(key)?;
        Some(self.removed(key, node))
    }

    /// Removes the least recently used entry.
    pub(super) fn pop_lru(&mut self) -> Option<Removed> {
        let (key, node) = self.entries.pop_front()?;
        Some(self.removed(key, node))
    }

    /// Removes the entry of `key` if it has expired.
    pub(super) fn take_expired(&mut self, key: &str, now: Timestamp) -> Option<Removed> {
        passed(self.entries.get(key)?.content.expires_at, now).then(|| self.remove(key))?
    }

    /// Removes the entry in `slot` if it has expired.
    pub(super) fn take_expired_at(&mut self, slot: usize, now: Timestamp) -> Option<Removed> {
        let key = self.slots.get(slot)?.as_ref()?.clone();
        self.take_expired(&key, now)
    }

    fn removed(&mut self, key: Arc<str>, node: Node) -> Removed {
        self.bytes -= entry_bytes(&key, node.content.value.len());
        if let Some(slot) = self.slots.get_mut(node.slot) {
            *slot = None;
            self.free.push(node.slot);
        }
        Removed {
            _value: node.content.value,
            _key: Some(key),
            _decoded: self.decoded.remove(node.slot),
        }
    }
}

/// What was an entry, or a part of one, still to be freed.
pub(super) struct Removed {
    _value: Bytes,
    _key: Option<Arc<str>>,
    _decoded: Option<Decoded>,
}

/// What is to be freed once the mutex is released: declared before the guard, it is dropped after
/// it.
#[derive(Default)]
pub(super) struct Garbage {
    /// Most calls leave one thing at most, and need no allocation for it.
    first: Option<Removed>,
    removed: Vec<Removed>,
    tables: Vec<Table>,
    decoded: Vec<Decoded>,
}

impl Garbage {
    pub(super) fn push(&mut self, removed: Removed) {
        match &self.first {
            None => self.first = Some(removed),
            Some(_) => self.removed.push(removed),
        }
    }

    pub(super) fn extend(&mut self, removed: Option<Removed>) {
        if let Some(removed) = removed {
            self.push(removed);
        }
    }

    /// Empties `table` at once, whatever its size.
    pub(super) fn take_all(&mut self, table: &mut Table) {
        self.tables.push(mem::take(table));
    }
}

pub(super) fn passed(expires_at: Expiry, now: Timestamp) -> bool {
    expires_at.is_some_and(|at| at <= now)
}
