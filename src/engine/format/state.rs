//! The file `state`: whether the directory was closed, the header of the index at that time, the
//! limits of the last open, and the number of the current snapshot.
//!
//! It has two sectors, which are written alternately. The valid one with the higher version counts,
//! so a torn write leaves the other one. The file is preallocated, so a write does not fail on a
//! full disk. [`shared::state_file`](crate::engine::shared::state_file) reads and writes it.
//!
//! ```text
//!   0  magic u64       8  version u64          16  clean u64       24  the header's 64 words
//! 536  max_entries   544  cull_frequency u64  552  max_bytes u64
//! 560  snapshot u64  568  CRC-32 u32
//! ```

use crate::engine::format::index_header::{HEADER_WORDS, HeaderCopy};
use crate::limits::Limits;

/// The bytes of a sector.
pub(crate) const SECTOR: usize = 1024;
pub(crate) const FILE_LEN: u64 = 2 * SECTOR as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"KWstate2");
/// The word at which the limits begin.
const LIMITS_AT: usize = 3 + HEADER_WORDS;
/// How many bytes the check of a sector covers. It follows them.
pub(crate) const CHECKED: usize = (LIMITS_AT + 4) * 8;
const _: () = assert!(CHECKED + 4 <= SECTOR);

/// A decoded sector.
pub(crate) struct Sector {
    pub(crate) version: u64,
    pub(crate) clean: Option<HeaderCopy>,
    pub(crate) limits: Limits,
    pub(crate) snapshot: u64,
}

/// A `state` of a directory that was not closed and may have any snapshot.
#[cfg(feature = "fuzzing")]
pub(crate) fn not_closed(limits: Limits) -> Vec<u8> {
    [[0; SECTOR], encode(&Sector { version: 1, clean: None, limits, snapshot: 0 })].concat()
}

/// A `state` of a directory that was closed with an index whose header is `header`.
#[cfg(feature = "fuzzing")]
pub(crate) fn closed_with(header: HeaderCopy, limits: Limits) -> Vec<u8> {
    [[0; SECTOR], encode(&Sector { version: 1, clean: Some(header), limits, snapshot: 0 })].concat()
}

/// The bytes of a sector.
pub(crate) fn encode(Sector { version, clean, limits, snapshot }: &Sector) -> [u8; SECTOR] {
    let mut words = vec![MAGIC, *version, u64::from(clean.is_some())];
    words.extend(clean.unwrap_or([0; HEADER_WORDS]));
    words.extend([limits.max_entries, limits.cull_frequency, limits.max_bytes, *snapshot]);
    let mut sector = [0; SECTOR];
    for (chunk, word) in sector.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let check = crc32fast::hash(&sector[..CHECKED]);
    sector[CHECKED..CHECKED + 4].copy_from_slice(&check.to_le_bytes());
    sector
}

/// The decoded sector; `None` if it is not valid.
pub(crate) fn decode(sector: &[u8; SECTOR]) -> Option<Sector> {
    let check = u32::from_le_bytes(sector[CHECKED..CHECKED + 4].try_into().ok()?);
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| sector[at * 8 + i]));
    if word(0) != MAGIC || crc32fast::hash(&sector[..CHECKED]) != check {
        return None;
    }
    let clean = (word(2) == 1).then(|| std::array::from_fn(|i| word(3 + i)));
    let limits = Limits {
        max_entries: word(LIMITS_AT),
        cull_frequency: word(LIMITS_AT + 1),
        max_bytes: word(LIMITS_AT + 2),
    };
    Some(Sector { version: word(1), clean, limits, snapshot: word(LIMITS_AT + 3) })
}
