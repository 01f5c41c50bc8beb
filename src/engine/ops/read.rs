//! Reading: no lock and no waiting; no system call, except to open a segment or a blob, or to unmap
//! dropped segments.
//!
//! A reader loads the key's entry word, then reads the record that the word names. The whole record
//! is checked. So a returned value was stored under this key, even if the index or the segment
//! changes meanwhile. If the record cannot be read and the word has changed, the entry was moved or
//! its segment was removed: the read starts over.

use std::any::TypeId;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Engine;
use crate::engine::blob::OpenBlob;
use crate::engine::counters::Counter;
use crate::engine::format::record::{Kind, Record};
use crate::engine::format::word::Word;
use crate::engine::hot_tier::{Form, HotContent, HotEntry, Sighting};
use crate::engine::index::{Probe, Slot};
use crate::engine::log::segment::{Segment, SegmentPin};
use crate::engine::log::segment_map::SegmentGuard;
use crate::entry::{Change, Condition, Decoded, Expiry, Item, SharedValue, Soft, Stored};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;

/// Values up to this many bytes are copied. Larger values are returned in place: each keeps its
/// segment mapped until the caller drops it.
const COPY_LIMIT: usize = 4 << 10;

/// How often a read starts over because the segment that its word names is gone. Each time, another
/// thread or process made progress.
const RETRIES: usize = 64;

/// A live, verified entry in the log.
pub(crate) struct Hit<'a> {
    segment: &'a Arc<Segment>,
    record: &'a Record<'a>,
    value: &'a [u8],
    soft: Soft,
    /// At most this many bytes of segments may stay mapped for values that the program holds.
    most_pinned: u64,
}

/// The source of a hit.
pub(crate) enum ValueSource<'a> {
    HotTier {
        stored: Stored,
        generation: u32,
    },
    Log(Hit<'a>),
    /// Opened, not verified yet.
    Blob {
        blob: OpenBlob,
        record: &'a Record<'a>,
        soft: Soft,
    },
}

impl<'a> ValueSource<'a> {
    fn expires_at(&self) -> Expiry {
        match self {
            Self::HotTier { stored, .. } => stored.expires_at,
            Self::Log(Hit { record, .. }) | Self::Blob { record, .. } => record.expires_at,
        }
    }

    /// Loads and verifies the value of a blob; other sources are returned as they are. `None` if
    /// the value is damaged.
    fn whole(self) -> Result<Option<Self>> {
        let Self::Blob { blob, record, soft } = self else { return Ok(Some(self)) };
        let value = blob.load().map_err(|e| Error::new(ErrorKind::Io, "read").with_source(e))?;
        Ok(value.map(|value| Self::HotTier {
            stored: stored(record, soft, value),
            generation: record.generation,
        }))
    }

    /// The entry. A blob's value must be loaded ([`whole`](Self::whole)); otherwise it is empty.
    pub(crate) fn item(&self) -> Item<'_> {
        match self {
            Self::HotTier { stored, .. } => stored.item(),
            Self::Log(hit) => Item {
                value: hit.value,
                codec: hit.record.codec,
                expires_at: hit.record.expires_at,
                soft: hit.soft,
                token: hit.record.sequence,
            },
            Self::Blob { record, soft, .. } => Item {
                value: &[],
                codec: record.codec,
                expires_at: record.expires_at,
                soft: *soft,
                token: record.sequence,
            },
        }
    }

    fn generation(&self) -> u32 {
        match self {
            Self::HotTier { generation, .. } => *generation,
            Self::Log(Hit { record, .. }) | Self::Blob { record, .. } => record.generation,
        }
    }

    /// The entry to keep. A blob's value must be loaded ([`whole`](Self::whole)); otherwise it is
    /// empty.
    pub(crate) fn into_stored(self) -> Stored {
        match self {
            Self::HotTier { stored, .. } => stored,
            Self::Log(hit) => stored(hit.record, hit.soft, hit.share()),
            Self::Blob { record, soft, .. } => stored(record, soft, Bytes::new()),
        }
    }
}

/// Bytes of a segment. The segment stays mapped until they are dropped.
struct Pinned {
    segment: SegmentPin,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.segment.bytes_at(self.offset, self.len)
    }
}

fn stored(record: &Record<'_>, soft: Soft, value: Bytes) -> Stored {
    Stored {
        value,
        codec: record.codec,
        expires_at: record.expires_at,
        soft,
        token: record.sequence,
    }
}

