//! A record: the unit of the log, one write of one key.
//!
//! ```text
//!  0  length u32       of the whole record, a multiple of 8; stored when the space is reserved
//!  4  header check u32 CRC-32 of key and header, seeded with salt and offset; its store commits
//!  8  sequence u64
//! 16  expires at u48   milliseconds since 1970, all ones: never
//! 22  flags u16        which optional fields the body begins with
//! 24  generation u32   of `clear`
//! 28  body check u32   CRC-32 of the body
//! 32  key length u24 | kind u4 | codec u4
//! 36  body length u32
//! 40  key, body (optional fields in the order of their flags, then the value), zeros to the end
//! ```
//!
//! The header check covers the key, so a scan of the log reads headers and keys and no values. Both
//! checks are seeded with the secret salt of the segment and the offset of the record. So no value
//! of a user can be mistaken for a record, and no record in a misplaced block for a current one.

use crc32fast::Hasher;

use crate::engine::format::blob_ref::BlobRef;
use crate::engine::format::word::ALIGN;
use crate::entry::{Codec, Expiry, Soft};
use crate::sys::map::Map;
use crate::time::Timestamp;

pub(crate) const HEADER_LEN: usize = 40;
/// The longest record, including its header.
pub(crate) const MAX_LEN: u32 = 1 << 31;
/// The longest key, in bytes.
pub(crate) const MAX_KEY_LEN: usize = 1 << 16;

const NEVER: u64 = (1 << 48) - 1;

/// The body begins with the time from which the value is stale, u64 milliseconds since 1970.
pub(crate) const FLAG_STALE_AT: u16 = 1;
/// Next in the body: the length of the tags u32, then the tags.
pub(crate) const FLAG_TAGS: u16 = 2;
/// Next in the body: how long it took to compute the value, u32 milliseconds.
pub(crate) const FLAG_TOOK: u16 = 4;

/// What a record does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Stores a value.
    Value = 1,
    /// Stores a value that is in a blob; the body is the reference to it.
    Blob = 2,
    /// Deletes the key.
    Tombstone = 3,
    /// Deletes all keys: the generation of the record begins.
    Clear = 4,
}

impl Kind {
    fn from_bits(bits: u8) -> Option<Self> {
        [Self::Value, Self::Blob, Self::Tombstone, Self::Clear]
            .into_iter()
            .find(|k| *k as u8 == bits)
    }
}

fn codec_from_bits(bits: u8) -> Option<Codec> {
    [Codec::MessagePack, Codec::Raw].into_iter().find(|c| *c as u8 == bits)
}

/// The position of a record, with which its checks are seeded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordPlace {
    pub(crate) salt: u64,
    pub(crate) offset: u32,
}

impl RecordPlace {
    fn header_seed(self) -> u32 {
        (self.salt as u32).wrapping_add(self.offset)
    }

    fn body_seed(self) -> u32 {
        ((self.salt >> 32) as u32).wrapping_add(self.offset)
    }
}

/// The optional fields of a body, encoded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fields {
    pub(crate) flags: u16,
    bytes: [u8; 12],
    len: usize,
}

impl Fields {
    pub(crate) fn new(soft: Soft) -> Self {
        let mut fields = Self::default();
        if let Some(at) = soft.stale_at {
            fields.put(FLAG_STALE_AT, &at.as_millis().to_le_bytes());
        }
        if let Some(millis) = soft.took {
            fields.put(FLAG_TOOK, &millis.to_le_bytes());
        }
        fields
    }

