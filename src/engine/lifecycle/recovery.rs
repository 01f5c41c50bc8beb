//! Making the index anew when nobody closed the directory: from the newest snapshot, and from what the log took since.
//!
//! Of the stamped records that are not older than the snapshot the one with the highest sequence wins, for each key, and
//! the generation is the greatest seen. Tombstones take part like values and are removed at the end. Evictions are not
//! logged, so there may be more keys than the index has room for: where a chain is full, its lowest sequence goes, and
//! from then on nothing older than that may enter the chain, or a deleted value could come back behind its
//! tombstone. It may die anywhere and be repeated: it writes nothing but the index and the hints.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::record::{Kind, Record};
use crate::engine::format::sizing::Layout;
use crate::engine::format::snapshot::{self, Header, SnapshotPart};
use crate::engine::format::word::Word;
use crate::engine::hints::{Hint, Hints};
use crate::engine::index::{Index, Probe, ProcessSlot, Slot, Vacancy};
use crate::engine::lifecycle::directory::Directory;
use crate::engine::log::segment::Segment;
use crate::engine::shared::index_watch;
use crate::engine::shared::snapshot_file;
use crate::error::{Error, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::step;
use crate::sys::storage::{Access, File};
use crate::time::Timestamp;

/// The next sequence after a recovery is so much higher than any that was found, so that one which was given out
/// and lost is not given out again.
const SEQUENCE_GAP: u64 = 1 << 32;

/// What a recovery begins with.
pub(crate) enum Base {
    /// Nothing was ever removed from the log: all of it is replayed.
    Empty,
    /// A snapshot.
    Snapshot(File, Header),
    /// The words of an index that was closed and has another size than is needed now. Nothing is replayed.
    Closed(Vec<Word>, Header),
    /// Nobody can say what in the log still counts: the cache starts cold. What the log has is left to `salvage`.
    Lost,
    /// As `Empty`, though older values may come back: somebody asked for it.
    Salvage,
}

/// What a recovery has to know.
pub(crate) struct Inputs<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) layout: &'a Layout,
    pub(crate) process_slot: &'a ProcessSlot,
    pub(crate) hasher: &'a KeyHasher,
    pub(crate) options: &'a Options,
    /// To read: nothing is written but memory, and the index is this process's own.
    pub(crate) access: Access,
}

pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) hints: Hints,
    /// Whether only a checkpoint makes this what the next recovery begins with.
    pub(crate) wants_checkpoint: bool,
    /// The segments in which the next recovery would look for nothing new.
    pub(crate) sealed: HashSet<u32>,
}

struct Replay<'a> {
    index: &'a Index,
    hints: &'a Hints,
    hasher: &'a KeyHasher,
    segments: HashMap<u32, &'a Segment>,
    base: Header,
    /// From where on each segment may have records that are not in the base; all of it where nothing is said.
    looked_at: HashMap<u32, u32>,
    now: Timestamp,
    /// What the recency clock shows when all is done.
    clock: u32,
    /// Words in the index.
    words: u64,
    /// Words that were entered and are not to stay.
    graves: Vec<(u64, Word)>,
    /// The highest sequence that was given up in each chain that was ever full, by its primary.
    floors: HashMap<u32, u64>,
    /// The least generation of what is in the index.
    least_generation: u32,
    generation: u32,
    last_sequence: u64,
}

