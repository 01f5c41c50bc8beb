//! The hot tier: verified bytes of entries that are read again and again, in memory, least recently used first
//! out, bounded in bytes.
//!
//! It is keyed by the entry word. A word means one record forever, and a reader comes here with the word that
//! the index holds now, so nothing here can be stale.
//!
//! Reading a small entry where it lies costs about as much as a look into an LRU, so most reads must not pay for
//! one: a small table of fingerprints, the door, says whether a word is inside, or was read before and should
//! come in. An entry that is read once never gets in.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hashlink::LinkedHashMap;

use super::index::Word;
use crate::entry::Stored;

const SHARDS: usize = 16;
const DOOR_ENTRIES: usize = 1 << 16;
/// What an entry takes beside its key and value, roughly.
const OVERHEAD: u64 = 160;
/// A value larger than this part of a shard would push out too much.
const LARGEST_SHARE: u64 = 4;

#[derive(Debug)]
pub(crate) struct HotEntry {
    pub(crate) key: Box<[u8]>,
    pub(crate) generation: u32,
    pub(crate) stored: Stored,
}

impl HotEntry {
    fn weight(&self) -> u64 {
        self.key.len() as u64 + self.stored.value.len() as u64 + OVERHEAD
    }
}

/// What the door says about a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// It was not read lately.
    Unknown,
    /// It was read before: worth keeping if it is read again now.
    Seen,
    /// It is probably inside.
    Inside,
}

pub(crate) struct Hot {
    door: Box<[AtomicU32]>,
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: u64,
    bytes: AtomicU64,
}

type WordMap = LinkedHashMap<Word, HotEntry, BuildHasherDefault<WordHasher>>;

#[derive(Default)]
struct Shard {
    entries: WordMap,
    bytes: u64,
}

impl Hot {
    /// A hot tier of at most `capacity` bytes; 0 for none.
    pub(crate) fn new(capacity: u64) -> Self {
        let (door, shards) = if capacity == 0 { (0, 0) } else { (DOOR_ENTRIES, SHARDS) };
        Self {
            door: (0..door).map(|_| AtomicU32::new(0)).collect(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_capacity: capacity / SHARDS as u64,
            bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn door_of(&self, word: Word) -> Option<(&AtomicU32, u32)> {
        let mixed = mix(word);
        let fingerprint = (mixed as u32) & !1 | 2;
        Some((self.door.get(mixed as usize >> 32 & (DOOR_ENTRIES - 1))?, fingerprint))
    }

    /// Asks the door about a word that is being read, and tells it.
    pub(crate) fn knock(&self, word: Word) -> Door {
        let Some((entry, fingerprint)) = self.door_of(word) else { return Door::Unknown };
        let seen = entry.load(Ordering::Relaxed);
        if seen & !1 != fingerprint {
            entry.store(fingerprint, Ordering::Relaxed);
            Door::Unknown
        } else if seen & 1 == 0 {
            Door::Seen
        } else {
            Door::Inside
        }
    }

    fn shard(&self, word: Word) -> Option<std::sync::MutexGuard<'_, Shard>> {
        let shard = self.shards.get((mix(word) >> 60) as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The entry of `word` with its generation, if it is here; it is the most recently used then.
    pub(crate) fn get(&self, word: Word, key: &[u8]) -> Option<(u32, Stored)> {
        let mut shard = self.shard(word)?;
        let entry = match shard.entries.raw_entry_mut().from_key(&word) {
            hashlink::linked_hash_map::RawEntryMut::Occupied(mut entry) => {
                entry.to_back();
                let entry = entry.get();
                (*entry.key == *key).then(|| (entry.generation, entry.stored.clone()))
            }
            hashlink::linked_hash_map::RawEntryMut::Vacant(_) => None,
        };
        drop(shard);
        if entry.is_none() {
            // It was pushed out. Let the next read decide anew.
            if let Some((door, fingerprint)) = self.door_of(word) {
                door.store(fingerprint, Ordering::Relaxed);
            }
        }
        entry
    }

    /// Whether a value of this length may come in.
    pub(crate) fn admits(&self, len: usize) -> bool {
        len as u64 + OVERHEAD <= self.shard_capacity / LARGEST_SHARE
    }

    pub(crate) fn insert(&self, word: Word, entry: HotEntry) {
        let Some(mut shard) = self.shard(word) else { return };
        let (before, weight) = (shard.bytes, entry.weight());
        shard.bytes += weight;
        if let Some(old) = shard.entries.insert(word, entry) {
            shard.bytes -= old.weight();
        }
        while shard.bytes > self.shard_capacity {
            let Some((_, out)) = shard.entries.pop_front() else { break };
            shard.bytes -= out.weight();
        }
        self.bytes.fetch_add(shard.bytes.wrapping_sub(before), Ordering::Relaxed);
        drop(shard);
        if let Some((door, fingerprint)) = self.door_of(word) {
            door.store(fingerprint | 1, Ordering::Relaxed);
        }
    }

    /// Empties it.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.bytes.fetch_sub(shard.bytes, Ordering::Relaxed);
            *shard = Shard::default();
        }
    }
}

fn mix(word: Word) -> u64 {
    let x = word.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Words are as good as unique already; spreading their bits is enough.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(Word(self.0 ^ word));
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
            stored: Stored {
                value: Bytes::from(vec![7; len]),
                codec: Codec::Raw,
                expires_at: None,
                soft: Soft::default(),
                token: 1,
            },
        }
    }

    #[test]
    fn the_second_read_is_remembered_and_the_third_is_inside() {
        let hot = Hot::new(1 << 20);
        let word = Word(12345);
        assert_eq!(hot.knock(word), Door::Unknown);
        assert_eq!(hot.knock(word), Door::Seen);
        hot.insert(word, entry(b"k", 10));
        assert_eq!(hot.knock(word), Door::Inside);
        assert_eq!(hot.get(word, b"k").unwrap().1.value.len(), 10);
        assert!(hot.get(word, b"other").is_none());
    }

    #[test]
    fn it_never_holds_more_than_its_bytes_and_keeps_what_was_used_last() {
        let capacity = 1 << 20;
        let hot = Hot::new(capacity);
        let favourite = Word(1);
        hot.insert(favourite, entry(b"f", 1000));
        for i in 2..10_000 {
            hot.insert(Word(i << 3), entry(b"k", 1000));
            assert!(hot.bytes() <= capacity);
            assert!(hot.get(favourite, b"f").is_some(), "{i}");
        }
        assert!(hot.bytes() > capacity / 2);
        assert!(!hot.admits(capacity as usize));
        hot.clear();
        assert_eq!(hot.bytes(), 0);
    }

    #[test]
    fn none_at_all_is_fine() {
        let hot = Hot::new(0);
        assert_eq!(hot.knock(Word(5)), Door::Unknown);
        assert_eq!(hot.knock(Word(5)), Door::Unknown);
        assert!(!hot.admits(0));
        hot.insert(Word(5), entry(b"k", 1));
        assert!(hot.get(Word(5), b"k").is_none());
    }
}
