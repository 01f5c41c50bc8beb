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

pub(crate) mod bucket;
mod chain;
mod count;
mod header;
mod limits;
mod lock;
mod members;
mod overflow;
mod pack;
mod segments;

use std::io;

use self::bucket::Bucket;
pub(crate) use self::chain::{Found, LONGEST_CHAIN, Probe, Slot, Vacancy};
pub(crate) use self::count::{ClearLock, CountUp};
pub(crate) use self::lock::{Busy, Locked};
pub(crate) use self::members::{HeldTurn, Membership, Turn, Waited, busy};
pub(crate) use self::pack::Packed;
pub(crate) use self::segments::{HIGHEST_SEGMENT, SegmentInfo, SegmentState};
use crate::sys::atomic::{AtomicU64, Ordering};
use crate::sys::file::File;
use crate::sys::map::Map;

/// An offset within a segment is stored in units of this many bytes.
const OFFSET_UNIT: u64 = super::record::ALIGN as u64;
const OFFSET_BITS: u32 = 22;
const SEGMENT_BITS: u32 = 32;
const TAG_SHIFT: u32 = OFFSET_BITS + SEGMENT_BITS;
/// The largest length of a segment whose every record a word can reach.
pub(crate) const MAX_OFFSET: u64 = OFFSET_UNIT << OFFSET_BITS;

/// Words in a cache line, and so in a bucket: a control word and the entries.
pub(crate) const LINE: usize = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"KWindex2");

/// Word numbers within the header.
mod at {
    pub(super) const MAGIC: usize = 0;
    pub(super) const PRIMARIES: usize = 1;
    pub(super) const BUCKETS: usize = 2;
    pub(super) const SEGMENTS: usize = 3;
    /// Read by every operation, changed seldom.
    pub(super) const GENERATION: usize = 8;
    pub(super) const RECENCY: usize = 9;
    pub(super) const MAX_ENTRIES: usize = 10;
    pub(super) const CULL_FREQUENCY: usize = 11;
    pub(super) const MAX_BYTES: usize = 12;
    /// Counts the segments that were removed.
    pub(super) const DROPS: usize = 13;
    /// Whether the entries must be counted again.
    pub(super) const RECOUNT: usize = 14;
    /// No entry expires before this time, in milliseconds since 1970.
    pub(super) const NEXT_EXPIRY: usize = 15;
    pub(super) const SEQUENCE: usize = 16;
    pub(super) const COUNT: usize = 24;
    pub(super) const CLEAR_LOCK: usize = 32;
    /// The first overflow bucket that was never used.
    pub(super) const NEXT_OVERFLOW: usize = 40;
    /// The first of those that were given back, plus one; its upper half counts changes.
    pub(super) const FREE_OVERFLOW: usize = 41;
    pub(super) const NEXT_SEGMENT: usize = 48;
    /// Entries of generations before this one have been swept.
    pub(super) const SWEPT: usize = 49;
    /// The number of the last snapshot that was begun.
    pub(super) const SNAPSHOT: usize = 50;
    /// Bytes that sealed segments took in records, ever.
    pub(super) const LOGGED: usize = 51;
    /// What the log had taken when the last checkpoint began.
    pub(super) const CHECKPOINTED: usize = 52;
    /// Bytes of all blobs.
    pub(super) const BLOB_BYTES: usize = 53;
    /// Whether a process died and nobody has looked after what it left.
    pub(super) const DEATHS: usize = 55;
    /// The highest number that a process ever had.
    pub(super) const HIGHEST_NUMBER: usize = 54;
    pub(super) const INSERTS: usize = 56;
    /// `id | tail << 32` of the segment to go on with, stored when the index is closed.
    pub(super) const END_OF_LOG: usize = 57;
    /// The limits that were asked for, of which the index may hold less.
    pub(super) const ASKED_ENTRIES: usize = 58;
    pub(super) const ASKED_BYTES: usize = 59;
    /// How often the file was given up for another one.
    pub(super) const GIVEN_UP: usize = 60;
    /// How often each of the turns that are waited for was taken.
    pub(super) const TURNS: usize = 61;
}
/// The word of the header that [`watch`](super::watch) is about.
pub(crate) const GIVEN_UP: usize = at::GIVEN_UP;
/// The words of the header that say something; the rest of its page is spare.
pub(crate) const HEADER_WORDS: usize = 64;
const ATTACH_AT: usize = 512;
/// As many processes as can be attached.
pub(crate) const MOST_PROCESSES: u32 = 1024;
const MEMBER_WORDS: usize = 4;
const SEGMENTS_AT: usize = ATTACH_AT + MOST_PROCESSES as usize * MEMBER_WORDS;

