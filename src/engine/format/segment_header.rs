//! The header of a segment file.
//!
//! ```text
//!  0  magic u64   8  id u32 | zero u32   16  salt u64   24  length u64   32  CRC-32 of these u32
//! 36  zeros       64 records
//! ```

use super::record;

/// The bytes of a segment's header.
pub(crate) const LEN: usize = 64;
/// The longest segment: it has room for the longest record, and each offset fits into 32 bits.
pub(crate) const MAX_LEN: u64 = record::MAX_LEN as u64 + (8 << 10);
const MAGIC: u64 = u64::from_le_bytes(*b"KWsegmt1");

/// What the first bytes of a file in the segment directory are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecodedHeader {
    /// A segment: its salt and its length.
    Segment { salt: u64, len: u64 },
    /// Zeros: its creator died before it wrote the header.
    Incomplete,
    /// A damaged header, or a file that is not ours.
    Foreign,
}

pub(crate) fn encode(id: u32, salt: u64, len: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..12].copy_from_slice(&id.to_le_bytes());
    bytes[16..24].copy_from_slice(&salt.to_le_bytes());
    bytes[24..32].copy_from_slice(&len.to_le_bytes());
    let check = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Decodes the header of segment `id`, whose file has `file_len` bytes.
pub(crate) fn decode(bytes: &[u8; LEN], id: u32, file_len: u64) -> DecodedHeader {
    if *bytes == [0; LEN] {
        return DecodedHeader::Incomplete;
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (salt, len) = (word(16), word(24));
    let possible = LEN as u64..=file_len.min(MAX_LEN);
    if *bytes != encode(id, salt, len) || !possible.contains(&len) {
        return DecodedHeader::Foreign;
    }
    DecodedHeader::Segment { salt, len }
}

/// The file of a segment with this salt: its header, and `records` behind it.
#[cfg(feature = "fuzzing")]
pub(crate) fn file_of(id: u32, salt: u64, records: &[u8]) -> Vec<u8> {
    [&encode(id, salt, (LEN + records.len()) as u64), records].concat()
}
