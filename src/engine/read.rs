//! Reading: no lock, no waiting, no system call.
//!
//! A reader loads the key's entry word, then reads the record that it names. The record is checked whole, so
//! whatever else happens to the index or the segment meanwhile, what is returned was stored under this key.
//! When the record cannot be read and the word has changed, the entry moved or its segment went: once more.

use std::any::TypeId;
use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use super::counters::Counter;
use super::hot::{Content, Door, Form, HotEntry};
use super::index::{Probe, Slot, Word};
use super::log::SegmentGuard;
use super::record::{Kind, Record};
use super::segment::{Pin, Segment};
use crate::entry::{Decoded, Expiry, Item, SharedValue, Soft, Stored};

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
    soft: Soft,
    /// Segments of so many bytes may be kept for values that the program holds.
    most_pinned: u64,
}

/// Where a hit came from.
pub(crate) enum Source<'a> {
    Hot { stored: Stored, generation: u32 },
    Log(Hit<'a>),
}

impl Source<'_> {
    pub(crate) fn item(&self) -> Item<'_> {
        match self {
            Self::Hot { stored, .. } => stored.item(),
            Self::Log(hit) => Item {
                value: hit.value,
                codec: hit.record.codec,
                expires_at: hit.record.expires_at,
                soft: hit.soft,
                token: hit.record.sequence,
            },
        }
    }

    fn generation(&self) -> u32 {
        match self {
            Self::Hot { generation, .. } => *generation,
            Self::Log(hit) => hit.record.generation,
        }
    }

    pub(crate) fn into_stored(self) -> Stored {
        match self {
            Self::Hot { stored, .. } => stored,
            Self::Log(hit) => hit.stored(hit.share()),
        }
    }
}

