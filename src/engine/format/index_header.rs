//! The header of an index file: 64 words, hot ones on cache lines of their own.

/// Words in a cache line, and so in a bucket: a control word and the entries.
pub(crate) const LINE: usize = 8;

/// No chain is longer, in buckets. An insert that would make it so replaces its coldest entry.
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
    /// Read by every operation, changed seldom.
    pub(crate) const GENERATION: usize = 8;
    pub(crate) const RECENCY: usize = 9;
    pub(crate) const MAX_ENTRIES: usize = 10;
    pub(crate) const CULL_FREQUENCY: usize = 11;
    pub(crate) const MAX_BYTES: usize = 12;
    /// Counts the segments that were removed.
    pub(crate) const DROPS: usize = 13;
    /// Whether the entries must be counted again.
    pub(crate) const RECOUNT: usize = 14;
    /// No entry expires before this time, in milliseconds since 1970.
    pub(crate) const NEXT_EXPIRY: usize = 15;
    pub(crate) const SEQUENCE: usize = 16;
    pub(crate) const COUNT: usize = 24;
    pub(crate) const CLEAR_LOCK: usize = 32;
    /// The first overflow bucket that was never used.
    pub(crate) const NEXT_OVERFLOW: usize = 40;
    /// The first of those that were given back, plus one; its upper half counts changes.
    pub(crate) const FREE_OVERFLOW: usize = 41;
    pub(crate) const NEXT_SEGMENT: usize = 48;
    /// Entries of generations before this one have been swept.
    pub(crate) const SWEPT: usize = 49;
    /// The number of the last snapshot that was begun.
    pub(crate) const SNAPSHOT: usize = 50;
    /// Bytes that sealed segments took in records, ever.
    pub(crate) const LOGGED: usize = 51;
    /// What the log had taken when the last checkpoint began.
    pub(crate) const CHECKPOINTED: usize = 52;
    /// Bytes of all blobs.
    pub(crate) const BLOB_BYTES: usize = 53;
    /// Whether a process died and nobody has looked after what it left.
    pub(crate) const DEATHS: usize = 55;
    /// The highest number that a process ever had.
    pub(crate) const HIGHEST_NUMBER: usize = 54;
    pub(crate) const INSERTS: usize = 56;
    /// `id | tail << 32` of the segment to go on with, stored when the index is closed.
    pub(crate) const END_OF_LOG: usize = 57;
    /// The limits that were asked for, of which the index may hold less.
    pub(crate) const ASKED_ENTRIES: usize = 58;
    pub(crate) const ASKED_BYTES: usize = 59;
    /// How often the file was given up for another one.
    pub(crate) const RETIRED: usize = 60;
    /// How often each of the turns that are waited for was taken.
    pub(crate) const ROLES: usize = 61;
}
/// The word of the header that [`watch`](crate::engine::shared::index_watch) is about.
pub(crate) const RETIRED: usize = at::RETIRED;
/// The words of the header that say something; the rest of its page is spare.
pub(crate) const HEADER_WORDS: usize = 64;
pub(crate) const ATTACH_AT: usize = 512;
/// As many processes as can be attached.
pub(crate) const MOST_PROCESSES: u32 = 1024;
pub(crate) const MEMBER_WORDS: usize = 4;
pub(crate) const SEGMENTS_AT: usize = ATTACH_AT + MOST_PROCESSES as usize * MEMBER_WORDS;

/// What the header says at one moment; stored with the clean mark.
pub(crate) type HeaderCopy = [u64; HEADER_WORDS];

/// The words of an index file that say something, the buckets' among them.
#[cfg(feature = "fuzzing")]
pub(crate) fn words_in_use(len: usize) -> impl Iterator<Item = usize> {
    (0..HEADER_WORDS).chain(SEGMENTS_AT..len / 8)
}
