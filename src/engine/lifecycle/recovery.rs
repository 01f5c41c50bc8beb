//! Recovery: builds the index from the newest snapshot and the log, when the last process did not
//! close the directory, when its index has another size than is needed now, or on `salvage`.
//!
//! 1. Load the base: the words of the snapshot. It also says from which offset on each segment may
//!    have records that the snapshot does not contain.
//! 2. Replay the log from there, newest segment first. For each key, the stamped record with the
//!    highest sequence wins, if it is not older than the snapshot. Tombstones take part like
//!    values.
//! 3. Remove tombstones, expired entries, and entries of older generations than the greatest seen.
//! 4. Publish: the count, the generation and the next sequence.
//!
//! Evictions are not logged, so the log may have more keys than the index has slots. When a chain
//! is full, its lowest sequence is evicted. From then on, no older record may enter the chain.
//! Otherwise a deleted value could come back after its tombstone was evicted.
//!
//! A recovery writes only the index and the hints, so it can be killed anywhere and repeated.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::record::{Kind, Record};
use crate::engine::format::sizing::Layout;
use crate::engine::format::snapshot::{self, Header, SnapshotPart};
use crate::engine::format::word::Word;
use crate::engine::hints::{Hint, Hints};
use crate::engine::index::{Index, Locked, Probe, ProcessSlot, Slot, Vacancy};
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

/// How far the next sequence is above every sequence that was found. So a sequence that was given
/// out before the crash and lost is not given out again.
const SEQUENCE_GAP: u64 = 1 << 32;

/// What a recovery starts from.
pub(crate) enum Base {
    /// Nothing: no checkpoint ever removed a part of the log, so all of it is replayed.
    Empty,
    /// A snapshot.
    Snapshot(File, Header),
    /// The words of a closed index whose size does not fit any more. Nothing is replayed.
    Closed(Vec<Word>, Header),
    /// Nothing, because the snapshots are damaged. It is unknown which records of the log are still
    /// valid, so the cache starts cold. `salvage` can read them.
    Lost,
    /// As `Empty`, on request, although old values may come back.
    Salvage,
}

impl Base {
    fn header(&self) -> Header {
        match self {
            Self::Snapshot(_, header) | Self::Closed(_, header) => *header,
            Self::Empty | Self::Salvage => Header { sequence: 0, ..Header::default() },
            Self::Lost => Header { sequence: u64::MAX, ..Header::default() },
        }
    }

    /// Whether words stay in the slots that they had when the snapshot was taken.
    fn keeps_slots(&self, geometry: Geometry) -> bool {
        matches!(self, Self::Snapshot(_, header) if header.primaries == geometry.primaries)
    }

    fn is_replayed(&self) -> bool {
        !matches!(self, Self::Closed(..))
    }

    /// Whether the next recovery could not start from the same base: a checkpoint must follow.
    fn wants_checkpoint(&self) -> bool {
        matches!(self, Self::Lost | Self::Closed(..) | Self::Salvage)
    }
}

/// The parameters of a recovery.
pub(crate) struct Inputs<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) layout: &'a Layout,
    pub(crate) process_slot: &'a ProcessSlot,
    pub(crate) hasher: &'a KeyHasher,
    pub(crate) options: &'a Options,
    /// With `ToRead`, the index is built in the memory of this process and no file is written.
    pub(crate) access: Access,
}

/// The result of a recovery.
pub(crate) struct Recovered {
    pub(crate) index: Index,
    pub(crate) hints: Hints,
    /// Whether a checkpoint must follow, so that the next recovery can start from this index.
    pub(crate) wants_checkpoint: bool,
    /// The segments that the snapshot contains completely. The next recovery does not replay them.
    pub(crate) sealed: HashSet<u32>,
}

