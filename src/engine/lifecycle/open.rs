//! Opening a directory: finds or builds the index that an attach works with.
//!
//! ```text
//! other processes have it open       join:    map their index
//! no process has it open             begin:   map the closed index, or recover one
//! it may only be read                observe: the same, but without writing a file
//! ```
//!
//! The attach mutex is held all the time. `begin` marks the directory as open, durably, before it
//! changes anything. So if it is killed, the next open recovers.

use std::collections::HashSet;
use std::path::Path;

use crate::engine::format::sizing::{self, Layout};
use crate::engine::format::snapshot::Header;
use crate::engine::format::word::Word;
use crate::engine::hints::Hints;
use crate::engine::index::{HIGHEST_SEGMENT, Index, ProcessSlot};
use crate::engine::lifecycle::directory::Directory;
use crate::engine::lifecycle::recovery::{self, Base, Recovered};
use crate::engine::log::segment::{Segment, SegmentFile};
use crate::engine::ops::background::PostRecovery;
use crate::engine::shared::accounting::SpaceInUse;
use crate::engine::shared::checkpoint_files::{self, FoundSnapshot};
use crate::engine::shared::index_watch::Watch;
use crate::engine::shared::state_file::StateFile;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::step;
use crate::sys::storage::{Access, is_unusable};

/// The parameters of an open. The attach mutex is held.
pub(crate) struct Opening<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) process_slot: ProcessSlot,
    pub(crate) hasher: &'a KeyHasher,
    pub(crate) space: &'a SpaceInUse,
    pub(crate) options: Options,
}

/// The result of an open.
pub(crate) struct Opened {
    pub(crate) index: Index,
    pub(crate) hints: Hints,
    /// All segments, oldest first, if this is the only process.
    pub(crate) segments: Vec<Segment>,
    /// Where this process continues the log: segment and offset.
    pub(crate) end: Option<(u32, u32)>,
    /// What the first process must do before others attach; `None` if others are attached.
    pub(crate) recovered: Option<PostRecovery>,
}

/// The error of a salvage while other processes have the directory open.
pub(crate) fn salvaged_in_use(path: &Path) -> Error {
    let why = "the index is rebuilt only while no other process has the directory open";
    Error::new(ErrorKind::InUse, "salvage").with_path(path).with_source(why)
}

/// What the files say about the time before this open.
struct FoundFiles {
    /// The last sequence that the last clean close noted; 0 if there was none.
    sequence: u64,
    /// The lowest number that a valid snapshot can have; `None` if `state` does not say.
    least_snapshot: Option<u64>,
    /// The newest valid snapshot, and whether no snapshot was ever written.
    found: FoundSnapshot,
}

impl FoundFiles {
    fn read(directory: &Directory, state: &StateFile) -> Result<Self> {
        let least = state.snapshot();
        let found = checkpoint_files::find(directory.storage, &directory.path, least.unwrap_or(0))?;
        let sequence = state.clean().map_or(0, Index::sequence_in);
        Ok(Self { sequence, least_snapshot: least, found })
    }

    /// The number of the last snapshot.
    fn snapshot_number(&self) -> u64 {
        let newest = self.found.newest.as_ref().map_or(0, |(_, header)| header.number);
        newest.max(self.least_snapshot.unwrap_or(0))
    }
}

