//! Making the index anew from the log, when nobody closed the directory.
//!
//! Every stamped record is looked at; for each key the one with the highest sequence wins, and the generation is
//! the greatest seen. Tombstones take part like values and are removed at the end. Evictions are not logged, so
//! the log may hold more keys than the index has room for: where a chain is full, its lowest sequence goes, and
//! from then on nothing older than that may enter the chain, or a deleted value could come back behind its
//! tombstone. It may die anywhere and be repeated: it writes nothing but the index and the hints.

use std::collections::HashMap;

use super::blob::{BlobRef, Blobs};
use super::directory::Directory;
use super::hints::{Hint, Hints};
use super::index::{Index, Probe, SegmentState, Slot, Vacancy, Word};
use super::layout::Layout;
use super::record::{Kind, Record};
use super::segment::Segment;
use crate::entry::Expiry;
use crate::error::{Error, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::{file, step};

/// The next sequence after a recovery is so much higher than any that was found, so that one which was given out
/// and lost is not given out again.
const SEQUENCE_GAP: u64 = 1 << 32;

/// The ages that recovered entries are given, by their order in the log.
const RECENCY_LEVELS: u64 = 256;

pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) hints: Hints,
}

/// What is remembered of the record in a slot while the log is replayed.
#[derive(Debug, Clone, Copy, Default)]
struct Replayed {
    sequence: u64,
    generation: u32,
    len: u32,
    expires_at: Expiry,
    is_tombstone: bool,
    /// What the record names.
    blob: Option<BlobRef>,
}

struct Replay<'a> {
    index: &'a Index,
    hasher: &'a KeyHasher,
    blobs: &'a Blobs,
    segments: HashMap<u32, &'a Segment>,
    /// By slot number.
    slots: Vec<Replayed>,
    /// The highest sequence that was given up in each chain that was ever full, by its primary.
    floors: HashMap<u32, u64>,
    generation: u32,
    first_sequence: u64,
    last_sequence: u64,
}

/// `known_sequence` was given out before, as far as a clean end told; 0 if none did.
pub(super) fn recover(
    directory: &Directory,
    layout: &Layout,
    owner: u32,
    hasher: &KeyHasher,
    segments: &[Segment],
    blobs: &Blobs,
    options: &Options,
    known_sequence: u64,
) -> Result<Recovered> {
    let index_path = directory.file("index");
    let index = make_file(directory, "index", |file| Index::create(file, layout.geometry, owner))?;
    let hints = make_file(directory, "hints", |file| Hints::create(file, layout.geometry))?;
    if segments.is_empty() {
        index.set_next_sequence(known_sequence + 1);
        return Ok(Recovered { index, hints });
    }
    let slots = vec![Replayed::default(); layout.geometry.buckets as usize * super::index::LINE];
    let mut replay = Replay {
        index: &index,
        hasher,
        blobs,
        segments: segments.iter().map(|s| (s.id, s)).collect(),
        slots,
        floors: HashMap::new(),
        generation: 0,
        first_sequence: u64::MAX,
        last_sequence: known_sequence,
    };
    // Newest first: where there is no room for all, what was written last stays.
    for segment in segments.iter().rev() {
        step!("recovery::segment");
        index.set_segment(segment.id, SegmentState::Sealed);
        for (offset, record) in segment.records() {
            replay.enter(segment, offset, &record);
        }
    }
    let entries = replay.finish(&hints, options);
    tracing::info!(path = %index_path.display(), entries, "the cache was not closed; its log was replayed");
    Ok(Recovered { index, hints })
}

/// Makes the contents of one of the files that a recovery writes. What cannot be written over (a link, a second
/// name of a file elsewhere) is an error; it was not made by us.
fn make_file<T>(
    directory: &Directory,
    name: &str,
    fill: impl FnOnce(&std::fs::File) -> std::io::Result<T>,
) -> Result<T> {
    let path = directory.file(name);
    let made = file::open_or_create(&path).and_then(|(file, _)| fill(&file));
    made.map_err(|e| Error::io("create", &path, e))
}

