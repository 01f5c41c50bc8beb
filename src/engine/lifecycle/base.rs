//! What a recovery starts from: a snapshot, the words of a closed index, or nothing.

use std::collections::HashMap;
use std::io;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::snapshot::{Header, SnapshotPart};
use crate::engine::format::word::Word;
use crate::engine::shared::snapshot_file;
use crate::sys::storage::File;

/// What a recovery starts from.
pub(crate) enum Base {
    /// Nothing: no checkpoint ever removed a part of the log, so all of it is replayed.
    Empty,
    /// A snapshot.
    Snapshot(File, Header),
    /// The words of a closed index whose size does not fit any more. Nothing is replayed.
    Closed(Vec<Word>, Header),
    /// Nothing, because the snapshots are damaged. It is unknown which records of the log are still
    /// valid, so the cache starts cold. `salvage` can read them.
    Lost,
    /// As `Empty`, on request, although old values may come back.
    Salvage,
}

impl Base {
    /// The offset from which on each segment is replayed, if the snapshot says it.
    pub(crate) fn starts(&self) -> io::Result<HashMap<u32, u32>> {
        let mut starts = HashMap::new();
        if let Self::Snapshot(file, header) = self {
            snapshot_file::read(file, header, |part| {
                if let SnapshotPart::Segment(id, from, _) = part {
                    starts.insert(id, from);
                }
            })?;
        }
        Ok(starts)
    }

    /// Whether an older value could come back if a record of the log were missing.
    pub(crate) fn needs_whole_log(&self) -> bool {
        matches!(self, Self::Empty | Self::Snapshot(..))
    }

    pub(crate) fn header(&self) -> Header {
        match self {
            Self::Snapshot(_, header) | Self::Closed(_, header) => *header,
            Self::Empty | Self::Salvage => Header { sequence: 0, ..Header::default() },
            Self::Lost => Header { sequence: u64::MAX, ..Header::default() },
        }
    }

    /// Whether words stay in the slots that they had when the snapshot was taken.
    pub(crate) fn keeps_slots(&self, geometry: Geometry) -> bool {
        matches!(self, Self::Snapshot(_, header) if header.primaries == geometry.primaries)
    }

    pub(crate) fn is_replayed(&self) -> bool {
        !matches!(self, Self::Closed(..))
    }

    /// Whether the next recovery could not start from the same base: a checkpoint must follow.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        matches!(self, Self::Lost | Self::Closed(..) | Self::Salvage)
    }
}
