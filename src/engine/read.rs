//! Reading: no lock, no waiting, no system call.
//!
//! A reader loads the key's entry word, then reads the record that it names. The record is checked whole, so
//! whatever else happens to the index or the segment meanwhile, what is returned was stored under this key.
//! When the record cannot be read and the word has changed, the entry moved or its segment went: once more.

use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use super::counters::Counter;
use super::hot::{Door, HotEntry};
use super::index::{Probe, Slot, Word};
use super::record::{Kind, Record};
use super::segment::Segment;
use crate::entry::{Item, Stored};

/// Values up to this many bytes are copied; larger ones are handed out where they lie, and keep their segment
/// mapped for as long as somebody holds them.
const COPY_LIMIT: usize = 4 << 10;

/// How often a read begins again because the segment it was led to has gone. Each time somebody else made
/// progress.
const RETRIES: usize = 64;

/// A live, verified entry in the log, on its way to a reader.
pub(crate) struct Hit<'a> {
    segment: &'a Arc<Segment>,
    record: &'a Record<'a>,
    value: &'a [u8],
}

/// Where a hit came from.
pub(crate) enum Source<'a> {
    Hot(Stored),
    Log(Hit<'a>),
}

impl Source<'_> {
    pub(crate) fn item(&self) -> Item<'_> {
        match self {
            Self::Hot(stored) => stored.item(),
            Self::Log(hit) => Item {
                value: hit.value,
                codec: hit.record.codec,
                expires_at: hit.record.expires_at,
                token: hit.record.sequence,
            },
        }
    }

    pub(crate) fn into_stored(self) -> Stored {
        match self {
            Self::Hot(stored) => stored,
            Self::Log(hit) => hit.stored(hit.share()),
        }
    }
}

/// Bytes of a segment, which stays mapped as long as they live.
struct Pinned {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.segment.bytes_at(self.offset, self.len)
    }
}

impl Hit<'_> {
    fn stored(&self, value: Bytes) -> Stored {
        Stored {
            value,
            codec: self.record.codec,
            expires_at: self.record.expires_at,
            token: self.record.sequence,
        }
    }

    fn share(&self) -> Bytes {
        if self.value.len() <= COPY_LIMIT {
            return Bytes::copy_from_slice(self.value);
        }
        let offset = self.segment.offset_of(self.value);
        Bytes::from_owner(Pinned { segment: self.segment.clone(), offset, len: self.value.len() })
    }
}

/// What the probe of one word decided.
enum Verdict<R> {
    Hit(R),
    /// The key's record is there, but expired or of an older generation.
    Dead,
    /// The key's record is there, but its value fails its check.
    Damaged,
}

impl Engine {
    /// Hands the live entry of `key` to `take`, if there is one.
    pub(crate) fn read<R>(&self, key: &[u8], mut take: impl FnMut(Source<'_>) -> R) -> Option<R> {
        let hash = self.hasher.hash(key);
        self.hints.prefetch(self.index.primary_of(hash));
        for _ in 0..RETRIES {
            let mut verdict = None;
            let found = self.index.find(hash, |word| self.judge(word, key, &mut take, &mut verdict));
            match (verdict, found.entry) {
                // A damaged word may lead to an older record of the same key.
                (Some(Verdict::Hit(result)), Some((slot, _))) if !self.index.is_damaged(hash, &found) => {
                    self.hints.touch(slot, self.index.recency(), self.balance.is_some());
                    self.counters.one(Counter::Hits);
                    return Some(result);
                }
                (Some(Verdict::Damaged), Some((slot, word))) => self.drop_damaged(slot, word),
                _ => {}
            }
            match found.unreadable {
                Some((slot, word)) if self.index.word(slot) != word => continue,
                Some((slot, word)) => self.drop_damaged(slot, word),
                None => {}
            }
            if self.index.is_damaged(hash, &found) {
                // Taking the lock wipes what does not fit its check.
                let wiped = self.index.lock(hash).wiped();
                self.note_wiped(wiped);
            }
            break;
        }
        self.counters.one(Counter::Misses);
        None
    }

    fn judge<R>(
        &self,
        word: Word,
        key: &[u8],
        take: &mut impl FnMut(Source<'_>) -> R,
        verdict: &mut Option<Verdict<R>>,
    ) -> Probe {
        let door = self.hot.knock(word);
        if door == Door::Inside
            && let Some((generation, stored)) = self.hot.get(word, key)
        {
            let dead = generation < self.index.generation() || self.has_passed(stored.expires_at);
            *verdict = Some(if dead {
                Verdict::Dead
            } else {
                self.counters.one(Counter::HotHits);
                Verdict::Hit(take(Source::Hot(stored)))
            });
            return Probe::Match;
        }
        let guard = self.log.segment(word.segment());
        let Some(segment) = guard.get() else {
            return Probe::Unreadable;
        };
        let Some(record) = segment.record(word.offset()) else { return Probe::Unreadable };
        if record.key != key {
            return Probe::Other;
        }
        *verdict =
            Some(if record.generation < self.index.generation() || self.has_passed(record.expires_at) {
                Verdict::Dead
            } else if let Some(value) = record.value().filter(|_| record.kind == Kind::Value) {
                let hit = Hit { segment, record: &record, value };
                if door == Door::Seen && self.hot.admits(value.len()) {
                    self.keep_hot(word, &hit);
                }
                Verdict::Hit(take(Source::Log(hit)))
            } else {
                Verdict::Damaged
            });
        Probe::Match
    }

    fn keep_hot(&self, word: Word, hit: &Hit<'_>) {
        // A copy, even of a large value: the hot tier must not keep segments from going.
        let stored = hit.stored(Bytes::copy_from_slice(hit.value));
        self.hot
            .insert(word, HotEntry { key: hit.record.key.into(), generation: hit.record.generation, stored });
    }

    /// Removes an entry that turned out to be damaged, so that it is found and counted once.
    fn drop_damaged(&self, slot: Slot, word: Word) {
        if self.evict(slot, word) {
            self.counters.one(Counter::Corrupt);
            tracing::warn!(
                dir = %self.dir.display(),
                segment = word.segment(),
                offset = word.offset(),
                "a record is damaged; its key has no entry any more"
            );
        }
    }

    /// Hands out the live entries of some buckets from `cursor` on, and returns where to go on.
    pub(crate) fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&[u8], Item<'_>)) -> Option<u64> {
        /// Buckets a call.
        const STEP: u32 = 64;
        let primaries = self.index.geometry().primaries;
        let first = u32::try_from(cursor).unwrap_or(primaries).min(primaries);
        let end = first.saturating_add(STEP).min(primaries);
        for primary in first..end {
            for word in self.index.chain_words(primary) {
                let guard = self.log.segment(word.segment());
                let Some(segment) = guard.get() else { continue };
                let Some(record) = segment.record(word.offset()) else { continue };
                let dead = record.generation < self.index.generation() || self.has_passed(record.expires_at);
                let Some(value) = record.value().filter(|_| !dead && record.kind == Kind::Value) else {
                    continue;
                };
                visit(record.key, Source::Log(Hit { segment, record: &record, value }).item());
            }
        }
        (end < primaries).then_some(u64::from(end))
    }
}