    fn put(&mut self, flag: u16, field: &[u8]) {
        self.flags |= flag;
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Flags and body of a record after a touch: [`Soft::touched`].
pub(crate) fn touched(flags: u16, body: &[u8]) -> Option<(u16, &[u8])> {
    match flags & FLAG_STALE_AT {
        0 => Some((flags, body)),
        _ => Some((flags & !FLAG_STALE_AT, body.get(8..)?)),
    }
}

/// The fields of a header that are known before the chain of the key is locked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    pub(crate) flags: u16,
    pub(crate) key_len: u32,
    pub(crate) body_len: u32,
}

impl Draft {
    /// The length of the whole record; `None` if it is too long.
    pub(crate) fn len(&self) -> Option<u32> {
        let len = HEADER_LEN as u64 + u64::from(self.key_len) + u64::from(self.body_len);
        u32::try_from(len.next_multiple_of(ALIGN as u64)).ok().filter(|len| *len <= MAX_LEN)
    }
}

/// The fields of a header that are decided under the lock of the chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) sequence: u64,
    pub(crate) generation: u32,
    pub(crate) expires_at: Expiry,
}

/// A record whose key and body are in place. Its checks are computed; it is not stamped yet.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    draft: Draft,
    len: u32,
    /// The header check so far, over the key.
    key_check: Hasher,
    body_check: u32,
}

impl Prepared {
    /// The body has two parts, for example optional fields and value.
    pub(crate) fn new(
        draft: Draft,
        len: u32,
        place: RecordPlace,
        key: &[u8],
        body: [&[u8]; 2],
    ) -> Self {
        Self {
            draft,
            len,
            key_check: check_over(place.header_seed(), [key]),
            body_check: check_over(place.body_seed(), body).finalize(),
        }
    }

    /// The header without the length, which was stored at the reservation: four words, and the
    /// check, which must be stored last.
    pub(crate) fn stamp(&self, stamp: Stamp) -> ([u64; 4], u32) {
        let expires = stamp.expires_at.map_or(NEVER, Timestamp::as_millis);
        let draft = &self.draft;
        let words = [
            stamp.sequence,
            expires | u64::from(draft.flags) << 48,
            u64::from(stamp.generation) | u64::from(self.body_check) << 32,
            u64::from(draft.key_len)
                | u64::from(draft.kind as u8) << 24
                | u64::from(draft.codec as u8) << 28
                | u64::from(draft.body_len) << 32,
        ];
        (words, header_check(self.key_check.clone(), self.len, &words))
    }

    /// The whole record, for a store without segments.
    #[cfg(feature = "sled")]
    pub(crate) fn encode(&self, stamp: Stamp, key: &[u8], body: [&[u8]; 2]) -> Vec<u8> {
        let (words, check) = self.stamp(stamp);
        let mut bytes = Vec::with_capacity(self.len as usize);
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(check.to_le_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(key);
        body.iter().for_each(|part| bytes.extend(*part));
        bytes.resize(self.len as usize, 0);
        bytes
    }
}

/// A check over parts. To create a hasher asks the CPU for its features, so one hasher is used for
/// key and header.
fn check_over<const N: usize>(seed: u32, parts: [&[u8]; N]) -> Hasher {
    let mut check = Hasher::new_with_initial(seed);
    parts.into_iter().for_each(|part| check.update(part));
    check
}

fn header_check(mut key_check: Hasher, len: u32, words: &[u64; 4]) -> u32 {
    let mut bytes = [0; 36];
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    for (chunk, word) in bytes[4..].chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    key_check.update(&bytes);
    key_check.finalize()
}

/// A record whose header check is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    pub(crate) flags: u16,
    /// The length of the whole record.
    pub(crate) len: u32,
    pub(crate) sequence: u64,
    pub(crate) generation: u32,
    pub(crate) expires_at: Expiry,
    pub(crate) key: &'a [u8],
    body: &'a [u8],
    body_check: u32,
    place: RecordPlace,
}

/// The length that is stored at `offset`, if a record of that length fits into the map.
pub(crate) fn stored_len(map: &Map, offset: u32) -> Option<u32> {
    let len = u32::from_le_bytes(map.bytes(offset as usize, 4)?.try_into().ok()?);
    let fits = len as usize >= HEADER_LEN
        && (len as usize).is_multiple_of(ALIGN)
        && (offset as usize).checked_add(len as usize)? <= map.len();
    fits.then_some(len)
}