/// The state of a recovery after the index was created.
struct Replay<'a> {
    index: &'a Index,
    hints: &'a Hints,
    hasher: &'a KeyHasher,
    segments: HashMap<u32, &'a Segment>,
    base: Header,
    /// For each segment, the offset from which on it may have records that are not in the base. A
    /// segment that is not here is replayed from its start.
    replay_from: HashMap<u32, u32>,
    now: Timestamp,
    /// The recency clock after the recovery.
    clock: u32,
    /// How many words are in the index.
    words: u64,
    /// Hash and word of each tombstone and expired entry in the index: removed at the end.
    to_remove: Vec<(u64, Word)>,
    /// The highest sequence that was evicted from each chain that was ever full, by its primary.
    floors: HashMap<u32, u64>,
    /// The lowest generation of the entries in the index.
    least_generation: u32,
    generation: u32,
    last_sequence: u64,
}

/// Recovers the index of a directory. `known_sequence` is the last sequence that the last clean
/// close noted; 0 if there was none.
/// Keeps invariant I20.
pub(crate) fn recover(
    inputs: Inputs<'_>,
    segments: &[Segment],
    known_sequence: u64,
    base: Base,
) -> Result<Recovered> {
    let index_path = inputs.directory.file("index");
    let old = inputs.directory.storage.open_to_read(&index_path).ok();
    let last_recency = old.and_then(|file| Index::recency_in(&file)).unwrap_or(0);
    let index = create_index(&inputs, &index_path)?;
    segments.iter().for_each(|segment| index.restore_segment(segment.id, segment.len()));
    let header = base.header();
    let keeps_slots = base.keeps_slots(inputs.layout.geometry);
    let hints = open_hints(&inputs, keeps_slots)?;
    index.raise_next_segment_id(header.next_segment);
    let clock = clock_after(last_recency, &header);
    index.set_recency(clock);
    let mut replay = Replay {
        index: &index,
        hints: &hints,
        hasher: inputs.hasher,
        segments: segments.iter().map(|s| (s.id, s)).collect(),
        base: header,
        replay_from: HashMap::new(),
        now: inputs.options.clock.now(),
        clock,
        words: 0,
        to_remove: Vec::new(),
        floors: HashMap::new(),
        least_generation: u32::MAX,
        generation: header.generation,
        last_sequence: last_sequence_of(&header).max(known_sequence),
    };
    let (is_replayed, wants_checkpoint) = (base.is_replayed(), base.wants_checkpoint());
    replay.load_base(base, &inputs, keeps_slots)?;
    if is_replayed {
        replay.replay_log(segments);
    }
    let sealed = replay.sealed_in_base();
    replay.remove_dead();
    let entries = replay.publish();
    tracing::info!(path = %index_path.display(), entries, "rebuilt the index");
    Ok(Recovered { index, hints, wants_checkpoint, sealed })
}

/// The last sequence of a base, whose header says `u64::MAX` if it is lost.
fn last_sequence_of(base: &Header) -> u64 {
    if base.sequence == u64::MAX { 0 } else { base.sequence }
}

/// The recency clock after a recovery: not before the ticks in the hints that are kept.
fn clock_after(last_recency: u32, base: &Header) -> u32 {
    let is_plausible = last_recency.wrapping_sub(base.recency) < 1 << 20;
    if is_plausible { last_recency } else { base.recency }.wrapping_add(1)
}

/// Creates the empty index: in its file, or in memory.
fn create_index(inputs: &Inputs<'_>, path: &Path) -> Result<Index> {
    let (directory, geometry) = (inputs.directory, inputs.layout.geometry);
    match inputs.access {
        Access::ToRead => Index::in_memory(geometry).map_err(|e| Error::io("recover", path, e)),
        Access::ToWrite => replace_index(directory, geometry, inputs.process_slot),
    }
}

/// Opens the hints. Those of words that keep their slots are kept: hints are never believed, so the
/// wrong ones do no harm.
fn open_hints(inputs: &Inputs<'_>, keeps_slots: bool) -> Result<Hints> {
    let (directory, geometry) = (inputs.directory, inputs.layout.geometry);
    match inputs.access {
        Access::ToRead => Hints::none().map_err(|e| Error::io("open", &directory.path, e)),
        Access::ToWrite => {
            write_file(directory, "hints", |file| match Hints::open(file, geometry)? {
                Some(hints) if keeps_slots => Ok(hints),
                _ => Hints::create(file, geometry),
            })
        }
    }
}

