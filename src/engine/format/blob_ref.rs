//! The header and the layout of a blob file, and the reference to the blob, which is the body of a
//! record.
//!
//! ```text
//!  0      magic u64   8  name u128   24  salt u64   32  length u64   40  hash of the key u64
//! 48      CRC-32 of these u32   52  zeros
//! 64      the value, in chunks of 64 KiB, the last one shorter
//! 64 + L  a CRC-32 for each chunk u32, seeded with the salt and the number of the chunk
//!   ..    for each other key that ever named it: its hash u64, CRC-32 of that u32
//! ```

pub(crate) const HEADER_LEN: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"KWblob_1");
/// The bytes that are written and checked as one piece.
pub(crate) const CHUNK: usize = 64 << 10;

/// The reference to a blob in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub(crate) name: u128,
    pub(crate) salt: u64,
    /// The length of the value in bytes.
    pub(crate) len: u64,
}

impl BlobRef {
    pub(crate) const ENCODED_LEN: usize = 32;

    /// The body of a record with this reference.
    pub(crate) fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut bytes = [0; Self::ENCODED_LEN];
        bytes[..16].copy_from_slice(&self.name.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// The reference in the body of a record.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let (name, rest) = body.split_first_chunk()?;
        let (salt, len) = rest.split_first_chunk()?;
        Some(Self {
            name: u128::from_le_bytes(*name),
            salt: u64::from_le_bytes(*salt),
            len: u64::from_le_bytes(len.try_into().ok()?),
        })
    }

    pub(crate) fn header(&self, hash: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.encode());
        bytes[40..48].copy_from_slice(&hash.to_le_bytes());
        let check = crc32fast::hash(&bytes[..48]);
        bytes[48..52].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The reference in a header, and the hash of the first key.
    pub(crate) fn from_header(header: &[u8; HEADER_LEN]) -> Option<(Self, u64)> {
        let reference = Self::decode(&header[8..40])?;
        let hash = u64::from_le_bytes(header[40..48].try_into().ok()?);
        (*header == reference.header(hash)).then_some((reference, hash))
    }

    pub(crate) fn checks_at(&self) -> Option<u64> {
        self.len.checked_add(HEADER_LEN as u64)
    }

    /// The length of the file without the hashes of other keys.
    pub(crate) fn file_len(&self) -> Option<u64> {
        self.checks_at()?.checked_add(self.len.div_ceil(CHUNK as u64).checked_mul(4)?)
    }
}

pub(crate) fn check_of(salt: u64, number: u64, chunk: &[u8]) -> u32 {
    let seed = (salt ^ (salt >> 32)).wrapping_add(number) as u32;
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(chunk);
    hasher.finalize()
}

/// The bytes that a blob of `len` bytes takes on disk, in blocks of the file system.
pub(crate) fn space_for(len: u64) -> u64 {
    let checks = len.div_ceil(CHUNK as u64) * 4;
    (len + checks + HEADER_LEN as u64).next_multiple_of(4096)
}