/// Bytes of a segment, which stays mapped as long as they live.
struct Pinned {
    segment: Pin,
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
            soft: self.soft,
            token: self.record.sequence,
        }
    }

    /// The value to keep: where it lies, as long as not too much of the log is kept so.
    fn share(&self) -> Bytes {
        let pin = (self.value.len() > COPY_LIMIT).then(|| self.segment.pin(self.most_pinned)).flatten();
        let Some(segment) = pin else { return Bytes::copy_from_slice(self.value) };
        let (offset, len) = (self.segment.offset_of(self.value), self.value.len());
        Bytes::from_owner(Pinned { segment, offset, len })
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
        self.find_live(key, |word, verdict| {
            self.log.prefetch(word);
            self.judge(word, key, self.hot.knock(word, Form::Bytes), &mut take, verdict)
        })
    }

    /// The live entry of `key` as a `wanted`: the value that was decoded from this very record before, if the hot
    /// tier has it, or else what `decode` makes of the entry.
    pub(crate) fn read_decoded(
        &self,
        key: &[u8],
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Option<SharedValue> {
        let found = self.find_live(key, |word, verdict| {
            let door = self.hot.knock(word, Form::Decoded);
            if door == Door::Inside
                && let Some((generation, (value, expires_at))) =
                    self.hot.get(word, Form::Decoded, key, |e| Some((e.generation, e.decoded(wanted)?)))
            {
                *verdict = Some(self.judge_hot(generation, expires_at, || Some(value)));
                return Probe::Match;
            }
            // The bytes themselves need not come in as well.
            let is_inside = self.hot.is_inside(word, Form::Bytes);
            let bytes_door = if is_inside { Door::Inside } else { Door::Unknown };
            let mut take = |source: Source<'_>| {
                let decoded = decode(source.item())?;
                let value = decoded.value.clone();
                if door != Door::Unknown && self.hot.admits(decoded.weight) {
                    let expires_at = source.item().expires_at;
                    let content = Content::Decoded { value: decoded, expires_at };
                    self.hot
                        .insert(word, HotEntry { key: key.into(), generation: source.generation(), content });
                }
                Some(value)
            };
            self.judge(word, key, bytes_door, &mut take, verdict)
        });
        found.flatten()
    }

    /// What came of the live entry of `key`, if there is one. `judge` is called for each word that may be its.
    fn find_live<R>(
        &self,
        key: &[u8],
        mut judge: impl FnMut(Word, &mut Option<Verdict<R>>) -> Probe,
    ) -> Option<R> {
        let hash = self.hasher.hash(key);
        self.hints.prefetch(self.index.primary_of(hash));
        for _ in 0..RETRIES {
            let mut verdict = None;
            let found = self.index.find(hash, |word| judge(word, &mut verdict));
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

    /// What the hot tier has is a hit, unless it is dead meanwhile.
    fn judge_hot<R>(&self, generation: u32, expires_at: Expiry, take: impl FnOnce() -> R) -> Verdict<R> {
        if self.has_ended(generation, expires_at) {
            return Verdict::Dead;
        }
        self.counters.one(Counter::HotHits);
        Verdict::Hit(take())
    }

    fn has_ended(&self, generation: u32, expires_at: Expiry) -> bool {
        generation < self.index.generation() || self.has_passed(expires_at)
    }

    fn judge<R>(
        &self,
        word: Word,
        key: &[u8],
        door: Door,
        take: &mut impl FnMut(Source<'_>) -> R,
        verdict: &mut Option<Verdict<R>>,
    ) -> Probe {
        if door == Door::Inside
            && let Some((generation, stored)) =
                self.hot.get(word, Form::Bytes, key, |e| Some((e.generation, e.stored()?)))
        {
            let expires_at = stored.expires_at;
            *verdict =
                Some(self.judge_hot(generation, expires_at, || take(Source::Hot { stored, generation })));
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
        *verdict = Some(if self.has_ended(record.generation, record.expires_at) {
            Verdict::Dead
        } else if let Some((soft, value)) = record.content().filter(|_| record.kind == Kind::Value) {
            let hit = Hit { segment, record: &record, value, soft, most_pinned: self.most_pinned() };
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
        let content = Content::Bytes(stored);
        self.hot.insert(
            word,
            HotEntry { key: hit.record.key.into(), generation: hit.record.generation, content },
        );
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

    /// Values that the program holds keep an eighth of the log at most; the rest goes on to be reclaimed.
    fn most_pinned(&self) -> u64 {
        self.log.budget() / 8
    }

    /// The words of a chain, and holds on the segments that they name. While an entry's record is copied elsewhere, its
    /// segment may go.
    fn hold_chain(&self, primary: u32) -> Vec<(SegmentGuard, Word)> {
        let mut held = Vec::new();
        for _ in 0..RETRIES {
            let words = self.index.chain_words(primary).into_iter();
            held = words.map(|word| (self.log.segment(word.segment()), word)).collect();
            if held.iter().all(|(guard, _)| guard.get().is_some()) {
                break;
            }
        }
        held
    }

    /// Hands out the live entries of some buckets from `cursor` on, and returns where to go on.
    pub(crate) fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&[u8], Item<'_>)) -> Option<u64> {
        /// Buckets a call.
        const STEP: u32 = 64;
        let primaries = self.index.geometry().primaries;
        let first = u32::try_from(cursor).unwrap_or(primaries).min(primaries);
        let end = first.saturating_add(STEP).min(primaries);
        for primary in first..end {
            for (guard, word) in self.hold_chain(primary) {
                let Some(record) = guard.get().and_then(|segment| segment.record(word.offset())) else {
                    continue;
                };
                let dead = self.has_ended(record.generation, record.expires_at);
                let content = record.content().filter(|_| !dead && record.kind == Kind::Value);
                let (Some((soft, value)), Some(segment)) = (content, guard.get()) else { continue };
                visit(
                    record.key,
                    Source::Log(Hit {
                        segment,
                        record: &record,
                        value,
                        soft,
                        most_pinned: self.most_pinned(),
                    })
                    .item(),
                );
            }
        }
        (end < primaries).then_some(u64::from(end))
    }
}