impl Opening<'_> {
    /// Joins the processes that have the directory open, with the limits that they have.
    pub(crate) fn join(&self) -> Result<Opened> {
        if self.options.salvage {
            return Err(salvaged_in_use(&self.directory.path));
        }
        let path = self.directory.file("index");
        let io_error = |e| Error::io("open", &path, e);
        let file = self.directory.storage.open(&path).map_err(io_error)?;
        let index = Index::join(&file, self.process_slot.clone()).map_err(io_error)?;
        let index = index.ok_or_else(|| {
            let why =
                "other processes have the directory open, but this is not an index they could use";
            Error::new(ErrorKind::Corrupt, "open").with_path(&path).with_source(why)
        })?;
        let hints = open_hints(self.directory, &index)?;
        let (theirs, ours) = (index.asked_limits(), self.options.limits());
        if theirs != ours && !self.options.keep_limits {
            tracing::warn!(
                dir = %self.directory.path.display(),
                ?theirs,
                ?ours,
                "other processes have the directory open; their limits apply"
            );
        }
        Ok(Opened { index, hints, segments: Vec::new(), end: None, recovered: None })
    }

    /// Opens a directory that no process has open.
    pub(crate) fn begin(&self, mut state: StateFile) -> Result<Opened> {
        let Self { directory, process_slot, options, .. } = self;
        let at_state = |e| Error::io("open", &directory.file("state"), e);
        let (mut segments, layout) = self.open_segments(options, Access::ToWrite)?;
        let closed = if options.salvage {
            ClosedIndex::No
        } else {
            open_closed(directory, &state, &layout, process_slot)?
        };
        let known = FoundFiles::read(directory, &state)?;
        let snapshot = known.snapshot_number();
        // Durably, before anything is changed.
        state.mark_open(options.limits()).map_err(at_state)?;
        step!("attach::marked");
        let (recovered, is_closed) = match closed {
            ClosedIndex::Fits(recovered) => (recovered, true),
            closed => (self.recover(&mut state, closed, known, &layout, &segments)?, false),
        };
        let Recovered { index, hints, wants_checkpoint, sealed } = recovered;
        for segment in beyond_table(&mut segments, index.geometry().segments) {
            directory
                .storage
                .remove(&segment.path)
                .map_err(|e| Error::io("remove", &segment.path, e))?;
        }
        self.prepare(&index, &segments, snapshot);
        let end = if is_closed {
            Some(index.end_of_log())
        } else {
            // Only in a segment that the next recovery replays.
            let newest = segments.last().filter(|newest| !sealed.contains(&newest.id));
            newest.map(|newest| (newest.id, newest.end(0)))
        };
        let recovered = Some(PostRecovery { is_recovered: !is_closed, wants_checkpoint });
        Ok(Opened { index, hints, segments, end, recovered })
    }

    /// Recovers the index of a directory that was not closed, or whose index has another size than
    /// is needed now.
    fn recover(
        &self,
        state: &mut StateFile,
        closed: ClosedIndex,
        known: FoundFiles,
        layout: &Layout,
        segments: &[Segment],
    ) -> Result<Recovered> {
        let Self { directory, process_slot, hasher, options, .. } = self;
        // A killed process may have left anything unsynced, even the name of the newest segment.
        segments.iter().for_each(Segment::mark_dirty);
        let names = directory.segments();
        directory.storage.sync_dir(&names).map_err(|e| Error::io("sync directory", &names, e))?;
        let number = known.snapshot_number();
        let (sequence, least) = (known.sequence, known.least_snapshot.unwrap_or(0));
        let base = match closed {
            ClosedIndex::OtherSize(words, header) if !options.salvage => {
                Base::Closed(words, header)
            }
            _ => self.base(known, segments.is_empty()),
        };
        let is_newer = matches!(base, Base::Snapshot(..)) && number > least;
        let access = Access::ToWrite;
        let inputs = recovery::Inputs { directory, layout, process_slot, hasher, options, access };
        let recovered = recovery::recover(inputs, segments, sequence, base)?;
        if is_newer {
            // The process that wrote the snapshot died before `state` said so. It is durable now,
            // and the next checkpoint must not overwrite it.
            let stored = state.set_snapshot(number, options.limits());
            stored.map_err(|e| Error::io("open", &directory.file("state"), e))?;
        }
        Ok(recovered)
    }

    /// Sets the shared words of the index as they must be when the first process begins.
    fn prepare(&self, index: &Index, segments: &[Segment], snapshot: u64) {
        let ids: HashSet<u32> = segments.iter().map(|segment| segment.id).collect();
        index.retain_segments(|id| ids.contains(&id));
        index.set_last_snapshot(snapshot);
        index.forget_next_expiry();
        index.note_expiry(0);
        let asked = self.options.limits();
        index.set_limits(asked, sizing::possible(asked, index.geometry()));
        let highest = ids.iter().max().map_or(0, |id| u64::from(*id));
        index.raise_next_segment_id(highest + 1);
    }

    /// Opens a directory for an observer. If other processes have it open (`is_live`) or it was
    /// closed, maps its index. Otherwise recovers an index in the memory of this process.
    pub(crate) fn observe(&self, is_live: bool) -> Result<Observed> {
        let Self { directory, process_slot, hasher, options, .. } = self;
        let path = directory.file("index");
        let at_index = |e| Error::io("open", &path, e);
        let unusable = |e| if is_unusable(&e) { no_index(&path, is_live) } else { at_index(e) };
        let file = directory.storage.open_to_read(&path).map_err(unusable)?;
        let watch = Watch::new(&file).map_err(unusable)?;
        let mapped =
            |closed| Index::open_read_only(&file, closed, process_slot.clone()).map_err(at_index);
        if is_live {
            let index = mapped(None)?.ok_or_else(|| no_index(&path, is_live))?;
            return Ok(Observed { index, segments: Vec::new(), watch });
        }
        let state_path = directory.file("state");
        let state = directory.storage.open_to_read(&state_path).and_then(StateFile::read);
        let state = state.map_err(|e| Error::io("open", &state_path, e))?;
        let options = options.for_limits(state.limits());
        // Even with `salvage`: the next process that attaches continues with this index, and does
        // not retire it.
        if let Some(header) = state.clean()
            && let Some(index) = mapped(Some(header))?
        {
            return Ok(Observed { index, segments: Vec::new(), watch });
        }
        let access = Access::ToRead;
        let (mut segments, layout) = self.open_segments(&options, access)?;
        drop(beyond_table(&mut segments, layout.geometry.segments));
        let known = FoundFiles::read(directory, &state)?;
        let sequence = known.sequence;
        let base = self.base(known, segments.is_empty());
        let (layout, options) = (&layout, &options);
        let inputs = recovery::Inputs { directory, layout, process_slot, hasher, options, access };
        let Recovered { index, .. } = recovery::recover(inputs, &segments, sequence, base)?;
        index.set_limits(options.limits(), sizing::possible(options.limits(), index.geometry()));
        Ok(Observed { index, segments, watch })
    }

    /// Opens all segments, oldest first, and computes the layout of an index for them.
    fn open_segments(&self, options: &Options, access: Access) -> Result<(Vec<Segment>, Layout)> {
        let segments = open_segments(self.directory, access, self.space)?;
        let mut layout = Layout::new(options);
        layout.geometry.segments = rows_for(&segments, layout.geometry.segments);
        Ok((segments, layout))
    }

    /// What a recovery starts from.
    fn base(&self, known: FoundFiles, is_log_empty: bool) -> Base {
        let FoundSnapshot { newest, untouched } = known.found;
        match (newest, known.least_snapshot) {
            _ if self.options.salvage => Base::Salvage,
            (Some((file, header)), _) => Base::Snapshot(file, header),
            (None, Some(0)) => Base::Empty,
            (None, None) if untouched || is_log_empty => Base::Empty,
            (None, _) => {
                let dir = self.directory.path.display();
                tracing::error!(%dir, "the snapshots are damaged; the cache starts cold");
                Base::Lost
            }
        }
    }
}