/// Creates the index file in place of the old one; as a new file, if observers have the old one
/// mapped.
fn replace_index(
    directory: &Directory,
    geometry: Geometry,
    process_slot: &ProcessSlot,
) -> Result<Index> {
    let path = directory.file("index");
    index_watch::remove_if_watched(directory.storage, &path)
        .map_err(|e| Error::io("replace", &path, e))?;
    let index =
        write_file(directory, "index", |file| Index::create(file, geometry, process_slot.clone()))?;
    // Before `state` can say that the directory was closed with this index.
    directory
        .storage
        .sync_dir(&directory.path)
        .map_err(|e| Error::io("sync directory", &directory.path, e))?;
    Ok(index)
}

/// Writes one of the files that a recovery writes. A path that must not be overwritten (a link, a
/// second name of a file elsewhere) is an error: keepwarm did not create it.
fn write_file<T>(
    directory: &Directory,
    name: &str,
    fill: impl FnOnce(&File) -> io::Result<T>,
) -> Result<T> {
    let path = directory.file(name);
    let written = directory.storage.open_or_create(&path).and_then(|(file, _)| fill(&file));
    written.map_err(|e| Error::io("create", &path, e))
}

impl Replay<'_> {
    /// Phase 1: loads the base.
    fn load_base(&mut self, base: Base, inputs: &Inputs<'_>, keeps_slots: bool) -> Result<()> {
        match base {
            Base::Snapshot(file, _) => {
                let path = &inputs.directory.path;
                if inputs.access == Access::ToWrite {
                    // The process that wrote its header may have died before the sync. The next
                    // checkpoint overwrites the other snapshot, so this one must be durable.
                    file.sync().map_err(|e| Error::io("sync the snapshot in", path, e))?;
                }
                self.load(&file, keeps_slots)
                    .map_err(|e| Error::io("read the snapshot in", path, e))?;
            }
            Base::Closed(words, _) => words.into_iter().for_each(|word| self.enter_word(word)),
            Base::Empty | Base::Lost | Base::Salvage => {}
        }
        Ok(())
    }

    /// Puts the words of a snapshot into the index: into the slots that they had, or into the
    /// chains to which they belong in an index of this size.
    fn load(&mut self, file: &File, keeps_slots: bool) -> io::Result<()> {
        let header = self.base;
        let mut damaged = 0u64;
        let (mut in_slots, mut anywhere) = (Vec::new(), Vec::new());
        snapshot_file::read(file, &header, |part| match part {
            SnapshotPart::Chain { number, primary, overflow } if keeps_slots => {
                let is_there = |word: &Word| self.index.segment_state(word.segment()).is_some();
                in_slots.clear();
                in_slots.extend(primary.iter().filter(|(_, word)| is_there(word)));
                anywhere.clear();
                anywhere.extend(overflow.iter().filter(|word| is_there(word)));
                self.words += self.index.unpack(number, &in_slots, &anywhere);
            }
            SnapshotPart::Chain { primary, overflow, .. } => {
                let words = primary.iter().map(|(_, word)| word).chain(overflow);
                words.for_each(|word| self.enter_word(*word));
            }
            SnapshotPart::Segment(id, from, live) => {
                self.replay_from.insert(id, from);
                if keeps_slots {
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

    /// Enters the record that `word` names.
    fn enter_word(&mut self, word: Word) {
        let Some(segment) = self.segments.get(&word.segment()).copied() else { return };
        if let Some(record) = segment.record(word.offset()) {
            self.enter(segment, word.offset(), &record);
        }
    }

    /// Phase 2: replays what the base does not contain. Newest segment first: if the index has too
    /// few slots, the newest entries stay.
    fn replay_log(&mut self, segments: &[Segment]) {
        let mut backlog = 0;
        for segment in segments.iter().rev() {
            let from = self.replay_from.get(&segment.id).copied().unwrap_or(0);
            if from < segment.len() as u32 {
                step!("recovery::segment");
                self.replay_segment(segment, from);
                backlog += segment.len() - u64::from(from);
            }
        }
        self.index.add_logged(backlog);
    }

    /// Enters the records of a segment from offset `from` on that are not in the base.
    fn replay_segment(&mut self, segment: &Segment, from: u32) {
        for (offset, record) in segment.records_from(from) {
            // The base knows whether an older clear was finished.
            if record.sequence >= self.base.sequence || self.base.sequence == u64::MAX {
                self.generation = self.generation.max(record.generation);
            }
            self.last_sequence = self.last_sequence.max(record.sequence);
            // A write torn by a power cut was never acknowledged as synced. The record before it
            // may have been, so that one wins.
            if record.sequence >= self.base.sequence && !record.is_torn() {
                self.enter(segment, offset, &record);
            }
        }
    }

    /// The segments that the base contains completely.
    fn sealed_in_base(&self) -> HashSet<u32> {
        let sealed = self.replay_from.iter().filter(|(_, from)| **from == snapshot::SEALED);
        sealed.map(|(id, _)| *id).collect()
    }

    /// Enters a record, unless the index has a newer one of its key or the chain has evicted a
    /// newer one.
    /// Keeps invariant I21.
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
        // Never refused: no other process is attached.
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
                Err(_) => match self.evict_lowest(&locked, record.sequence) {
                    Some(slot) => slot,
                    None => return,
                },
            },
        };
        let word = Word::new(hash, segment.id, offset);
        locked.set(slot, word);
        self.hints.set(slot, Hint::new(record.expires_at, record.generation, self.clock));
        self.index.add_live_bytes(segment.id, i64::from(record.len));
        self.least_generation = self.least_generation.min(record.generation);
        if record.kind == Kind::Tombstone || record.is_expired(self.now) {
            self.to_remove.push((hash, word));
        }
    }

    /// The slot with the lowest sequence of a full chain, for a record with `sequence`; `None` if
    /// the record itself has the lowest one. Notes that the chain evicted the lower of the two.
    fn evict_lowest(&mut self, locked: &Locked<'_>, sequence: u64) -> Option<Slot> {
        let mut lowest: Option<(u64, Slot)> = None;
        locked.slots(|slot, word| {
            let sequence = self.record(word).map_or(0, |record| record.sequence);
            if lowest.is_none_or(|(least, _)| sequence < least) {
                lowest = Some((sequence, slot));
            }
        });
        let (least, slot) = lowest?;
        // The evicted record stays in the log, and the next replay may bring it back.
        locked.note_lost();
        let floor = self.floors.entry(locked.primary()).or_default();
        *floor = (*floor).max(least.min(sequence));
        (sequence >= least).then_some(slot)
    }

    fn record(&self, word: Word) -> Option<Record<'_>> {
        self.segments.get(&word.segment()).and_then(|s| s.record(word.offset()))
    }

    /// Phase 3: removes tombstones, expired entries, and entries that a clear removed.
    fn remove_dead(&mut self) {
        for (hash, word) in std::mem::take(&mut self.to_remove) {
            if let Some(slot) = self.index.slot_of(hash, word) {
                self.remove(slot, word);
            }
        }
        // There was a clear, after the snapshot or between the records.
        if self.generation > self.least_generation {
            let all: Vec<_> = self.index.entries(0..self.index.geometry().buckets).collect();
            for (slot, word) in all {
                if self.record(word).is_none_or(|record| record.generation < self.generation) {
                    self.remove(slot, word);
                }
            }
        }
    }

    fn remove(&mut self, slot: Slot, word: Word) {
        let len = self.record(word).map_or(0, |record| record.len);
        self.index.add_live_bytes(word.segment(), -i64::from(len));
        if let Ok(locked) = self.index.lock_slot(slot) {
            locked.clear(slot);
        }
        self.words = self.words.saturating_sub(1);
    }

    /// Phase 4: stores generation, count and next sequence. Returns the number of entries.
    fn publish(self) -> u64 {
        self.index.set_count(self.generation, self.words);
        self.index.set_next_sequence(self.last_sequence.saturating_add(SEQUENCE_GAP));
        self.words
    }
}
