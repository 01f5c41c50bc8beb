//! The header of an index file: 64 words. Each word that processes change often has a cache line of
//! its own.

/// The words of a cache line, and of a bucket: a control word and seven entry words.
pub(crate) const LINE: usize = 8;

/// The most buckets of a chain. An insert into a full chain replaces its coldest entry.
pub(crate) const MAX_CHAIN: usize = 16;
/// The most entries in a chain.
pub(crate) const LONGEST_CHAIN: usize = MAX_CHAIN * (LINE - 1);

pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"KWindex2");

/// Word numbers within the header.
pub(crate) mod at {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const PRIMARIES: usize = 1;
    pub(crate) const BUCKETS: usize = 2;
    pub(crate) const SEGMENTS: usize = 3;
    /// From here on: words that every operation reads, and that change seldom.
    pub(crate) const GENERATION: usize = 8;
    pub(crate) const RECENCY: usize = 9;
    pub(crate) const MAX_ENTRIES: usize = 10;
    pub(crate) const CULL_FREQUENCY: usize = 11;
    pub(crate) const MAX_BYTES: usize = 12;
    /// How many segments were dropped.
    pub(crate) const DROPS: usize = 13;
    /// Whether a recount is wanted.
    pub(crate) const RECOUNT: usize = 14;
    /// No entry expires before this time, in milliseconds since 1970.
    pub(crate) const NEXT_EXPIRY: usize = 15;
    pub(crate) const SEQUENCE: usize = 16;
    pub(crate) const COUNT: usize = 24;
    pub(crate) const CLEAR_LOCK: usize = 32;
    /// The first overflow bucket that was never used.
    pub(crate) const NEXT_OVERFLOW: usize = 40;
    /// The head of the list of free overflow buckets, plus one; the upper half counts changes.
    pub(crate) const FREE_OVERFLOW: usize = 41;
    pub(crate) const NEXT_SEGMENT: usize = 48;
    /// Entries of generations before this one have been swept.
    pub(crate) const SWEPT: usize = 49;
    /// The number of the last snapshot that was begun.
    pub(crate) const SNAPSHOT: usize = 50;
    /// The bytes of records in all segments that were ever sealed.
    pub(crate) const LOGGED: usize = 51;
    /// The bytes that the log had taken when the last checkpoint began.
    pub(crate) const CHECKPOINTED: usize = 52;
    /// The bytes of all blobs.
    pub(crate) const BLOB_BYTES: usize = 53;
    /// The highest number that a process ever had.
    pub(crate) const HIGHEST_NUMBER: usize = 54;
    /// Whether a process died and no other has cleaned up what it left.
    pub(crate) const DEATHS: usize = 55;
    pub(crate) const INSERTS: usize = 56;
    /// `id | tail << 32` of the segment that the next process appends to; stored at the close.
    pub(crate) const END_OF_LOG: usize = 57;
    /// The limits that were asked for. Those in effect may be lower: the index may be too small.
    pub(crate) const ASKED_ENTRIES: usize = 58;
    pub(crate) const ASKED_BYTES: usize = 59;
    /// How often the file was retired: replaced by another index.
    pub(crate) const RETIRED: usize = 60;
    /// The heartbeats of the roles that processes wait for, one word each.
    pub(crate) const HEARTBEATS: usize = 61;
}
/// The word that [`index_watch`](crate::engine::shared::index_watch) maps.
pub(crate) const RETIRED: usize = at::RETIRED;
/// The words of the header that are in use; the rest of its page is spare.
pub(crate) const HEADER_WORDS: usize = 64;
/// The word at which the attach table begins.
pub(crate) const ATTACH_AT: usize = 512;
/// The most processes that can be attached.
pub(crate) const MOST_PROCESSES: u32 = 1024;
/// The words of a row of the attach table.
pub(crate) const ATTACH_ROW_WORDS: usize = 4;
pub(crate) const SEGMENTS_AT: usize = ATTACH_AT + MOST_PROCESSES as usize * ATTACH_ROW_WORDS;

/// A copy of the header, stored with the clean mark.
pub(crate) type HeaderCopy = [u64; HEADER_WORDS];

/// The words of an index file that are in use, including those of the buckets.
#[cfg(feature = "fuzzing")]
pub(crate) fn words_in_use(len: usize) -> impl Iterator<Item = usize> {
    (0..HEADER_WORDS).chain(SEGMENTS_AT..len / 8)
}