/// The error of an observer that finds no index.
fn no_index(path: &Path, is_live: bool) -> Error {
    let (kind, why) = if is_live {
        (ErrorKind::Corrupt, "other processes have the directory open, but this is not an index")
    } else {
        // The process that was creating it was killed, or the disk was full. The log is complete.
        (
            ErrorKind::Io,
            "there is none; the next process that opens the directory to write rebuilds it",
        )
    };
    Error::new(kind, "open").with_path(path).with_source(why)
}

/// The result of an open by an observer.
pub(crate) struct Observed {
    pub(crate) index: Index,
    /// All segments, oldest first, if the index is in the memory of this process.
    pub(crate) segments: Vec<Segment>,
    /// Watches the index in the directory.
    pub(crate) watch: Watch,
}

/// Opens all segments, oldest first. Removes files that have no header yet, if `access` allows it.
/// Skips files that are not segments.
fn open_segments(
    directory: &Directory,
    access: Access,
    space: &SpaceInUse,
) -> Result<Vec<Segment>> {
    let mut files: Vec<_> = directory.segment_files()?.collect();
    files.sort_unstable();
    let mut segments = Vec::new();
    for (id, path) in files {
        if id > HIGHEST_SEGMENT {
            tracing::warn!(path = %path.display(), "skipped a file: no segment has such an id");
            continue;
        }
        match Segment::open(directory.storage, &path, id, access, space)? {
            SegmentFile::Segment(segment) => {
                // Only the newest segment may be appended to.
                segments.last().inspect(|older: &&Segment| older.close_file());
                segments.push(segment);
            }
            SegmentFile::Incomplete if access == Access::ToRead => {}
            SegmentFile::Incomplete => {
                directory.storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?
            }
            SegmentFile::Foreign => {
                tracing::warn!(path = %path.display(), "skipped a file: not a segment, or damaged");
            }
        }
    }
    Ok(segments)
}

