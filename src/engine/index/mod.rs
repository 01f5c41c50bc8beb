//! The index: a hash table in shared memory that says where the record of each key is. All attached
//! processes map the same file.
//!
//! ```text
//! header         64 words; those that change often have a cache line of their own
//! attach table   a row of four words for each process ([`attach_table`])
//! segment table  a cache line for each segment ([`segments`])
//! buckets        a cache line each: a control word and seven entry words ([`bucket`])
//! ```
//!
//! An entry word is `tag (10 bits) | segment id (32) | offset in units of 8 bytes (22)`. Segment
//! ids are never reused, so a word names one record forever: one store publishes, one load reads,
//! and a reader cannot confuse an old record with a new one. A word with segment 0 in the last slot
//! of a bucket links to an overflow bucket.
//!
//! After an unclean end the file is not trusted; a recovery rebuilds it. Between an open and a
//! close the file is protected against stray writes: the control word of each bucket has a check of
//! its entry words.

mod attach_table;
pub(crate) mod bucket;
mod chain;
mod count;
mod header;
mod limits;
mod lock;
mod locked_chain;
mod overflow;
mod pack;
mod process_slot;
mod roles;
mod segments;
mod slot;

use std::io;

use self::bucket::Bucket;
pub(crate) use self::count::{ClearLock, CountUp};
pub(crate) use self::lock::{Busy, Locked};
pub(crate) use self::locked_chain::Vacancy;
pub(crate) use self::pack::Packed;
pub(crate) use self::process_slot::{Owner, ProcessSlot};
pub(crate) use self::roles::{Role, RoleGuard, Waited, busy};
pub(crate) use self::segments::{HIGHEST_SEGMENT, SegmentInfo, SegmentState};
pub(crate) use self::slot::{Found, Probe, Slot};
use crate::engine::format::geometry::Geometry;
use crate::engine::format::index_header::{HEADER_WORDS, HeaderCopy, LINE, MAGIC, at};
use crate::engine::format::word::{Word, tag};
use crate::sys::atomic::{AtomicU64, Ordering};
use crate::sys::map::Map;
use crate::sys::storage::{File, HUGE_PIECES};

/// Whether `file` is as long as an index of this geometry.
fn has_length_of(geometry: Geometry, file: &File) -> io::Result<bool> {
    Ok(file.len()? == geometry.index_bytes())
}

/// The header of the index in `file`; zeros if the file is shorter than a header.
fn header_of(file: &File) -> io::Result<HeaderCopy> {
    let mut bytes = [0; HEADER_WORDS * 8];
    match file.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok([0; HEADER_WORDS]),
        read => read?,
    }
    Ok(std::array::from_fn(|at| u64::from_le_bytes(std::array::from_fn(|i| bytes[at * 8 + i]))))
}

/// A mapped index, as one process sees it.
#[derive(Debug)]
pub(crate) struct Index {
    map: Map,
    geometry: Geometry,
    /// The word at which the buckets begin.
    buckets_at: usize,
    /// The slot of this process in the attach table.
    process_slot: ProcessSlot,
}

impl Index {
    /// Creates an empty index in `file`, in place of its old content.
    pub(crate) fn create(
        file: &File,
        geometry: Geometry,
        process_slot: ProcessSlot,
    ) -> io::Result<Self> {
        file.reset(geometry.index_bytes(), HUGE_PIECES)?;
        Self::initialize(Self::map(file, geometry, process_slot)?)
    }

    /// Creates an index in the memory of this process, without a file.
    pub(crate) fn in_memory(geometry: Geometry) -> io::Result<Self> {
        let map = Map::anonymous(geometry.index_bytes() as usize)?;
        Self::initialize(Self::over(map, geometry, ProcessSlot::alone()))
    }