impl Replay<'_> {
    fn enter(&mut self, segment: &Segment, offset: u32, record: &Record<'_>) {
        self.generation = self.generation.max(record.generation);
        self.first_sequence = self.first_sequence.min(record.sequence);
        self.last_sequence = self.last_sequence.max(record.sequence);
        let is_tombstone = match record.kind {
            Kind::Clear => return,
            Kind::Tombstone => true,
            Kind::Value | Kind::Blob => false,
        };
        let hash = self.hasher.hash(record.key);
        let mine = Replayed {
            sequence: record.sequence,
            generation: record.generation,
            len: record.len,
            expires_at: record.expires_at,
            is_tombstone,
            blob: record.blob(),
        };
        let found = self.index.find(hash, |word| self.probe(word, record.key));
        let locked = self.index.lock(hash);
        if self.floors.get(&locked.primary()).is_some_and(|floor| mine.sequence <= *floor) {
            return;
        }
        let slot = match found.entry {
            Some((slot, _)) if self.slots[slot.number()].sequence >= mine.sequence => return,
            Some((slot, _)) => slot,
            None => match locked.vacant() {
                Ok(Vacancy { slot, moved }) => {
                    if let Some((from, to)) = moved {
                        self.slots[to.number()] = self.slots[from.number()];
                    }
                    slot
                }
                Err(_) => {
                    let mut lowest: Option<(u64, Slot)> = None;
                    locked.slots(|slot, _| {
                        let sequence = self.slots[slot.number()].sequence;
                        if lowest.is_none_or(|(least, _)| sequence < least) {
                            lowest = Some((sequence, slot));
                        }
                    });
                    let Some((sequence, slot)) = lowest else { return };
                    // What is given up stays in the log, and may come back with the next replay.
                    locked.note_lost();
                    let floor = self.floors.entry(locked.primary()).or_default();
                    *floor = (*floor).max(sequence.min(mine.sequence));
                    if mine.sequence < sequence {
                        return;
                    }
                    slot
                }
            },
        };
        locked.set(slot, Word::new(hash, segment.id, offset));
        self.slots[slot.number()] = mine;
    }

    fn probe(&self, word: Word, key: &[u8]) -> Probe {
        let record = self.segments.get(&word.segment()).and_then(|s| s.record(word.offset()));
        match record {
            Some(record) if record.key == key => Probe::Match,
            _ => Probe::Other,
        }
    }

    /// Notes that `word` names a blob. `false` if there is no such blob.
    fn adopt(&self, blob: BlobRef, word: Word) -> bool {
        let record = self.segments.get(&word.segment()).and_then(|s| s.record(word.offset()));
        record.is_some_and(|record| self.blobs.adopt(blob.name, (self.hasher.hash(record.key), word)))
    }

    /// Removes what is dead, counts what is left, and gives each entry a hint.
    fn finish(self, hints: &Hints, options: &Options) -> u64 {
        let now = options.clock.now();
        let mut entries = 0;
        let span = self.last_sequence.saturating_sub(self.first_sequence) / RECENCY_LEVELS + 1;
        for (slot, word) in self.index.entries(0..self.index.geometry().buckets) {
            let replayed = &self.slots[slot.number()];
            let expired = replayed.expires_at.is_some_and(|end| end <= now);
            if replayed.is_tombstone || expired || replayed.generation < self.generation {
                self.index.lock_slot(slot).clear(slot);
                continue;
            }
            if let Some(blob) = replayed.blob
                && !self.adopt(blob, word)
            {
                let locked = self.index.lock_slot(slot);
                locked.clear(slot);
                // Its record stays in the log, and is found again by the next replay.
                locked.note_lost();
                continue;
            }
            entries += 1;
            let tick = ((replayed.sequence - self.first_sequence) / span) as u32;
            hints.set(slot, Hint::new(replayed.expires_at, self.generation, tick));
            self.index.add_live_bytes(word.segment(), i64::from(replayed.len));
        }
        self.index.set_recency(RECENCY_LEVELS as u32);
        self.index.set_count(self.generation, entries);
        self.index.set_next_sequence(self.last_sequence.saturating_add(SEQUENCE_GAP));
        entries
    }
}
