//! The index: which record each key's entry is. A file mapped as shared memory.
//!
//! ```text
//! header         the words below, hot ones on cache lines of their own
//! attach table   four words for each process ([`members`])
//! segment table  a cache line for each segment ([`segments`])
//! buckets        a cache line each: a control word and seven entry words
//! ```
//!
//! An entry word is `tag (10 bits) | segment id (32) | offset in units of 8 bytes (22)`. Segment ids are never
//! used again, so a word means one record forever: one store publishes, one load reads, and nobody can mistake
//! a new record for an old one. A word of segment 0 in the last slot of a bucket links to an overflow bucket.
//!
//! The file is never trusted after an unclean end. Within one life it is guarded against stray writes: each
//! bucket's control word carries a check of its entry words (see [`bucket`]).

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
pub(crate) use self::process_slot::ProcessSlot;
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
fn is_of(geometry: Geometry, file: &File) -> io::Result<bool> {
    Ok(file.len()? == geometry.index_bytes())
}

/// The header of the index in `file`; zeros where it ends before.
fn header_of(file: &File) -> io::Result<HeaderCopy> {
    let mut bytes = [0; HEADER_WORDS * 8];
    match file.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok([0; HEADER_WORDS]),
        read => read?,
    }
    Ok(std::array::from_fn(|at| u64::from_le_bytes(std::array::from_fn(|i| bytes[at * 8 + i]))))
}

#[derive(Debug)]
pub(crate) struct Index {
    map: Map,
    geometry: Geometry,
    buckets_at: usize,
    /// Who this process is among those that share the index.
    process_slot: ProcessSlot,
}

impl Index {
    /// Makes the index anew in `file`, empty: all zeros but for its geometry.
    pub(crate) fn create(
        file: &File,
        geometry: Geometry,
        process_slot: ProcessSlot,
    ) -> io::Result<Self> {
        file.reset(geometry.index_bytes(), HUGE_PIECES)?;
        Self::fill(Self::map(file, geometry, process_slot)?)
    }

    /// One that nobody else will ever use.
    pub(crate) fn in_memory(geometry: Geometry) -> io::Result<Self> {
        let map = Map::anonymous(geometry.index_bytes() as usize)?;
        Self::fill(Self::over(map, geometry, ProcessSlot::alone()))
    }

    /// Says in the header of `index`, which is all zeros, what it is.
    fn fill(mut index: Self) -> io::Result<Self> {
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

    /// Maps the index that `file` holds, if it has one whose header is exactly `expected`.
    pub(crate) fn open(
        file: &File,
        expected: &HeaderCopy,
        process_slot: ProcessSlot,
    ) -> io::Result<Option<Self>> {
        let Some(geometry) = Geometry::stated_at_rest(expected) else { return Ok(None) };
        if !is_of(geometry, file)? {
            return Ok(None);
        }
        // A copy may have holes, and a store into one can fail.
        file.allocate(geometry.index_bytes())?;
        let mut index = Self::map(file, geometry, process_slot)?;
        if index.header_copy() != *expected {
            return Ok(None);
        }
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index that other processes are using, if `file` holds one.
    pub(crate) fn join(file: &File, process_slot: ProcessSlot) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let Some(geometry) = Geometry::stated(&header) else { return Ok(None) };
        if !is_of(geometry, file)? {
            return Ok(None);
        }
        let mut index = Self::map(file, geometry, process_slot)?;
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index that `file` holds, if it has one, to be read only: that of other processes, or one whose header is
    /// exactly `closed`. Of its methods, those that store anything must not be called.
    pub(crate) fn look(
        file: &File,
        closed: Option<&HeaderCopy>,
        process_slot: ProcessSlot,
    ) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let stated = match closed {
            Some(closed) if *closed != header => None,
            Some(closed) => Geometry::stated_at_rest(closed),
            None => Geometry::stated(&header),
        };
        let Some(geometry) = stated else { return Ok(None) };
        if !is_of(geometry, file)? {
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

    /// The sequence that was to be given out next when `header` was copied.
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

    /// All that the index keeps of a hash: chain and tag. One key in 250 times as many as there are entries has the
    /// same as another.
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

    /// The generation of `clear`: entries of an older one are gone.
    pub(crate) fn generation(&self) -> u32 {
        self.words()[at::GENERATION].load(Ordering::Acquire) as u32
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.words()[at::SEQUENCE].fetch_add(1, Ordering::AcqRel)
    }

    /// The sequence that was given out last.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.words()[at::SEQUENCE].load(Ordering::Acquire).saturating_sub(1)
    }

    /// The recency clock as the header of the index in `file` shows it, if it is one.
    pub(crate) fn recency_in(file: &File) -> Option<u32> {
        let header = header_of(file).ok()?;
        (header[at::MAGIC] == MAGIC).then_some(header[at::RECENCY] as u32)
    }

    pub(crate) fn set_next_sequence(&self, sequence: u64) {
        self.words()[at::SEQUENCE].store(sequence, Ordering::Release);
    }

    /// No segment had this id yet, nor a higher one.
    pub(crate) fn unused_segment_id(&self) -> u64 {
        self.words()[at::NEXT_SEGMENT].load(Ordering::Acquire)
    }

    /// Makes sure that the next segment id is not below `id`.
    pub(crate) fn raise_next_segment_id(&self, id: u64) {
        self.words()[at::NEXT_SEGMENT].fetch_max(id, Ordering::AcqRel);
    }

    /// Says where the next life goes on writing: at `tail` of segment `id`.
    pub(crate) fn set_end_of_log(&self, id: u32, tail: u32) {
        self.words()[at::END_OF_LOG]
            .store(u64::from(id) | u64::from(tail) << 32, Ordering::Release);
    }

    /// The segment to go on with and the place in it, as the last life noted them.
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

    /// Counts an insert and moves the recency clock once in `inserts_per_tick` of them.
    pub(crate) fn count_insert(&self, inserts_per_tick: u64) {
        let before = self.words()[at::INSERTS].fetch_add(1, Ordering::Relaxed);
        if (before + 1).is_multiple_of(inserts_per_tick) {
            self.words()[at::RECENCY].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Gives every bucket that is not locked the check that fits its words.
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
