//! The geometry of an index: how many buckets and segments its file has room for.

use super::index_header::{HeaderCopy, LINE, MAGIC, SEGMENTS_AT, at};

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
    pub(crate) fn stated(header: &HeaderCopy) -> Option<Self> {
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
    pub(crate) fn stated_at_rest(header: &HeaderCopy) -> Option<Self> {
        let plausible =
            header[at::CLEAR_LOCK] == 0 && header[at::COUNT] >> 32 == header[at::GENERATION];
        Self::stated(header).filter(|_| plausible)
    }

    /// Whether an index of this geometry serves where `wanted` was asked for: it is as large, and not so much
    /// larger that it would take the space of what it is for.
    pub(crate) fn serves(&self, wanted: &Self) -> bool {
        self.primaries >= wanted.primaries
            && self.segments >= wanted.segments
            && self.index_bytes() <= wanted.index_bytes() * 2
    }

    pub(crate) fn buckets_at(&self) -> usize {
        (SEGMENTS_AT + self.segments as usize * LINE).next_multiple_of(512)
    }

    pub(crate) fn index_bytes(&self) -> u64 {
        ((self.buckets_at() + self.buckets as usize * LINE) as u64 * 8).next_multiple_of(4096)
    }

    pub(crate) fn hint_bytes(&self) -> u64 {
        (u64::from(self.buckets) * LINE as u64 * 8).next_multiple_of(4096)
    }
}
