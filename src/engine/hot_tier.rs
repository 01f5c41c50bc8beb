//! The hot tier: an LRU in memory, bounded in bytes, for entries that are read often. It keeps the
//! verified bytes of an entry, a value decoded from them, or both; each is an item of its own.
//!
//! The key is the entry word. A word names one record forever, and a reader looks up the word that
//! the index has now. So no item can be stale.
//!
//! To read a small entry from its segment costs about as much as a lookup in an LRU. So most reads
//! must not pay for that lookup: the doorkeeper, a small table of fingerprints, says whether a word
//! is in the LRU, or was read before and should be inserted. An entry that is read once is never
//! inserted.
//!
//! Decoded values have types of the program, and the drop of one may call the cache again. So none
//! is dropped while a shard is locked.

use std::any::TypeId;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::mem;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hashlink::LinkedHashMap;
use hashlink::linked_hash_map::RawEntryMut;

use crate::engine::format::word::Word;
use crate::entry::{Decoded, Expiry, SharedValue, Stored};

const SHARDS: usize = 16;
/// The fingerprints of the doorkeeper.
const FINGERPRINTS: usize = 1 << 16;
/// The approximate memory of an item beside its key and value, in bytes.
const OVERHEAD: u64 = 192;
/// The largest value is this part of a shard: a larger one would evict too much.
const LARGEST_SHARE: u64 = 4;

/// The form in which an entry is kept. Each form is an item of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Bytes,
    Decoded,
}

/// The key of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HotKey {
    word: Word,
    form: Form,
}

impl HotKey {
    fn mix(self) -> u64 {
        let x = (self.word.0 ^ (self.form as u64) << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}

impl Hash for HotKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mix());
    }
}

#[derive(Debug)]
pub(crate) struct HotEntry {
    pub(crate) key: Box<[u8]>,
    pub(crate) generation: u32,
    pub(crate) content: HotContent,
}

#[derive(Debug)]
pub(crate) enum HotContent {
    Bytes(Stored),
    Decoded { value: Decoded, expires_at: Expiry },
}

impl HotEntry {
    fn form(&self) -> Form {
        match self.content {
            HotContent::Bytes(_) => Form::Bytes,
            HotContent::Decoded { .. } => Form::Decoded,
        }
    }

    fn weight(&self) -> u64 {
        let content = match &self.content {
            HotContent::Bytes(stored) => stored.value.len(),
            HotContent::Decoded { value, .. } => value.weight,
        };
        (self.key.len() + content) as u64 + OVERHEAD
    }

    pub(crate) fn stored(&self) -> Option<Stored> {
        match &self.content {
            HotContent::Bytes(stored) => Some(stored.clone()),
            HotContent::Decoded { .. } => None,
        }
    }

    /// The decoded value and its expiry, if its type is `wanted`.
    pub(crate) fn decoded(&self, wanted: TypeId) -> Option<(SharedValue, Expiry)> {
        match &self.content {
            HotContent::Decoded { value, expires_at } if value.is_a(wanted) => {
                Some((value.value.clone(), *expires_at))
            }
            _ => None,
        }
    }
}

/// What the doorkeeper knows about a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// It was not read lately.
    Unknown,
    /// It was read before. If it is read now, it should be inserted.
    Seen,
    /// It is probably in the LRU.
    Inside,
}

pub(crate) struct HotTier {
    /// The doorkeeper: `fingerprint | is inside (1)`.
    fingerprints: Box<[AtomicU32]>,
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: u64,
    bytes: AtomicU64,
}

type HotMap = LinkedHashMap<HotKey, HotEntry, BuildHasherDefault<Mixed>>;

#[derive(Default)]
struct Shard {
    entries: HotMap,
    bytes: u64,
}

