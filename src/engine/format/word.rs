//! The entry word: the index stores one for each key. It says where the record of the key is:
//! `tag (10 bits) | segment id (32) | offset in units of 8 bytes (22)`. The tag is a part of the
//! hash of the key.

/// Records begin at multiples of this many bytes.
pub(crate) const ALIGN: usize = 8;

/// An offset within a segment is stored in units of this many bytes.
pub(crate) const OFFSET_UNIT: u64 = ALIGN as u64;
const OFFSET_BITS: u32 = 22;
const SEGMENT_BITS: u32 = 32;
const TAG_SHIFT: u32 = OFFSET_BITS + SEGMENT_BITS;
/// The largest length of a segment in which a word can name every record.
pub(crate) const MAX_OFFSET: u64 = OFFSET_UNIT << OFFSET_BITS;

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

    /// Segment id and offset, without the tag: orders words by the creation of their segments, and
    /// within a segment by the reservation of the space.
    pub(crate) fn age(self) -> u64 {
        self.0 & ((1 << TAG_SHIFT) - 1)
    }

    pub(crate) fn tag(self) -> u64 {
        self.0 >> TAG_SHIFT
    }

    pub(crate) fn has_tag_of(self, hash: u64) -> bool {
        self.tag() == tag(hash)
    }

    pub(crate) fn is_entry(self) -> bool {
        self.segment() != 0
    }
}

/// The tag of a hash: its low bits. The high bits select the bucket.
pub(crate) fn tag(hash: u64) -> u64 {
    hash & ((1 << (64 - TAG_SHIFT)) - 1)
}
