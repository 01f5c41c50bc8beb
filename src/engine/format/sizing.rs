//! Sizing: computes the sizes of all files, and the limits in effect, from `max_entries` and
//! `max_bytes`. Pure arithmetic.

use crate::engine::format::geometry::Geometry;
use crate::engine::format::word::MAX_OFFSET;
use crate::engine::format::{record, segment_header, snapshot};
use crate::limits::Limits;
use crate::options::Options;

/// The least bytes of an entry on average, with its share of the index. So `max_bytes` also bounds
/// the number of entries.
const BYTES_PER_ENTRY: u64 = 256;

/// The space for the small files, the directories, and the metadata of the file system.
const FIXED_BYTES: u64 = 64 << 10;

/// The length of a segment is this part of the space for segments, within the limits below.
const SEGMENT_SHARE: u64 = 32;
pub(crate) const MIN_SEGMENT: u64 = 16 << 10;
const MAX_SEGMENT: u64 = 16 << 20;
/// The least space for segments: with less, no new segment could be created before an old one is
/// removed.
const LEAST_BUDGET: u64 = 16 * MIN_SEGMENT;

/// The sizes that one set of options asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The bound on entries: `max_entries`, or fewer if `max_bytes` is too small for so many.
    pub(crate) max_entries: u64,
    max_bytes: u64,
    /// The geometry of an index for this many entries.
    pub(crate) geometry: Geometry,
}

impl Layout {
    pub(crate) fn new(options: &Options) -> Self {
        let max_entries = options.max_entries.min(options.max_bytes / BYTES_PER_ENTRY);
        // A large cache may have many processes, each with a small segment.
        let segments = options.max_bytes / segment_len(options.max_bytes)
            + (options.max_bytes >> 21).min(1024);
        Self {
            max_entries,
            max_bytes: options.max_bytes,
            geometry: Geometry::for_entries(max_entries, segments),
        }
    }

    /// Whether an index of this geometry can be used.
    pub(crate) fn is_served_by(&self, geometry: Geometry) -> bool {
        geometry.serves(&self.geometry) && self.max_bytes >= fixed_bytes(geometry) + LEAST_BUDGET
    }
}

/// The limits in effect, if `asked` was asked for and the index has this geometry: not more entries
/// than the index is made for, not more bytes than its segment table has rows for, and not so few
/// bytes that hardly any are left beside the index.
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

/// The bytes of everything except segments and blobs, with an index of this geometry.
pub(crate) fn fixed_bytes(geometry: Geometry) -> u64 {
    index_bytes(geometry) + FIXED_BYTES
}

/// The length of a segment file, if `budget` bytes are available for segments.
pub(crate) fn segment_len(budget: u64) -> u64 {
    let share = (budget / SEGMENT_SHARE).max(1);
    (1 << share.ilog2()).clamp(MIN_SEGMENT, MAX_SEGMENT)
}

/// The longest record: four of them fit into the budget at once.
pub(crate) fn max_record_len(budget: u64) -> u64 {
    (budget / 4).saturating_sub(segment_header::LEN as u64).min(u64::from(record::MAX_LEN))
}

/// The longest value that is stored in a segment of this length. A longer one is stored in a blob.
/// So at most a quarter of a segment stays empty at its end.
pub(crate) fn largest_in_log(segment_len: u64) -> u64 {
    (segment_len / 4).clamp(8 << 10, 1 << 20)
}

/// The longest value of all: half of the budget, so that the old value can stay while the new one
/// is written.
pub(crate) fn max_blob_len(budget: u64) -> u64 {
    budget / 2
}

/// The bytes that blobs may take if segments need space.
pub(crate) fn blob_share(budget: u64) -> u64 {
    budget / 2
}

/// Space for a blob of unknown length is reserved in steps of this size.
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
    fn an_index_allows_the_limits_it_is_made_for_and_little_more() {
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