    /// Writes the header of `index`, whose words are all zero. The magic number is the last word.
    fn initialize(mut index: Self) -> io::Result<Self> {
        let geometry = index.geometry;
        index.enter()?;
        for (word, value) in [
            (at::PRIMARIES, u64::from(geometry.primaries)),
            (at::BUCKETS, u64::from(geometry.buckets)),
            (at::SEGMENTS, u64::from(geometry.segments)),
            (at::SEQUENCE, 1),
            (at::NEXT_OVERFLOW, u64::from(geometry.primaries)),
            (at::NEXT_SEGMENT, 1),
            (at::RECENCY, 1),
            (at::NEXT_EXPIRY, u64::MAX),
            (at::MAGIC, MAGIC),
        ] {
            index.words()[word].store(value, Ordering::Release);
        }
        Ok(index)
    }

    /// Maps the closed index in `file`, if its header is exactly `expected`.
    pub(crate) fn open(
        file: &File,
        expected: &HeaderCopy,
        process_slot: ProcessSlot,
    ) -> io::Result<Option<Self>> {
        let Some(geometry) = Geometry::of_closed(expected) else { return Ok(None) };
        if !has_length_of(geometry, file)? {
            return Ok(None);
        }
        // The file may be a copy with holes. A store into a hole fails if the disk is full.
        file.allocate(geometry.index_bytes())?;
        let mut index = Self::map(file, geometry, process_slot)?;
        if index.header_copy() != *expected {
            return Ok(None);
        }
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index in `file` that other processes are using, if there is one.
    pub(crate) fn join(file: &File, process_slot: ProcessSlot) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let Some(geometry) = Geometry::of(&header) else { return Ok(None) };
        if !has_length_of(geometry, file)? {
            return Ok(None);
        }
        let mut index = Self::map(file, geometry, process_slot)?;
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index in `file` read-only, if there is one: that of other processes, or the closed
    /// one whose header is exactly `closed`. Methods that store must not be called on it.
    pub(crate) fn open_read_only(
        file: &File,
        closed: Option<&HeaderCopy>,
        process_slot: ProcessSlot,
    ) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let geometry = match closed {
            Some(closed) if *closed != header => None,
            Some(closed) => Geometry::of_closed(closed),
            None => Geometry::of(&header),
        };
        let Some(geometry) = geometry else { return Ok(None) };
        if !has_length_of(geometry, file)? {
            return Ok(None);
        }
        let map = Map::to_read(file, geometry.index_bytes() as usize)?;
        Ok(Some(Self::over(map, geometry, process_slot)))
    }

    fn map(file: &File, geometry: Geometry, process_slot: ProcessSlot) -> io::Result<Self> {
        let map = Map::new(file, geometry.index_bytes() as usize)?;
        Ok(Self::over(map, geometry, process_slot))
    }

    fn over(map: Map, geometry: Geometry, process_slot: ProcessSlot) -> Self {
        Self { map, geometry, buckets_at: geometry.buckets_at(), process_slot }
    }

    pub(crate) fn header_copy(&self) -> HeaderCopy {
        std::array::from_fn(|i| self.words()[i].load(Ordering::Acquire))
    }

    /// The next sequence, according to a copy of the header.
    pub(crate) fn sequence_in(header: &HeaderCopy) -> u64 {
        header[at::SEQUENCE]
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.map.sync()
    }

    fn words(&self) -> &[AtomicU64] {
        self.map.words()
    }