impl<'a> Record<'a> {
    /// The record at `place` in the map of a segment, if there is a stamped one.
    pub(crate) fn read(map: &'a Map, place: RecordPlace) -> Option<Self> {
        let offset = place.offset as usize;
        let len = stored_len(map, place.offset)?;
        Self::decode(map.bytes(offset, len as usize)?, place)
    }

    /// The record in `bytes`, which must have exactly its length. Any bytes are allowed.
    /// Keeps invariant I1.
    pub(crate) fn decode(bytes: &'a [u8], place: RecordPlace) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let len = u32::try_from(bytes.len()).ok()?;
        let stored = u32::from_le_bytes(header[..4].try_into().ok()?);
        let check = u32::from_le_bytes(header[4..8].try_into().ok()?);
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(header[8..].chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().ok()?);
        }
        let [sequence, times, checks, shape] = words;
        let (key_len, body_len) = ((shape & 0xff_ffff) as usize, (shape >> 32) as usize);
        if stored != len || key_len > MAX_KEY_LEN {
            return None;
        }
        let (key, rest) = rest.split_at_checked(key_len)?;
        let body = rest.get(..body_len)?;
        if check != header_check(check_over(place.header_seed(), [key]), len, &words) {
            return None;
        }
        Some(Self {
            kind: Kind::from_bits((shape >> 24 & 0xf) as u8)?,
            codec: codec_from_bits((shape >> 28 & 0xf) as u8)?,
            flags: (times >> 48) as u16,
            len,
            sequence,
            generation: checks as u32,
            expires_at: Some(times & NEVER).filter(|t| *t != NEVER).map(Timestamp::from_millis),
            key,
            body,
            body_check: (checks >> 32) as u32,
            place,
        })
    }

    /// The optional fields and the value, if the body check is right. Reads the whole value.
    pub(crate) fn verified_body(&self) -> Option<&'a [u8]> {
        (check_over(self.place.body_seed(), [self.body]).finalize() == self.body_check)
            .then_some(self.body)
    }

    /// Whether the body fails its check because part of it never reached the disk, as a power cut
    /// leaves it: where nothing was written yet a whole sector's part is zeros. Costs a pass over
    /// the value.
    pub(crate) fn is_torn(&self) -> bool {
        const SECTOR: usize = 512;
        let start = self.place.offset as usize + HEADER_LEN + self.key.len();
        let to_boundary = (start.next_multiple_of(SECTOR) - start).min(self.body.len());
        let (first, rest) = self.body.split_at(to_boundary);
        let missing = |part: &[u8]| !part.is_empty() && part.iter().all(|byte| *byte == 0);
        self.verified_body().is_none() && (missing(first) || rest.chunks(SECTOR).any(missing))
    }

    /// The value and what is stored with it, if they pass their check.
    pub(crate) fn content(&self) -> Option<(Soft, &'a [u8])> {
        let mut body = self.verified_body()?;
        let mut soft = Soft::default();
        if self.flags == 0 {
            return Some((soft, body));
        }
        if self.flags & FLAG_STALE_AT != 0 {
            let (millis, rest) = body.split_first_chunk()?;
            soft.stale_at = Some(Timestamp::from_millis(u64::from_le_bytes(*millis)));
            body = rest;
        }
        if self.flags & FLAG_TAGS != 0 {
            let (len, rest) = body.split_first_chunk::<4>()?;
            body = rest.get(u32::from_le_bytes(*len) as usize..)?;
        }
        if self.flags & FLAG_TOOK != 0 {
            let (millis, rest) = body.split_first_chunk()?;
            soft.took = Some(u32::from_le_bytes(*millis));
            body = rest;
        }
        // What later flags mean is not known here, so neither is where the value begins.
        (self.flags & !(FLAG_STALE_AT | FLAG_TAGS | FLAG_TOOK) == 0).then_some((soft, body))
    }

    /// The value, if it passes its check.
    pub(crate) fn value(&self) -> Option<&'a [u8]> {
        self.content().map(|(_, value)| value)
    }

    /// What `get_or_set` wants to know, if the record passes its check.
    pub(crate) fn soft(&self) -> Soft {
        self.content().map(|(soft, _)| soft).unwrap_or_default()
    }

    /// The blob that the record names, if it is one of that kind. A reference that does not pass
    /// its check names none.
    pub(crate) fn blob(&self) -> Option<BlobRef> {
        if self.kind == Kind::Blob { self.value().and_then(BlobRef::decode) } else { None }
    }

    /// Whether the record gives its key a value.
    pub(crate) fn is_entry(&self) -> bool {
        matches!(self.kind, Kind::Value | Kind::Blob)
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// Writes the checks that fit `bytes`, a whole record at this place.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fit_checks(bytes: &mut [u8], place: RecordPlace) {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    if bytes.len() < HEADER_LEN {
        return;
    }
    let shape = word(bytes, 32);
    let key_end = HEADER_LEN + (shape & 0xff_ffff) as usize;
    let body_end = key_end.saturating_add((shape >> 32) as usize);
    let body = bytes.get(key_end..body_end).unwrap_or_default();
    let body_check = check_over(place.body_seed(), [body]).finalize();
    bytes[28..32].copy_from_slice(&body_check.to_le_bytes());
    let words = [8, 16, 24, 32].map(|at| word(bytes, at));
    let key_check =
        check_over(place.header_seed(), [bytes.get(HEADER_LEN..key_end).unwrap_or_default()]);
    let check = header_check(key_check, bytes.len() as u32, &words);
    bytes[4..8].copy_from_slice(&check.to_le_bytes());
}