impl Hit<'_> {
    /// The value to keep: in place, unless that pins too much of the log; else a copy.
    fn share(&self) -> Bytes {
        let pin =
            (self.value.len() > COPY_LIMIT).then(|| self.segment.pin(self.most_pinned)).flatten();
        let Some(segment) = pin else { return Bytes::copy_from_slice(self.value) };
        let (offset, len) = (self.segment.offset_of(self.value), self.value.len());
        Bytes::from_owner(Pinned { segment, offset, len })
    }
}

/// The result of the probe of one word.
enum Judgement<R> {
    Hit(R),
    /// The key's record is there, but expired or of an older generation.
    Dead,
    /// The key's record is there, but its value fails its check.
    Damaged,
    /// The environment refused to read its value.
    Failed(Error),
}

impl Engine {
    /// Passes the live entry of `key` to `take`, if there is one.
    pub(crate) fn read<R>(
        &self,
        key: &[u8],
        mut take: impl FnMut(ValueSource<'_>) -> R,
    ) -> Result<Option<R>> {
        self.look_for(key, &mut |source, _| Ok(source.whole()?.map(&mut take)))
    }

    /// When the live entry of `key` expires, if there is one. A blob is not read for it.
    pub(crate) fn expiry_of(&self, key: &[u8]) -> Result<Option<Expiry>> {
        self.look_for(key, &mut |source, _| Ok(Some(source.expires_at())))
    }

    /// Stores the value of `from` under `to`, with the same codec and expiry, and returns the token
    /// of `from`. Both entries then name the same blob, if there is one.
    pub(crate) fn copy_entry(&self, from: &[u8], to: &[u8]) -> Result<Option<u64>> {
        let hash = self.hasher.hash(from);
        let (Stored { value, codec, expires_at, soft, token }, pin) = loop {
            let found = self.look_for(from, &mut |source, word| {
                let blob = match &source {
                    ValueSource::Blob { record, .. } => record.blob(),
                    _ => None,
                };
                Ok(Some((source.into_stored(), blob.map(|blob| (blob, word)))))
            })?;
            let Some((stored, blob)) = found else { return Ok(None) };
            let Some((blob, word)) = blob else { break (stored, None) };
            let pin = self.blobs.pin(blob)?;
            step!("blob::pinned");
            // A blob that no entry names any more may be removed at any moment, so it must not be
            // named again.
            if pin.is_some() && self.index.slot_of(hash, word).is_some() {
                break (stored, pin);
            }
        };
        let change = Change::Store { value: &value, codec, expires_at, soft };
        self.commit_with(to, Condition::Always, change, pin)?;
        Ok(Some(token))
    }

    pub(crate) fn look_for<R>(
        &self,
        key: &[u8],
        take: &mut impl FnMut(ValueSource<'_>, Word) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        self.find_live(key, |word, verdict| {
            self.log.prefetch(word);
            self.judge(word, key, self.hot.observe(word, Form::Bytes), take, verdict)
        })
    }