/// How many rows the segment table needs, at least `wanted`, so that each segment has its own. More
/// than wanted are needed only if `max_bytes` was larger once, or a foreign file was put there.
fn rows_for(segments: &[Segment], wanted: u32) -> u32 {
    /// The largest table.
    const MOST: u32 = 1 << 16;
    let each_has_one = |rows: u32| {
        let mut taken = HashSet::new();
        segments.iter().all(|segment| taken.insert(segment.id & (rows - 1)))
    };
    let mut rows = wanted;
    while rows < MOST && !each_has_one(rows) {
        rows *= 2;
    }
    rows
}

/// Takes out the oldest segments, until each of the others has its own row in a table of `rows`.
fn beyond_table(segments: &mut Vec<Segment>, rows: u32) -> std::vec::Drain<'_, Segment> {
    let mut taken = HashSet::new();
    let staying = segments.iter().rev().take_while(|s| taken.insert(s.id & (rows - 1))).count();
    segments.drain(..segments.len() - staying)
}

/// The index of a directory, if it was closed.
enum ClosedIndex {
    /// Index and hints can be used.
    Fits(Recovered),
    /// The index is too small or too large now: its words and its header.
    OtherSize(Vec<Word>, Header),
    /// The directory was not closed, or the index has changed since.
    No,
}

/// Opens the index and the hints of a closed directory.
fn open_closed(
    directory: &Directory,
    state: &StateFile,
    layout: &Layout,
    process_slot: &ProcessSlot,
) -> Result<ClosedIndex> {
    let Some(header) = state.clean() else { return Ok(ClosedIndex::No) };
    let index_path = directory.file("index");
    let index = match directory.storage.open(&index_path) {
        Ok(file) => Index::open(&file, header, process_slot.clone()),
        Err(e) if is_unusable(&e) => return Ok(ClosedIndex::No),
        Err(e) => Err(e),
    };
    let Some(index) = index.map_err(|e| Error::io("open", &index_path, e))? else {
        return Ok(ClosedIndex::No);
    };
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
    let hints = open_hints(directory, &index)?;
    Ok(ClosedIndex::Fits(Recovered {
        index,
        hints,
        wants_checkpoint: false,
        sealed: HashSet::new(),
    }))
}

/// Opens the hints of an index; creates them if their size does not fit.
fn open_hints(directory: &Directory, index: &Index) -> Result<Hints> {
    let path = directory.file("hints");
    let hints = directory.storage.open_or_create(&path).and_then(|(file, _)| {
        match Hints::open(&file, index.geometry())? {
            Some(hints) => Ok(hints),
            None => Hints::create(&file, index.geometry()),
        }
    });
    hints.map_err(|e| Error::io("open", &path, e))
}