/// `known_sequence` was given out before, as far as a clean end told; 0 if none did.
/// Keeps invariant I20.
pub(crate) fn recover(
    inputs: Inputs<'_>,
    segments: &[Segment],
    known_sequence: u64,
    base: Base,
) -> Result<Recovered> {
    let Inputs { directory, layout, process_slot, hasher, options, access } = inputs;
    let index_path = directory.file("index");
    let old = directory.storage.open_to_read(&index_path).ok();
    let seen_recency = old.and_then(|file| Index::recency_in(&file)).unwrap_or(0);
    let index = match access {
        Access::ToRead => {
            Index::in_memory(layout.geometry).map_err(|e| Error::io("recover", &index_path, e))
        }
        Access::ToWrite => make_index(directory, layout.geometry, process_slot),
    }?;
    segments.iter().for_each(|segment| index.restore_segment(segment.id, segment.len()));
    let header = match &base {
        Base::Snapshot(_, header) | Base::Closed(_, header) => *header,
        Base::Empty | Base::Salvage => Header { sequence: 0, ..Header::default() },
        Base::Lost => Header { sequence: u64::MAX, ..Header::default() },
    };
    let keeps_places =
        matches!(base, Base::Snapshot(..)) && header.primaries == layout.geometry.primaries;
    // What they say of words that stay where they are is still good; what is wrong is put right in time.
    let hints = match access {
        Access::ToRead => Hints::none().map_err(|e| Error::io("open", &directory.path, e))?,
        Access::ToWrite => {
            make_file(directory, "hints", |file| match Hints::open(file, layout.geometry)? {
                Some(hints) if keeps_places => Ok(hints),
                _ => Hints::create(file, layout.geometry),
            })?
        }
    };
    index.raise_next_segment_id(header.next_segment);
    // Not behind what the hints say that are kept.
    let is_plausible = seen_recency.wrapping_sub(header.recency) < 1 << 20;
    let clock = if is_plausible { seen_recency } else { header.recency }.wrapping_add(1);
    index.set_recency(clock);
    let mut replay = Replay {
        index: &index,
        hints: &hints,
        hasher,
        segments: segments.iter().map(|s| (s.id, s)).collect(),
        base: header,
        looked_at: HashMap::new(),
        now: options.clock.now(),
        clock,
        words: 0,
        graves: Vec::new(),
        floors: HashMap::new(),
        least_generation: u32::MAX,
        generation: header.generation,
        last_sequence: known_sequence.max(if header.sequence == u64::MAX {
            0
        } else {
            header.sequence
        }),
    };
    let replays = !matches!(base, Base::Closed(..));
    let wants_checkpoint = matches!(base, Base::Lost | Base::Closed(..) | Base::Salvage);
    match base {
        Base::Snapshot(file, _) => {
            let path = &directory.path;
            if access == Access::ToWrite {
                // Whoever wrote its header may have died before the sync, and the other file is the next to be written over.
                file.sync().map_err(|e| Error::io("sync the snapshot in", path, e))?;
            }
            replay
                .load(&file, keeps_places)
                .map_err(|e| Error::io("read the snapshot in", path, e))?;
        }
        Base::Closed(words, _) => words.into_iter().for_each(|word| replay.place(word)),
        Base::Empty | Base::Lost | Base::Salvage => {}
    }
    let mut backlog = 0;
    // Newest first: where there is no room for all, what was written last stays.
    for segment in segments.iter().rev().filter(|_| replays) {
        let from = replay.looked_at.get(&segment.id).copied().unwrap_or(0);
        if from < segment.len() as u32 {
            step!("recovery::segment");
            replay.scan(segment, from);
            backlog += segment.len() - u64::from(from);
        }
    }
    index.add_logged(backlog);
    let sealed = replay
        .looked_at
        .iter()
        .filter(|(_, from)| **from == snapshot::SEALED)
        .map(|(id, _)| *id)
        .collect();
    let entries = replay.finish();
    tracing::info!(path = %index_path.display(), entries, "the cache was not closed; it was recovered");
    Ok(Recovered { index, hints, wants_checkpoint, sealed })
}

/// Makes the index anew; in a file of its own, if onlookers have the one that was there mapped.
fn make_index(
    directory: &Directory,
    geometry: Geometry,
    process_slot: &ProcessSlot,
) -> Result<Index> {
    let path = directory.file("index");
    index_watch::remove_if_watched(directory.storage, &path)
        .map_err(|e| Error::io("replace", &path, e))?;
    let index =
        make_file(directory, "index", |file| Index::create(file, geometry, process_slot.clone()))?;
    // What is closed with this index is found with it.
    directory
        .storage
        .sync_dir(&directory.path)
        .map_err(|e| Error::io("sync directory", &directory.path, e))?;
    Ok(index)
}

/// Makes the contents of one of the files that a recovery writes. What cannot be written over (a link, a second
/// name of a file elsewhere) is an error; it was not made by us.
fn make_file<T>(
    directory: &Directory,
    name: &str,
    fill: impl FnOnce(&File) -> io::Result<T>,
) -> Result<T> {
    let path = directory.file(name);
    let made = directory.storage.open_or_create(&path).and_then(|(file, _)| fill(&file));
    made.map_err(|e| Error::io("create", &path, e))
}