/// An entry word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) fn new(hash: u64, segment: u32, offset: u32) -> Self {
        debug_assert!(u64::from(offset) < MAX_OFFSET && segment != 0);
        Self(
            (tag(hash) << TAG_SHIFT)
                | (u64::from(segment) << OFFSET_BITS)
                | (u64::from(offset) / OFFSET_UNIT),
        )
    }

    pub(crate) fn segment(self) -> u32 {
        (self.0 >> OFFSET_BITS) as u32
    }

    pub(crate) fn offset(self) -> u32 {
        ((self.0 & ((1 << OFFSET_BITS) - 1)) * OFFSET_UNIT) as u32
    }

    /// The word without its tag: ordered by when the space was reserved.
    pub(crate) fn age(self) -> u64 {
        self.0 & ((1 << TAG_SHIFT) - 1)
    }

    fn tag(self) -> u64 {
        self.0 >> TAG_SHIFT
    }

    fn has_tag_of(self, hash: u64) -> bool {
        self.tag() == tag(hash)
    }

    fn is_entry(self) -> bool {
        self.segment() != 0
    }
}

/// The low bits of the hash; the bucket comes from the high ones.
fn tag(hash: u64) -> u64 {
    hash & ((1 << (64 - TAG_SHIFT)) - 1)
}

/// On average, where there are as many entries as an index is made for.
const ENTRIES_PER_BUCKET: u64 = 4;

/// How large an index is; fixed when its file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Buckets that keys hash to.
    pub(crate) primaries: u32,
    /// All buckets: the primaries and, after them, the overflow buckets.
    pub(crate) buckets: u32,
    /// Entries of the segment table, a power of two.
    pub(crate) segments: u32,
}

impl Geometry {
    /// Four entries to a bucket of seven: one bucket in twenty overflows at any time, and a quarter more is there
    /// for it, since an overflow bucket is kept until it is empty. Where the bound on entries is exact to the
    /// last one there is an overflow bucket for each primary.
    pub(crate) fn for_entries(max_entries: u64, max_segments: u64) -> Self {
        let primaries = max_entries.div_ceil(ENTRIES_PER_BUCKET).clamp(4, u64::from(u32::MAX / 2));
        let exact = crate::options::INLINE_CULL_ENTRIES / ENTRIES_PER_BUCKET;
        let buckets = primaries + primaries / 4 + primaries.min(exact) * 3 / 4 + 8;
        let segments = (max_segments * 2 + 32).next_power_of_two();
        Self { primaries: primaries as u32, buckets: buckets as u32, segments: segments as u32 }
    }

    /// The number of entries that it is made for.
    pub(crate) fn most_entries(&self) -> u64 {
        u64::from(self.primaries) * ENTRIES_PER_BUCKET
    }

    /// What a header says, if it is one.
    fn stated(header: &HeaderCopy) -> Option<Self> {
        let number = |at: usize| u32::try_from(header[at]).unwrap_or(0);
        let stated = Self {
            primaries: number(at::PRIMARIES),
            buckets: number(at::BUCKETS),
            segments: number(at::SEGMENTS),
        };
        let plausible = header[at::MAGIC] == MAGIC
            && stated.primaries > 0
            && stated.buckets > stated.primaries
            && stated.segments.is_power_of_two();
        plausible.then_some(stated)
    }

    /// The same, of an index that nobody is changing.
    fn stated_at_rest(header: &HeaderCopy) -> Option<Self> {
        let plausible =
            header[at::CLEAR_LOCK] == 0 && header[at::COUNT] >> 32 == header[at::GENERATION];
        Self::stated(header).filter(|_| plausible)
    }

    /// Whether `file` is as long as an index of this geometry.
    fn is_of(&self, file: &File) -> bool {
        crate::sys::file::len(file).is_ok_and(|len| len == self.index_bytes())
    }

