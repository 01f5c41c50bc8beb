//! The index of a closed directory: whether the next life can use it as it is.

use std::collections::{HashMap, HashSet};

use crate::engine::format::segment_header;
use crate::engine::format::sizing::Layout;
use crate::engine::format::snapshot::Header;
use crate::engine::format::word::Word;
use crate::engine::hints::Hints;
use crate::engine::index::{Index, ProcessSlot, SegmentState};
use crate::engine::lifecycle::directory::Directory;
use crate::engine::lifecycle::recovery::Recovered;
use crate::engine::log::segment::Segment;
use crate::engine::shared::state_file::StateFile;
use crate::error::{Error, Result};
use crate::sys::storage::is_unusable;

/// The index of a directory, if it was closed.
pub(crate) enum ClosedIndex {
    /// Index and hints can be used.
    Fits(Recovered),
    /// The index is too small or too large now: its words and its header.
    OtherSize(Vec<Word>, Header),
    /// The directory was not closed, or the index has changed since.
    No,
}

/// Opens the index and the hints of a closed directory.
pub(crate) fn open_closed(
    directory: &Directory,
    state: &StateFile,
    layout: &Layout,
    process_slot: &ProcessSlot,
    segments: &[Segment],
) -> Result<ClosedIndex> {
    let Some(header) = state.clean() else { return Ok(ClosedIndex::No) };
    let index_path = directory.file("index");
    let index = match directory.storage.open(&index_path) {
        Ok(file) => {
            let is_wanted = |geometry| layout.is_served_by(geometry);
            Index::open(&file, header, process_slot.clone(), is_wanted)
        }
        Err(e) if is_unusable(&e) => return Ok(ClosedIndex::No),
        Err(e) => Err(e),
    };
    let Some(index) = index.map_err(|e| Error::io("open", &index_path, e))? else {
        return Ok(ClosedIndex::No);
    };
    if !ends_log(&index, segments) {
        return Ok(ClosedIndex::No);
    }
    let has_file: HashSet<u32> = segments.iter().map(|segment| segment.id).collect();
    let lacks_file = |id| !has_file.contains(&id);
    if !layout.is_served_by(index.geometry()) {
        let mut words = Vec::new();
        for chain in 0..index.geometry().primaries {
            words.extend(index.chain_words(chain));
        }
        let header = Header {
            sequence: Index::sequence_in(header),
            generation: index.generation(),
            recency: index.recency(),
            next_segment: index.unused_segment_id(),
            ..Header::default()
        };
        return Ok(ClosedIndex::OtherSize(words, header));
    }
    // A recovery must not bring back what a lost segment superseded.
    let wants_checkpoint =
        index.segments_in(SegmentState::Sealed).iter().any(|segment| lacks_file(segment.id));
    let hints = open_hints(directory, &index)?;
    Ok(ClosedIndex::Fits(Recovered { index, hints, wants_checkpoint, replay_from: HashMap::new() }))
}

/// Whether the log ends where this closed index says. It goes on if segments were copied later than
/// the index.
fn ends_log(index: &Index, segments: &[Segment]) -> bool {
    let (last, end) = index.end_of_log();
    segments.iter().all(|segment| {
        let is_listed = index.segment_state(segment.id).is_some();
        let unused = if segment.id == last { end } else { segment_header::LEN as u32 };
        (is_listed && segment.id != last) || segment.is_unused_from(unused)
    })
}

/// Opens the hints of an index; creates them if their size does not fit.
pub(crate) fn open_hints(directory: &Directory, index: &Index) -> Result<Hints> {
    let path = directory.file("hints");
    let hints = directory.storage.open_or_create(&path).and_then(|(file, _)| {
        match Hints::open(&file, index.geometry())? {
            Some(hints) => Ok(hints),
            None => Hints::create(&file, index.geometry()),
        }
    });
    hints.map_err(|e| Error::io("open", &path, e))
}
