//! The hot tier: what is expensive to get again of entries that are read again and again, in memory, least recently
//! used first out, bounded in bytes. Of an entry it keeps the verified bytes, a value that was decoded from them,
//! or both, each on its own.
//!
//! It is keyed by the entry word. A word means one record forever, and a reader comes here with the word that
//! the index holds now, so nothing here can be stale.
//!
//! Reading a small entry where it lies costs about as much as a look into an LRU, so most reads must not pay for
//! one: a small table of fingerprints, the door, says whether a word is inside, or was read before and should
//! come in. An entry that is read once never gets in.
//!
//! Decoded values are of the program's own types, and dropping one may call the cache again: none is dropped
//! while a shard is locked.

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
const DOOR_ENTRIES: usize = 1 << 16;
/// What an entry takes beside its key and value, roughly.
const OVERHEAD: u64 = 192;
/// A value larger than this part of a shard would push out too much.
const LARGEST_SHARE: u64 = 4;

/// In what form an entry is kept. Each has a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Bytes,
    Decoded,
}

/// Where a form of an entry is kept.
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

    /// The decoded value and when it expires, if it is a `wanted`.
    pub(crate) fn decoded(&self, wanted: TypeId) -> Option<(SharedValue, Expiry)> {
        match &self.content {
            HotContent::Decoded { value, expires_at } if value.is_a(wanted) => {
                Some((value.value.clone(), *expires_at))
            }
            _ => None,
        }
    }
}

/// What the door says about a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doorkeeper {
    /// It was not read lately.
    Unknown,
    /// It was read before: worth keeping if it is read again now.
    Seen,
    /// It is probably inside.
    Inside,
}

pub(crate) struct HotTier {
    door: Box<[AtomicU32]>,
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

    fn door_of(&self, place: HotKey) -> Option<(&AtomicU32, u32)> {
        let mixed = place.mix();
        let fingerprint = (mixed as u32) & !1 | 2;
        Some((self.door.get(mixed as usize >> 32 & (DOOR_ENTRIES - 1))?, fingerprint))
    }

    /// Asks the door about a word that is being read in this form, and tells it.
    pub(crate) fn observe(&self, word: Word, form: Form) -> Doorkeeper {
        let Some((entry, fingerprint)) = self.door_of(HotKey { word, form }) else {
            return Doorkeeper::Unknown;
        };
        let seen = entry.load(Ordering::Relaxed);
        if seen & !1 != fingerprint {
            entry.store(fingerprint, Ordering::Relaxed);
            Doorkeeper::Unknown
        } else if seen & 1 == 0 {
            Doorkeeper::Seen
        } else {
            Doorkeeper::Inside
        }
    }

    /// Whether this form of a word is inside, probably. The door is not told.
    pub(crate) fn is_inside(&self, word: Word, form: Form) -> bool {
        self.door_of(HotKey { word, form })
            .is_some_and(|(entry, fingerprint)| entry.load(Ordering::Relaxed) == fingerprint | 1)
    }

    fn shard(&self, place: HotKey) -> Option<std::sync::MutexGuard<'_, Shard>> {
        let shard = self.shards.get((place.mix() >> 60) as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `take` makes of the entry of `word` in this form, if it is here; it is the most recently used then.
    /// `take` runs while others wait.
    pub(crate) fn get<R>(
        &self,
        word: Word,
        form: Form,
        key: &[u8],
        take: impl FnOnce(&HotEntry) -> Option<R>,
    ) -> Option<R> {
        let place = HotKey { word, form };
        let mut shard = self.shard(place)?;
        if let RawEntryMut::Occupied(mut entry) = shard.entries.raw_entry_mut().from_key(&place)
            && *entry.get().key == *key
        {
            entry.to_back();
            return take(entry.get());
        }
        drop(shard);
        // It was pushed out. Let the next read decide anew.
        let (door, fingerprint) = self.door_of(place)?;
        door.store(fingerprint, Ordering::Relaxed);
        None
    }

    /// Whether content of this many bytes may come in.
    pub(crate) fn admits(&self, len: usize) -> bool {
        len as u64 + OVERHEAD <= self.shard_capacity / LARGEST_SHARE
    }

    pub(crate) fn insert(&self, word: Word, entry: HotEntry) {
        let place = HotKey { word, form: entry.form() };
        // Dropped after the lock is released.
        let mut pushed_out = Vec::new();
        let Some(mut shard) = self.shard(place) else { return };
        let (before, weight) = (shard.bytes, entry.weight());
        shard.bytes += weight;
        let old = shard.entries.insert(place, entry);
        shard.bytes -= old.as_ref().map_or(0, HotEntry::weight);
        pushed_out.extend(old);
        while shard.bytes > self.shard_capacity {
            let Some((_, out)) = shard.entries.pop_front() else { break };
            shard.bytes -= out.weight();
            pushed_out.push(out);
        }
        self.bytes.fetch_add(shard.bytes.wrapping_sub(before), Ordering::Relaxed);
        drop(shard);
        if let Some((door, fingerprint)) = self.door_of(place) {
            door.store(fingerprint | 1, Ordering::Relaxed);
        }
    }

    /// Empties it.
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

/// A place is mixed already.
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
    fn the_second_read_is_remembered_and_the_third_is_inside() {
        let hot = HotTier::new(1 << 20);
        let word = Word(12345);
        assert_eq!(hot.observe(word, Form::Bytes), Doorkeeper::Unknown);
        assert_eq!(hot.observe(word, Form::Bytes), Doorkeeper::Seen);
        hot.insert(word, entry(b"k", 10));
        assert_eq!(hot.observe(word, Form::Bytes), Doorkeeper::Inside);
        assert_eq!(hot.get(word, Form::Bytes, b"k", HotEntry::stored).unwrap().value.len(), 10);
        assert!(hot.get(word, Form::Bytes, b"other", HotEntry::stored).is_none());
    }

    #[test]
    fn it_never_holds_more_than_its_bytes_and_keeps_what_was_used_last() {
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
    fn none_at_all_is_fine() {
        let hot = HotTier::new(0);
        assert_eq!(hot.observe(Word(5), Form::Bytes), Doorkeeper::Unknown);
        assert_eq!(hot.observe(Word(5), Form::Bytes), Doorkeeper::Unknown);
        assert!(!hot.admits(0));
        hot.insert(Word(5), entry(b"k", 1));
        assert!(hot.get(Word(5), Form::Bytes, b"k", HotEntry::stored).is_none());
    }
}
