//! How large everything is: what follows from `max_entries` and `max_bytes`. Pure arithmetic.

use crate::engine::format::geometry::Geometry;
use crate::engine::format::word::MAX_OFFSET;
use crate::engine::format::{record, segment_header, snapshot};
use crate::limits::Limits;
use crate::options::Options;

/// No entry takes fewer bytes than this on average once its share of the index is counted, so `max_bytes`
/// bounds the entries as well.
const BYTES_PER_ENTRY: u64 = 256;

/// Space for the small files, the directories and the file system's own blocks.
const FIXED_BYTES: u64 = 64 << 10;

/// A segment is this part of the space for segments, within the limits below.
const SEGMENT_SHARE: u64 = 32;
pub(crate) const MIN_SEGMENT: u64 = 16 << 10;
const MAX_SEGMENT: u64 = 16 << 20;
/// With less there would be no room for segments to come and go.
const LEAST_BUDGET: u64 = 16 * MIN_SEGMENT;

/// The sizes that one set of options asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The bound on entries: `max_entries`, or fewer where `max_bytes` could not hold them.
    pub(crate) max_entries: u64,
    max_bytes: u64,
    /// The index that this many entries need.
    pub(crate) geometry: Geometry,
}

impl Layout {
    pub(crate) fn new(options: &Options) -> Self {
        let max_entries = options.max_entries.min(options.max_bytes / BYTES_PER_ENTRY);
        // Large caches have room for small segments of many processes.
        let segments = options.max_bytes / segment_len(options.max_bytes)
            + (options.max_bytes >> 21).min(1024);
        Self {
            max_entries,
            max_bytes: options.max_bytes,
            geometry: Geometry::for_entries(max_entries, segments),
        }
    }

    /// Whether an index of this geometry can be gone on with.
    pub(crate) fn is_served_by(&self, geometry: Geometry) -> bool {
        geometry.serves(&self.geometry) && self.max_bytes >= fixed_bytes(geometry) + LEAST_BUDGET
    }
}

/// What counts of the limits that were `asked` for with an index of this geometry: not more entries than it is made for, nor
/// more bytes than its table can have segments for; nor so few bytes that hardly any are left beside it.
pub(crate) fn possible(asked: Limits, geometry: Geometry) -> Limits {
    let most = u64::from(geometry.segments) / 2 * MAX_SEGMENT;
    let max_bytes = asked.max_bytes.min(most).max(fixed_bytes(geometry) + LEAST_BUDGET);
    let entries = asked.max_entries.min(max_bytes / BYTES_PER_ENTRY);
    Limits { max_entries: entries.min(geometry.most_entries()), max_bytes, ..asked }
}

/// The bytes of one of the two snapshot files of an index of this geometry.
pub(crate) fn snapshot_len(geometry: Geometry) -> u64 {
    snapshot::file_len(geometry)
}

/// The bytes of the index and of the files beside it: hints and both snapshots.
pub(crate) fn index_bytes(geometry: Geometry) -> u64 {
    geometry.index_bytes() + geometry.hint_bytes() + 2 * snapshot_len(geometry)
}

/// What everything but the segments and blobs takes beside an index of this geometry.
pub(crate) fn fixed_bytes(geometry: Geometry) -> u64 {
    index_bytes(geometry) + FIXED_BYTES
}

/// The length of a segment file when `budget` bytes are there for segments.
pub(crate) fn segment_len(budget: u64) -> u64 {
    let share = (budget / SEGMENT_SHARE).max(1);
    (1 << share.ilog2()).clamp(MIN_SEGMENT, MAX_SEGMENT)
}

/// The largest record that fits: at least four of them can be there at once.
pub(crate) fn max_record_len(budget: u64) -> u64 {
    (budget / 4).saturating_sub(segment_header::LEN as u64).min(u64::from(record::MAX_LEN))
}

/// The longest value that is stored in a segment of this length; a longer one gets a file of its own. So at most a
/// quarter of a segment is left empty at its end.
pub(crate) fn largest_in_log(segment_len: u64) -> u64 {
    (segment_len / 4).clamp(8 << 10, 1 << 20)
}

/// The longest value of all: while it is written, what was there before may stay.
pub(crate) fn max_blob_len(budget: u64) -> u64 {
    budget / 2
}

/// What blobs may take when segments need space.
pub(crate) fn blob_share(budget: u64) -> u64 {
    budget / 2
}

/// Space for a blob whose length is not known is made in steps of this size.
pub(crate) fn blob_step(budget: u64) -> u64 {
    (budget >> 8).next_power_of_two().clamp(4096, 1 << 20)
}

const _: () = assert!(MAX_SEGMENT <= MAX_OFFSET, "an entry word reaches every record of a segment");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cache_still_has_room_for_segments() {
        let options = Options { max_bytes: crate::limits::MAX_BYTES_LEAST, ..Options::default() };
        let layout = Layout::new(&options);
        let budget = options.max_bytes - fixed_bytes(layout.geometry);
        assert!(budget >= options.max_bytes / 4, "{budget} of {}", options.max_bytes);
        assert!(budget / segment_len(budget) >= 16);
    }

    #[test]
    fn what_an_index_is_made_for_is_possible_and_not_much_more() {
        let sizes = [1 << 20, 3 << 20, 100 << 20, 1 << 30, 5 << 40, crate::limits::MAX_BYTES_LIMIT];
        for max_bytes in sizes {
            for max_entries in [1, 100, 9_999, 1_000_000, 3_000_000_000] {
                let options = Options { max_entries, max_bytes, ..Options::default() };
                let Layout { max_entries, geometry, .. } = Layout::new(&options);
                let counts = Limits { max_entries, ..options.limits() };
                assert_eq!(possible(options.limits(), geometry), counts);
                let more = Limits { max_entries: u64::MAX, max_bytes: u64::MAX, ..counts };
                let most = possible(more, geometry);
                assert!(
                    most.max_entries <= counts.max_entries.max(16) + 3,
                    "{most:?} for {counts:?}"
                );
                let least = possible(Limits { max_entries: 1, max_bytes: 0, ..counts }, geometry);
                assert!(
                    least.max_entries == 1 && least.max_bytes <= max_bytes,
                    "{least:?} for {counts:?}"
                );
            }
        }
    }

    #[test]
    fn the_default_index_takes_a_small_part_of_the_space() {
        let layout = Layout::new(&Options::default());
        assert_eq!(layout.max_entries, 1_000_000);
        assert!(layout.geometry.index_bytes() + layout.geometry.hint_bytes() < 45 << 20);
    }
}