    /// The live entry of `key` as a value of type `wanted`: the hot tier's decoded value, if it was
    /// decoded from this same record; else the result of `decode`.
    pub(crate) fn read_decoded(
        &self,
        key: &[u8],
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        let found = self.find_live(key, |word, verdict| {
            let sighting = self.hot.observe(word, Form::Decoded);
            if sighting == Sighting::Inside
                && let Some((generation, (value, expires_at))) =
                    self.hot
                        .get(word, Form::Decoded, key, |e| Some((e.generation, e.decoded(wanted)?)))
            {
                *verdict = Some(self.judge_hot(generation, expires_at, || Some(value)));
                return Probe::Match;
            }
            // The hot tier need not admit the bytes as well.
            let is_inside = self.hot.is_inside(word, Form::Bytes);
            let bytes_sighting = if is_inside { Sighting::Inside } else { Sighting::Unknown };
            let mut take = |source: ValueSource<'_>, _| {
                let Some(source) = source.whole()? else { return Ok(None) };
                let Some(decoded) = decode(source.item()) else { return Ok(Some(None)) };
                let value = decoded.value.clone();
                if sighting != Sighting::Unknown && self.hot.admits(decoded.weight) {
                    let expires_at = source.expires_at();
                    let content = HotContent::Decoded { value: decoded, expires_at };
                    self.hot.insert(
                        word,
                        HotEntry { key: key.into(), generation: source.generation(), content },
                    );
                }
                Ok(Some(Some(value)))
            };
            self.judge(word, key, bytes_sighting, &mut take, verdict)
        });
        Ok(found?.flatten())
    }

    /// The result of `judge` for the live entry of `key`, if there is one. `judge` is called for
    /// each word that may be the key's.
    fn find_live<R>(
        &self,
        key: &[u8],
        mut judge: impl FnMut(Word, &mut Option<Judgement<R>>) -> Probe,
    ) -> Result<Option<R>> {
        let hash = self.hasher.hash(key);
        self.hints.prefetch(self.index.primary_of(hash));
        self.log.unmap_new_drops();
        for _ in 0..RETRIES {
            let mut verdict = None;
            let found = self.index.find(hash, |word| judge(word, &mut verdict));
            match (verdict, found.entry) {
                // A damaged word may name an older record of the same key.
                (Some(Judgement::Hit(result)), Some((slot, _)))
                    if !self.index.is_damaged(hash, &found) =>
                {
                    self.hints.touch(slot, self.index.recency(), self.ghosts.is_some());
                    self.counters.one(Counter::Hits);
                    return Ok(Some(result));
                }
                (Some(Judgement::Failed(error)), _) => return Err(error),
                (Some(Judgement::Damaged), Some((slot, word))) => self.drop_damaged(slot, word),
                _ => {}
            }
            match found.unreadable {
                Some((slot, word)) if self.index.word(slot) != word => continue,
                Some((slot, word)) => self.drop_damaged(slot, word),
                None => {}
            }
            if self.index.is_damaged(hash, &found) && !self.is_read_only() {
                // Taking the lock wipes words that do not match their check. If the lock is held,
                // its holder has done so.
                if let Ok(locked) = self.index.lock(hash) {
                    self.note_wiped(locked.wiped());
                }
            }
            break;
        }
        self.counters.one(Counter::Misses);
        Ok(None)
    }

    /// A hit from the hot tier, unless the entry has expired or was cleared meanwhile.
    fn judge_hot<R>(
        &self,
        generation: u32,
        expires_at: Expiry,
        take: impl FnOnce() -> R,
    ) -> Judgement<R> {
        if self.has_ended(generation, expires_at) {
            return Judgement::Dead;
        }
        self.counters.one(Counter::HotHits);
        Judgement::Hit(take())
    }

    fn has_ended(&self, generation: u32, expires_at: Expiry) -> bool {
        generation < self.index.generation() || self.has_passed(expires_at)
    }

    // Keeps invariant I1: key, header and value are checked.
    fn judge<R>(
        &self,
        word: Word,
        key: &[u8],
        sighting: Sighting,
        take: &mut impl FnMut(ValueSource<'_>, Word) -> Result<Option<R>>,
        verdict: &mut Option<Judgement<R>>,
    ) -> Probe {
        if sighting == Sighting::Inside
            && let Some((generation, stored)) =
                self.hot.get(word, Form::Bytes, key, |e| Some((e.generation, e.stored()?)))
        {
            let expires_at = stored.expires_at;
            return match self.judge_hot(generation, expires_at, || {
                take(ValueSource::HotTier { stored, generation }, word)
            }) {
                Judgement::Hit(taken) => conclude(taken, verdict),
                _ => {
                    *verdict = Some(Judgement::Dead);
                    Probe::Match
                }
            };
        }
        let guard = match self.log.fetch(word.segment()) {
            Ok(guard) => guard,
            Err(error) => {
                *verdict = Some(Judgement::Failed(error));
                return Probe::Match;
            }
        };
        let Some(segment) = guard.get() else {
            return Probe::Unreadable;
        };
        let Some(record) = segment.record(word.offset()) else { return Probe::Unreadable };
        if record.key != key {
            return Probe::Other;
        }
        if self.has_ended(record.generation, record.expires_at) {
            *verdict = Some(Judgement::Dead);
        } else if let Some(reference) = record.blob() {
            let opened = self.blobs.open_blob(reference);
            let taken = opened.and_then(|blob| {
                blob.map_or(Ok(None), |blob| {
                    take(ValueSource::Blob { blob, record: &record, soft: record.soft() }, word)
                })
            });
            return conclude(taken, verdict);
        } else if let Some((soft, value)) = record.content().filter(|_| record.kind == Kind::Value)
        {
            let hit =
                Hit { segment, record: &record, value, soft, most_pinned: self.most_pinned() };
            if sighting == Sighting::Seen && self.hot.admits(value.len()) {
                self.keep_hot(word, &hit);
            }
            return conclude(take(ValueSource::Log(hit), word), verdict);
        } else {
            *verdict = Some(Judgement::Damaged);
        }
        Probe::Match
    }

    fn keep_hot(&self, word: Word, hit: &Hit<'_>) {
        // A copy, even of a large value: the hot tier must not keep segments mapped.
        let content =
            HotContent::Bytes(stored(hit.record, hit.soft, Bytes::copy_from_slice(hit.value)));
        self.hot.insert(
            word,
            HotEntry { key: hit.record.key.into(), generation: hit.record.generation, content },
        );
    }

    /// Removes an entry that turned out to be damaged while its blob was streamed.
    pub(crate) fn drop_named(&self, (hash, word): (u64, Word)) {
        if let Some(slot) = self.index.slot_of(hash, word) {
            self.drop_damaged(slot, word);
        }
    }

    /// Removes a damaged entry, so that it is found and counted once. A read-only attachment cannot
    /// remove it.
    fn drop_damaged(&self, slot: Slot, word: Word) {
        // If it is not removed, each read of it counts it.
        if self.is_read_only() || self.evict(slot, word) {
            self.counters.one(Counter::Corrupt);
            tracing::warn!(
                dir = %self.dir.display(),
                segment = word.segment(),
                offset = word.offset(),
                "a record is damaged; its key has no value"
            );
        }
    }

    /// Values that the program holds pin at most an eighth of the log; the rest stays reclaimable.
    fn most_pinned(&self) -> u64 {
        self.log.budget() / 8
    }

    /// The words of a chain, each with a guard of the segment that it names. Retries, because a
    /// compaction may copy an entry's record elsewhere and remove its segment meanwhile.
    fn hold_chain(&self, primary: u32) -> Result<Vec<(SegmentGuard, Word)>> {
        let mut held = Vec::new();
        for _ in 0..RETRIES {
            let words = self.index.chain_words(primary).into_iter();
            let hold = |word: Word| Ok((self.log.fetch(word.segment())?, word));
            held = words.map(hold).collect::<Result<_>>()?;
            if held.iter().all(|(guard, _)| guard.get().is_some()) {
                break;
            }
        }
        Ok(held)
    }

    /// Visits the live entries of the next few buckets whose keys have a hash of at least `cursor`.
    /// Returns the cursor of the next call. The cursor is a hash, so it stays valid in an index of
    /// another size, which a read-only attachment may find at the next call. Blobs are read only
    /// `with_values`.
    pub(crate) fn scan(
        &self,
        cursor: u64,
        with_values: bool,
        visit: &mut dyn FnMut(&[u8], Item<'_>),
    ) -> Result<Option<u64>> {
        /// Buckets per call.
        const STEP: u32 = 64;
        let primaries = self.index.geometry().primaries;
        let first = self.index.primary_of(cursor);
        let end = first.saturating_add(STEP).min(primaries);
        // The cursor is inside the first bucket (of an index with fewer, larger buckets): the
        // lower hashes were visited before.
        let is_larger = lowest_hash(first, primaries) != Some(cursor);
        for primary in first..end {
            for (guard, word) in self.hold_chain(primary)? {
                let Some(segment) = guard.get() else { continue };
                let Some(record) = segment.record(word.offset()) else { continue };
                if self.has_ended(record.generation, record.expires_at) || !record.is_entry() {
                    continue;
                }
                if is_larger && primary == first && self.hasher.hash(record.key) < cursor {
                    continue;
                }
                if let Some(reference) = record.blob() {
                    let Some(blob) = self.blobs.open_blob(reference)? else { continue };
                    let source = ValueSource::Blob { blob, record: &record, soft: record.soft() };
                    let source = if with_values { source.whole()? } else { Some(source) };
                    source.iter().for_each(|source| visit(record.key, source.item()));
                } else if let Some((soft, value)) =
                    record.content().filter(|_| record.kind == Kind::Value)
                {
                    let most_pinned = self.most_pinned();
                    let hit = Hit { segment, record: &record, value, soft, most_pinned };
                    visit(record.key, ValueSource::Log(hit).item());
                }
            }
        }
        Ok(lowest_hash(end, primaries))
    }
}

/// The lowest hash of bucket `primary` of `primaries`; `None` if there is no such bucket. The
/// inverse of `Index::primary_of`.
fn lowest_hash(primary: u32, primaries: u32) -> Option<u64> {
    u64::try_from((u128::from(primary) << 64).div_ceil(u128::from(primaries))).ok()
}

/// Turns the result of `take` into a verdict: a value is a hit. Without one, the record is damaged,
/// or it was moved after the word was read.
fn conclude<R>(taken: Result<Option<R>>, verdict: &mut Option<Judgement<R>>) -> Probe {
    *verdict = Some(match taken {
        Ok(Some(taken)) => Judgement::Hit(taken),
        Ok(None) => return Probe::Unreadable,
        Err(error) => Judgement::Failed(error),
    });
    Probe::Match
}