    fn bucket(&self, number: u32) -> Option<Bucket<'_>> {
        let at = self.buckets_at + number as usize * LINE;
        let line = (number < self.geometry.buckets).then(|| self.words().get(at..at + LINE))??;
        Some(Bucket::new(line.try_into().ok()?))
    }

    /// The bucket of a hash: its high bits, scaled to the number of primaries.
    pub(crate) fn primary_of(&self, hash: u64) -> u32 {
        ((u128::from(hash) * u128::from(self.geometry.primaries)) >> 64) as u32
    }

    /// Chain and tag of a hash: all that the index keeps of it. There are about 250 times as many
    /// identities as entries.
    pub(crate) fn identity(&self, hash: u64) -> u64 {
        u64::from(self.primary_of(hash)) << 32 | tag(hash)
    }

    /// The [`identity`](Index::identity) of the hash whose word is in `slot`.
    pub(crate) fn identity_of_slot(&self, slot: Slot, word: Word) -> u64 {
        u64::from(self.primary_of_slot(slot)) << 32 | word.tag()
    }

    /// The slot that holds exactly `word`, whose key has this hash.
    pub(crate) fn slot_of(&self, hash: u64, word: Word) -> Option<Slot> {
        let here = |w: Word| if w == word { Probe::Match } else { Probe::Other };
        self.find(hash, here).entry.map(|(slot, _)| slot)
    }

    /// The current generation: entries of older ones are gone.
    pub(crate) fn generation(&self) -> u32 {
        self.words()[at::GENERATION].load(Ordering::Acquire) as u32
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.words()[at::SEQUENCE].fetch_add(1, Ordering::AcqRel)
    }

    /// The last sequence that was given out.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.words()[at::SEQUENCE].load(Ordering::Acquire).saturating_sub(1)
    }

    /// The recency clock in the header of the index in `file`, if `file` is an index.
    pub(crate) fn recency_in(file: &File) -> Option<u32> {
        let header = header_of(file).ok()?;
        (header[at::MAGIC] == MAGIC).then_some(header[at::RECENCY] as u32)
    }

    pub(crate) fn set_next_sequence(&self, sequence: u64) {
        self.words()[at::SEQUENCE].store(sequence, Ordering::Release);
    }

    /// The lowest id above those of all segments that ever existed.
    pub(crate) fn unused_segment_id(&self) -> u64 {
        self.words()[at::NEXT_SEGMENT].load(Ordering::Acquire)
    }

    /// Ensures that the next segment id is not below `id`.
    pub(crate) fn raise_next_segment_id(&self, id: u64) {
        self.words()[at::NEXT_SEGMENT].fetch_max(id, Ordering::AcqRel);
    }

    /// Notes, for the next open, where the log ends: at `tail` of segment `id`.
    pub(crate) fn set_end_of_log(&self, id: u32, tail: u32) {
        self.words()[at::END_OF_LOG]
            .store(u64::from(id) | u64::from(tail) << 32, Ordering::Release);
    }

    /// Where the log ended at the last close: segment and tail.
    pub(crate) fn end_of_log(&self) -> (u32, u32) {
        let word = self.words()[at::END_OF_LOG].load(Ordering::Acquire);
        (word as u32, (word >> 32) as u32)
    }

    /// The recency clock.
    pub(crate) fn recency(&self) -> u32 {
        self.words()[at::RECENCY].load(Ordering::Relaxed) as u32
    }

    pub(crate) fn set_recency(&self, tick: u32) {
        self.words()[at::RECENCY].store(u64::from(tick), Ordering::Relaxed);
    }

    /// Counts an insert. Advances the recency clock once in `inserts_per_tick` inserts.
    pub(crate) fn count_insert(&self, inserts_per_tick: u64) {
        let before = self.words()[at::INSERTS].fetch_add(1, Ordering::Relaxed);
        if (before + 1).is_multiple_of(inserts_per_tick) {
            self.words()[at::RECENCY].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Recomputes the check of each bucket that is not locked.
#[cfg(feature = "fuzzing")]
pub(crate) fn fit_checks(words: &mut [u64]) {
    let number = |at: usize| words.get(at).and_then(|w| u32::try_from(*w).ok()).unwrap_or(0);
    let [primaries, buckets, segments] = [at::PRIMARIES, at::BUCKETS, at::SEGMENTS].map(number);
    let first = Geometry { primaries, buckets, segments }.buckets_at();
    for line in words.get_mut(first..).unwrap_or_default().chunks_exact_mut(LINE) {
        let atomic: [AtomicU64; LINE] = std::array::from_fn(|i| AtomicU64::new(line[i]));
        if !Bucket::new(&atomic).control().is_locked() {
            line[0] =
                line[0] & 0xffff_ffff | u64::from(Bucket::new(&atomic).computed_check()) << 32;
        }
    }
}

#[cfg(test)]
mod tests;