impl HotTier {
    /// A hot tier of at most `capacity` bytes; 0 for none.
    pub(crate) fn new(capacity: u64) -> Self {
        let (fingerprints, shards) = if capacity == 0 { (0, 0) } else { (FINGERPRINTS, SHARDS) };
        Self {
            fingerprints: (0..fingerprints).map(|_| AtomicU32::new(0)).collect(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_capacity: capacity / SHARDS as u64,
            bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The doorkeeper's cell for a key, and the fingerprint of the key.
    fn fingerprint_of(&self, key: HotKey) -> Option<(&AtomicU32, u32)> {
        let mixed = key.mix();
        let fingerprint = (mixed as u32) & !1 | 2;
        Some((self.fingerprints.get(mixed as usize >> 32 & (FINGERPRINTS - 1))?, fingerprint))
    }

    /// Notes that a word is read in this form. Returns what the doorkeeper knew of it before.
    pub(crate) fn observe(&self, word: Word, form: Form) -> Sighting {
        let Some((entry, fingerprint)) = self.fingerprint_of(HotKey { word, form }) else {
            return Sighting::Unknown;
        };
        let seen = entry.load(Ordering::Relaxed);
        if seen & !1 != fingerprint {
            entry.store(fingerprint, Ordering::Relaxed);
            Sighting::Unknown
        } else if seen & 1 == 0 {
            Sighting::Seen
        } else {
            Sighting::Inside
        }
    }

    /// Whether this form of a word is probably in the LRU. Notes nothing.
    pub(crate) fn is_inside(&self, word: Word, form: Form) -> bool {
        self.fingerprint_of(HotKey { word, form })
            .is_some_and(|(entry, fingerprint)| entry.load(Ordering::Relaxed) == fingerprint | 1)
    }

    fn shard(&self, key: HotKey) -> Option<std::sync::MutexGuard<'_, Shard>> {
        let shard = self.shards.get((key.mix() >> 60) as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `take` with the item of `word` in this form, if it is here, and makes it the most
    /// recently used one. The shard is locked while `take` runs.
    pub(crate) fn get<R>(
        &self,
        word: Word,
        form: Form,
        key: &[u8],
        take: impl FnOnce(&HotEntry) -> Option<R>,
    ) -> Option<R> {
        let hot_key = HotKey { word, form };
        let mut shard = self.shard(hot_key)?;
        if let RawEntryMut::Occupied(mut entry) = shard.entries.raw_entry_mut().from_key(&hot_key)
            && *entry.get().key == *key
        {
            entry.to_back();
            return take(entry.get());
        }
        drop(shard);
        // It was evicted. The next read finds it `Seen` and inserts it again.
        let (cell, fingerprint) = self.fingerprint_of(hot_key)?;
        cell.store(fingerprint, Ordering::Relaxed);
        None
    }

    /// Whether content of this many bytes may be inserted.
    pub(crate) fn admits(&self, len: usize) -> bool {
        len as u64 + OVERHEAD <= self.shard_capacity / LARGEST_SHARE
    }

    pub(crate) fn insert(&self, word: Word, entry: HotEntry) {
        let hot_key = HotKey { word, form: entry.form() };
        // Dropped after the lock is released.
        let mut evicted = Vec::new();
        let Some(mut shard) = self.shard(hot_key) else { return };
        let (before, weight) = (shard.bytes, entry.weight());
        shard.bytes += weight;
        let old = shard.entries.insert(hot_key, entry);
        shard.bytes -= old.as_ref().map_or(0, HotEntry::weight);
        evicted.extend(old);
        while shard.bytes > self.shard_capacity {
            let Some((_, oldest)) = shard.entries.pop_front() else { break };
            shard.bytes -= oldest.weight();
            evicted.push(oldest);
        }
        self.bytes.fetch_add(shard.bytes.wrapping_sub(before), Ordering::Relaxed);
        drop(shard);
        if let Some((cell, fingerprint)) = self.fingerprint_of(hot_key) {
            cell.store(fingerprint | 1, Ordering::Relaxed);
        }
    }

    /// Removes all items.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.bytes.fetch_sub(shard.bytes, Ordering::Relaxed);
            let emptied = mem::take(&mut *shard);
            drop(shard);
            drop(emptied);
        }
    }
}

/// The hasher of the LRU: a key is mixed already.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, mixed: u64) {
        self.0 = mixed;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::{Codec, Soft};

    fn entry(key: &[u8], len: usize) -> HotEntry {
        HotEntry {
            key: key.into(),
            generation: 0,
            content: HotContent::Bytes(Stored {
                value: Bytes::from(vec![7; len]),
                codec: Codec::Raw,
                expires_at: None,
                soft: Soft::default(),
                token: 1,
            }),
        }
    }

    #[test]
    fn a_second_read_is_seen_and_an_inserted_item_is_inside() {
        let hot = HotTier::new(1 << 20);
        let word = Word(12345);
        assert_eq!(hot.observe(word, Form::Bytes), Sighting::Unknown);
        assert_eq!(hot.observe(word, Form::Bytes), Sighting::Seen);
        hot.insert(word, entry(b"k", 10));
        assert_eq!(hot.observe(word, Form::Bytes), Sighting::Inside);
        assert_eq!(hot.get(word, Form::Bytes, b"k", HotEntry::stored).unwrap().value.len(), 10);
        assert!(hot.get(word, Form::Bytes, b"other", HotEntry::stored).is_none());
    }

    #[test]
    fn the_hot_tier_keeps_its_bound_and_the_last_used_items() {
        let (capacity, inserts) = if cfg!(miri) { (1 << 16, 200) } else { (1 << 20, 10_000) };
        let hot = HotTier::new(capacity);
        let favourite = Word(1);
        hot.insert(favourite, entry(b"f", 1000));
        for i in 2..inserts {
            hot.insert(Word(i << 3), entry(b"k", 1000));
            assert!(hot.bytes() <= capacity);
            assert!(hot.get(favourite, Form::Bytes, b"f", HotEntry::stored).is_some(), "{i}");
        }
        assert!(hot.bytes() > capacity / 2);
        assert!(!hot.admits(capacity as usize));
        hot.clear();
        assert_eq!(hot.bytes(), 0);
    }

    #[test]
    fn a_hot_tier_of_no_bytes_keeps_nothing() {
        let hot = HotTier::new(0);
        assert_eq!(hot.observe(Word(5), Form::Bytes), Sighting::Unknown);
        assert_eq!(hot.observe(Word(5), Form::Bytes), Sighting::Unknown);
        assert!(!hot.admits(0));
        hot.insert(Word(5), entry(b"k", 1));
        assert!(hot.get(Word(5), Form::Bytes, b"k", HotEntry::stored).is_none());
    }
}
