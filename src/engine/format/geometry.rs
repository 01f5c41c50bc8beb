//! The geometry of an index: how many buckets and segments its file has room for.

use super::index_header::{HeaderCopy, LINE, MAGIC, SEGMENTS_AT, at};

/// The average number of entries of a primary bucket when the index is full.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The size of an index; fixed when its file is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Buckets that keys hash to.
    pub(crate) primaries: u32,
    /// All buckets: the primaries and, after them, the overflow buckets.
    pub(crate) buckets: u32,
    /// Rows of the segment table, a power of two.
    pub(crate) segments: u32,
}

impl Geometry {
    /// The geometry for so many entries and segments.
    ///
    /// With four entries to a bucket of seven, one bucket in twenty overflows at any time. There is
    /// an overflow bucket for each four primaries, because an overflow bucket is kept until it is
    /// empty. A small index, whose bound on entries is exact, has about one for each primary.
    pub(crate) fn for_entries(max_entries: u64, max_segments: u64) -> Self {
        let primaries = max_entries.div_ceil(ENTRIES_PER_BUCKET).clamp(4, u64::from(u32::MAX / 2));
        let exact = crate::options::INLINE_CULL_ENTRIES / ENTRIES_PER_BUCKET;
        let buckets = primaries + primaries / 4 + primaries.min(exact) * 3 / 4 + 8;
        let segments = (max_segments * 2 + 32).next_power_of_two();
        Self { primaries: primaries as u32, buckets: buckets as u32, segments: segments as u32 }
    }

    /// The number of entries that the index is made for.
    pub(crate) fn most_entries(&self) -> u64 {
        u64::from(self.primaries) * ENTRIES_PER_BUCKET
    }

    /// The geometry in a header; `None` if it is not the header of an index.
    pub(crate) fn of(header: &HeaderCopy) -> Option<Self> {
        let number = |at: usize| u32::try_from(header[at]).unwrap_or(0);
        let geometry = Self {
            primaries: number(at::PRIMARIES),
            buckets: number(at::BUCKETS),
            segments: number(at::SEGMENTS),
        };
        let plausible = header[at::MAGIC] == MAGIC
            && geometry.primaries > 0
            && geometry.buckets > geometry.primaries
            && geometry.segments.is_power_of_two();
        plausible.then_some(geometry)
    }

    /// The same for a closed index, in which no `clear` can be running.
    pub(crate) fn of_closed(header: &HeaderCopy) -> Option<Self> {
        let plausible =
            header[at::CLEAR_LOCK] == 0 && header[at::COUNT] >> 32 == header[at::GENERATION];
        Self::of(header).filter(|_| plausible)
    }

    /// Whether an index of this geometry can be used where `wanted` was asked for: it is not
    /// smaller, and its file is at most twice as long, so that it leaves space for values.
    pub(crate) fn serves(&self, wanted: &Self) -> bool {
        self.primaries >= wanted.primaries
            && self.segments >= wanted.segments
            && self.index_bytes() <= wanted.index_bytes() * 2
    }

    /// The word of the file at which the buckets begin.
    pub(crate) fn buckets_at(&self) -> usize {
        (SEGMENTS_AT + self.segments as usize * LINE).next_multiple_of(512)
    }

    /// The length of the index file.
    pub(crate) fn index_bytes(&self) -> u64 {
        ((self.buckets_at() + self.buckets as usize * LINE) as u64 * 8).next_multiple_of(4096)
    }

    /// The length of the file of hints.
    pub(crate) fn hint_bytes(&self) -> u64 {
        (u64::from(self.buckets) * LINE as u64 * 8).next_multiple_of(4096)
    }
}