    /// Whether an index of this geometry serves where `wanted` was asked for: it is as large, and not so much
    /// larger that it would take the space of what it is for.
    pub(crate) fn serves(&self, wanted: &Self) -> bool {
        self.primaries >= wanted.primaries
            && self.segments >= wanted.segments
            && self.index_bytes() <= wanted.index_bytes() * 2
    }

    fn buckets_at(&self) -> usize {
        (SEGMENTS_AT + self.segments as usize * LINE).next_multiple_of(512)
    }

    pub(crate) fn index_bytes(&self) -> u64 {
        ((self.buckets_at() + self.buckets as usize * LINE) as u64 * 8).next_multiple_of(4096)
    }

    /// What each of the two snapshots takes.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        super::snapshot::file_len(*self)
    }

    /// What the index and all that is made of it take.
    pub(crate) fn bytes(&self) -> u64 {
        self.index_bytes() + self.hint_bytes() + 2 * self.snapshot_bytes()
    }

    pub(crate) fn hint_bytes(&self) -> u64 {
        (u64::from(self.buckets) * LINE as u64 * 8).next_multiple_of(4096)
    }
}

/// What the header says at one moment; stored with the clean mark.
pub(crate) type HeaderCopy = [u64; HEADER_WORDS];

/// The header of the index in `file`; zeros where it ends before.
fn header_of(file: &File) -> io::Result<HeaderCopy> {
    let mut bytes = [0; HEADER_WORDS * 8];
    match crate::sys::file::read_at(file, &mut bytes, 0) {
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
    membership: Membership,
}

impl Index {
    /// Makes the index anew in `file`, empty: all zeros but for its geometry.
    pub(crate) fn create(
        file: &File,
        geometry: Geometry,
        membership: Membership,
    ) -> io::Result<Self> {
        crate::sys::file::reset(file, geometry.index_bytes(), crate::sys::file::HUGE_PIECES)?;
        Self::fill(Self::map(file, geometry, membership)?)
    }

    /// One that nobody else will ever use.
    pub(crate) fn in_memory(geometry: Geometry) -> io::Result<Self> {
        let map = Map::anonymous(geometry.index_bytes() as usize)?;
        Self::fill(Self::over(map, geometry, Membership::alone()))
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
        membership: Membership,
    ) -> io::Result<Option<Self>> {
        let Some(geometry) = Geometry::stated_at_rest(expected) else { return Ok(None) };
        if !geometry.is_of(file) {
            return Ok(None);
        }
        // A copy may have holes, and a store into one can fail.
        crate::sys::file::allocate(file, geometry.index_bytes())?;
        let mut index = Self::map(file, geometry, membership)?;
        if index.header_copy() != *expected {
            return Ok(None);
        }
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index that other processes are using, if `file` holds one.
    pub(crate) fn join(file: &File, membership: Membership) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let Some(geometry) = Geometry::stated(&header).filter(|g| g.is_of(file)) else {
            return Ok(None);
        };
        let mut index = Self::map(file, geometry, membership)?;
        index.enter()?;
        Ok(Some(index))
    }

    /// Maps the index that `file` holds, if it has one, to be read only: that of other processes, or one whose header is
    /// exactly `closed`. Of its methods, those that store anything must not be called.
    pub(crate) fn look(
        file: &File,
        closed: Option<&HeaderCopy>,
        membership: Membership,
    ) -> io::Result<Option<Self>> {
        let header = header_of(file)?;
        let stated = match closed {
            Some(closed) if *closed != header => None,
            Some(closed) => Geometry::stated_at_rest(closed),
            None => Geometry::stated(&header),
        };
        let Some(geometry) = stated.filter(|g| g.is_of(file)) else { return Ok(None) };
        let map = Map::to_read(file, geometry.index_bytes() as usize)?;
        Ok(Some(Self::over(map, geometry, membership)))
    }

    fn map(file: &File, geometry: Geometry, membership: Membership) -> io::Result<Self> {
        let map = Map::new(file, geometry.index_bytes() as usize)?;
        Ok(Self::over(map, geometry, membership))
    }

    fn over(map: Map, geometry: Geometry, membership: Membership) -> Self {
        Self { map, geometry, buckets_at: geometry.buckets_at(), membership }
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

/// The words of an index file that say something, the buckets' among them.
#[cfg(feature = "fuzzing")]
pub(crate) fn words_in_use(len: usize) -> impl Iterator<Item = usize> {
    (0..HEADER_WORDS).chain(SEGMENTS_AT..len / 8)
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