impl Replay<'_> {
    /// Puts the words of a snapshot into the index: where they were, or where they belong in an index of this size.
    fn load(&mut self, file: &File, keeps_places: bool) -> io::Result<()> {
        let header = self.base;
        let mut damaged = 0u64;
        let (mut here, mut more) = (Vec::new(), Vec::new());
        snapshot_file::read(file, &header, |part| match part {
            SnapshotPart::Chain { number, primary, overflow } if keeps_places => {
                let is_there = |word: &Word| self.index.segment_state(word.segment()).is_some();
                here.clear();
                here.extend(primary.iter().filter(|(_, word)| is_there(word)));
                more.clear();
                more.extend(overflow.iter().filter(|word| is_there(word)));
                self.words += self.index.unpack(number, &here, &more);
            }
            SnapshotPart::Chain { primary, overflow, .. } => {
                let words = primary.iter().map(|(_, word)| word).chain(overflow);
                words.for_each(|word| self.place(*word));
            }
            SnapshotPart::Segment(id, from, live) => {
                self.looked_at.insert(id, from);
                if keeps_places {
                    self.index.set_live_bytes(id, live);
                }
            }
            SnapshotPart::Damaged => damaged += 1,
        })?;
        if self.words > 0 {
            self.least_generation = header.generation;
        }
        if damaged > 0 {
            tracing::warn!(
                blocks = damaged,
                "part of the snapshot is damaged; its entries are lost"
            );
        }
        Ok(())
    }

    /// Enters what `word` names.
    fn place(&mut self, word: Word) {
        let Some(segment) = self.segments.get(&word.segment()).copied() else { return };
        if let Some(record) = segment.record(word.offset()) {
            self.enter(segment, word.offset(), &record);
        }
    }

    /// Enters what a segment has that is not in the base.
    fn scan(&mut self, segment: &Segment, from: u32) {
        for (offset, record) in segment.records_from(from) {
            // Of an older clear the base says whether it came to its end.
            if record.sequence >= self.base.sequence || self.base.sequence == u64::MAX {
                self.generation = self.generation.max(record.generation);
            }
            self.last_sequence = self.last_sequence.max(record.sequence);
            // A write that a power cut tore was never acknowledged as synced, and what was there before it may have been.
            if record.sequence >= self.base.sequence && !record.is_torn() {
                self.enter(segment, offset, &record);
            }
        }
    }

    // Keeps invariant I21.
    fn enter(&mut self, segment: &Segment, offset: u32, record: &Record<'_>) {
        if record.kind == Kind::Clear {
            return;
        }
        let hash = self.hasher.hash(record.key);
        let mut there = None;
        let found = self.index.find(hash, |word| match self.record(word) {
            Some(other) if other.key == record.key => {
                there = Some((other.sequence, other.len));
                Probe::Match
            }
            _ => Probe::Other,
        });
        // Nobody else is attached.
        let Ok(locked) = self.index.lock(hash) else { return };
        if self.floors.get(&locked.primary()).is_some_and(|floor| record.sequence <= *floor) {
            return;
        }
        let slot = match (found.entry, there) {
            (Some(_), Some((sequence, _))) if sequence >= record.sequence => return,
            (Some((slot, word)), Some((_, len))) => {
                self.index.add_live_bytes(word.segment(), -i64::from(len));
                slot
            }
            _ => match locked.vacant() {
                Ok(Vacancy { slot, moved }) => {
                    if let Some((from, to)) = moved {
                        self.hints.set(to, self.hints.get(from));
                    }
                    self.words += 1;
                    slot
                }
                Err(_) => {
                    let mut lowest: Option<(u64, Slot)> = None;
                    locked.slots(|slot, word| {
                        let sequence = self.record(word).map_or(0, |record| record.sequence);
                        if lowest.is_none_or(|(least, _)| sequence < least) {
                            lowest = Some((sequence, slot));
                        }
                    });
                    let Some((sequence, slot)) = lowest else { return };
                    // What is given up stays in the log, and may come back with the next replay.
                    locked.note_lost();
                    let floor = self.floors.entry(locked.primary()).or_default();
                    *floor = (*floor).max(sequence.min(record.sequence));
                    if record.sequence < sequence {
                        return;
                    }
                    slot
                }
            },
        };
        let word = Word::new(hash, segment.id, offset);
        locked.set(slot, word);
        self.hints.set(slot, Hint::new(record.expires_at, record.generation, self.clock));
        self.index.add_live_bytes(segment.id, i64::from(record.len));
        self.least_generation = self.least_generation.min(record.generation);
        if record.kind == Kind::Tombstone || record.is_expired(self.now) {
            self.graves.push((hash, word));
        }
    }

    fn record(&self, word: Word) -> Option<Record<'_>> {
        self.segments.get(&word.segment()).and_then(|s| s.record(word.offset()))
    }

    /// Removes what is not to stay, and says how many entries there are.
    fn finish(mut self) -> u64 {
        for (hash, word) in std::mem::take(&mut self.graves) {
            if let Some(slot) = self.index.slot_of(hash, word) {
                self.remove(slot, word);
            }
        }
        // A clear that came after the snapshot, or in between.
        if self.generation > self.least_generation {
            let all: Vec<_> = self.index.entries(0..self.index.geometry().buckets).collect();
            for (slot, word) in all {
                if self.record(word).is_none_or(|record| record.generation < self.generation) {
                    self.remove(slot, word);
                }
            }
        }
        self.index.set_count(self.generation, self.words);
        self.index.set_next_sequence(self.last_sequence.saturating_add(SEQUENCE_GAP));
        self.words
    }

    fn remove(&mut self, slot: Slot, word: Word) {
        let len = self.record(word).map_or(0, |record| record.len);
        self.index.add_live_bytes(word.segment(), -i64::from(len));
        if let Ok(locked) = self.index.lock_slot(slot) {
            locked.clear(slot);
        }
        self.words = self.words.saturating_sub(1);
    }
}