/// Takes any bytes for a record, first as they are, then with a length and checks that fit, as if
/// they had been written. A decoded record must match the bytes; all others must be refused.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some((salt, bytes)) = bytes.split_first_chunk::<8>() else { return };
    let place = RecordPlace { salt: u64::from_le_bytes(*salt), offset: 64 };
    let _ = Record::decode(bytes, place).map(|record| record.value());
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_LEN {
        return;
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    fit_checks(&mut bytes, place);
    let shape = u64::from_le_bytes(std::array::from_fn(|i| bytes[32 + i]));
    let (key_len, body_len) = ((shape & 0xff_ffff) as usize, (shape >> 32) as usize);
    let (key_end, body_end) =
        (HEADER_LEN + key_len, HEADER_LEN.saturating_add(key_len).saturating_add(body_len));
    let fits = key_len <= MAX_KEY_LEN && body_end <= bytes.len();
    let kind = Kind::from_bits(bytes[35] & 0xf);
    let codec = codec_from_bits(bytes[35] >> 4);
    let record = Record::decode(&bytes, place);
    assert_eq!(
        record.is_some(),
        fits && kind.is_some() && codec.is_some(),
        "what fits is decoded, and nothing else"
    );
    let Some(record) = record else { return };
    assert_eq!(record.key, &bytes[HEADER_LEN..key_end]);
    assert_eq!(record.verified_body(), Some(&bytes[key_end..body_end]));
    if let Some(value) = record.value() {
        assert!(bytes[key_end..body_end].ends_with(value), "the value is the end of the body");
        assert!(record.flags != 0 || value.len() == body_len);
    }
    // A damaged copy is not the same record.
    for at in [4, 8, 16, 24, HEADER_LEN - 1].into_iter().chain((key_len > 0).then_some(HEADER_LEN))
    {
        bytes[at] ^= 1;
        assert!(Record::decode(&bytes, place).is_none(), "byte {at} was changed");
        bytes[at] ^= 1;
    }
}

#[cfg(test)]
mod tests;
