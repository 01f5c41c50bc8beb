//! What an attach finds in a directory: an index that others use, one that was closed, or what a recovery makes.

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
use crate::sys::storage::{Access, File, is_unusable};

/// What an attach goes by. The attach mutex is held.
pub(crate) struct Opening<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) process_slot: ProcessSlot,
    pub(crate) hasher: &'a KeyHasher,
    pub(crate) space: &'a SpaceInUse,
    pub(crate) options: Options,
}

/// What it begins with.
pub(crate) struct Opened {
    pub(crate) index: Index,
    pub(crate) hints: Hints,
    /// All segments, oldest first, if this is the only process.
    pub(crate) segments: Vec<Segment>,
    /// Where the log goes on: a segment and a place in it.
    pub(crate) end: Option<(u32, u32)>,
    /// What the first process has to do before others come; `None` if others are there.
    pub(crate) recovered: Option<PostRecovery>,
}

/// The error of whoever wants the index made anew that others work with.
pub(crate) fn salvaged_in_use(path: &Path) -> Error {
    let why = "the index is made anew only while nobody else has the directory open";
    Error::new(ErrorKind::InUse, "salvage").with_path(path).with_source(why)
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
                "processes have the directory open, and this is not an index that they could use";
            Error::new(ErrorKind::Corrupt, "open").with_path(&path).with_source(why)
        })?;
        let hints = open_hints(self.directory, &index)?;
        let (theirs, ours) = (index.asked_limits(), self.options.limits());
        if theirs != ours && !self.options.keep_limits {
            tracing::warn!(dir = %self.directory.path.display(), ?theirs, ?ours, "other processes have the directory open; their limits count");
        }
        Ok(Opened { index, hints, segments: Vec::new(), end: None, recovered: None })
    }

    /// Takes a directory that nobody has open into use.
    pub(crate) fn begin(&self, mut state: StateFile) -> Result<Opened> {
        let Self { directory, process_slot, hasher, space, options } = self;
        let at_state = |e| Error::io("open", &directory.file("state"), e);
        let mut layout = Layout::new(options);
        let mut segments = open_segments(directory, Access::ToWrite, space)?;
        layout.geometry.segments = places_for(&segments, layout.geometry.segments);
        let closed = if options.salvage {
            Closed::No
        } else {
            open_closed(directory, &state, &layout, process_slot)?
        };
        let known_sequence = state.clean().map_or(0, Index::sequence_in);
        let least = state.snapshot();
        let FoundSnapshot { newest, untouched } =
            checkpoint_files::find(directory.storage, &directory.path, least.unwrap_or(0))?;
        let number = newest.as_ref().map_or(0, |(_, header)| header.number).max(least.unwrap_or(0));
        // Durably, before anything is changed.
        state.mark_open(options.limits()).map_err(at_state)?;
        step!("attach::marked");
        let (recovered, is_closed) = match closed {
            Closed::Fits(recovered) => (recovered, true),
            other => {
                // Whoever was killed may have left anything unsynced, the name of the newest segment too.
                segments.iter().for_each(Segment::mark_dirty);
                let names = directory.segments();
                directory
                    .storage
                    .sync_dir(&names)
                    .map_err(|e| Error::io("sync directory", &names, e))?;
                let base = match other {
                    Closed::OtherSize(words, header) if !options.salvage => {
                        Base::Closed(words, header)
                    }
                    _ => self.base(newest, least, untouched || segments.is_empty()),
                };
                let access = Access::ToWrite;
                let inputs = recovery::Inputs {
                    directory,
                    layout: &layout,
                    process_slot,
                    hasher,
                    options,
                    access,
                };
                let is_newer = matches!(base, Base::Snapshot(..)) && number > least.unwrap_or(0);
                let recovered = recovery::recover(inputs, &segments, known_sequence, base)?;
                if is_newer {
                    // Whoever wrote it did not come to say so. It is on the disk by now, and the next must not be written over it.
                    state.set_snapshot(number, options.limits()).map_err(at_state)?;
                }
                (recovered, false)
            }
        };
        let Recovered { index, hints, wants_checkpoint, sealed } = recovered;
        for segment in beyond_table(&mut segments, index.geometry().segments) {
            directory
                .storage
                .remove(&segment.path)
                .map_err(|e| Error::io("remove", &segment.path, e))?;
        }
        let ids: HashSet<u32> = segments.iter().map(|segment| segment.id).collect();
        index.retain_segments(|id| ids.contains(&id));
        index.set_last_snapshot(number);
        index.forget_next_expiry();
        index.note_expiry(0);
        let asked = options.limits();
        index.set_limits(asked, sizing::possible(asked, index.geometry()));
        let end = if is_closed {
            Some(index.end_of_log())
        } else {
            // Where the next recovery looks for what is new.
            let newest = segments.last().filter(|newest| !sealed.contains(&newest.id));
            newest.map(|newest| (newest.id, newest.end(0)))
        };
        let highest = segments.iter().map(|s| u64::from(s.id)).max().unwrap_or(0);
        index.raise_next_segment_id(highest + 1);
        let recovered = Some(PostRecovery { is_recovered: !is_closed, wants_checkpoint });
        Ok(Opened { index, hints, segments, end, recovered })
    }

    /// What there is to see for an onlooker, in a directory that other processes have open, or nobody. An index that was
    /// not closed is made anew in memory, for this process alone.
    pub(crate) fn look(&self, is_live: bool) -> Result<Observed> {
        let Self { directory, process_slot, hasher, space, options } = self;
        let path = directory.file("index");
        let at_index = |e| Error::io("open", &path, e);
        let no_index = || {
            let (kind, why) = if is_live {
                (ErrorKind::Corrupt, "processes have the directory open, and this is not an index")
            } else {
                // Whoever was making it was killed, or had no room for it. The log is whole.
                (
                    ErrorKind::Io,
                    "there is none at the moment; whoever opens the directory to write makes it anew",
                )
            };
            Error::new(kind, "open").with_path(&path).with_source(why)
        };
        let unusable = |e| if is_unusable(&e) { no_index() } else { at_index(e) };
        let file = directory.storage.open_to_read(&path).map_err(unusable)?;
        let watch = Watch::new(&file).map_err(unusable)?;
        let seen = |index, segments| Observed { index, segments, watch };
        if is_live {
            let index =
                Index::open_read_only(&file, None, process_slot.clone()).map_err(at_index)?;
            return Ok(seen(index.ok_or_else(no_index)?, Vec::new()));
        }
        let state_path = directory.file("state");
        let state = directory.storage.open_to_read(&state_path).and_then(StateFile::read);
        let state = state.map_err(|e| Error::io("open", &state_path, e))?;
        let options = options.for_limits(state.limits());
        // Salvaged or not: whoever opens it later goes on with this one, and it is not given up.
        if let Some(header) = state.clean()
            && let Some(index) = Index::open_read_only(&file, Some(header), process_slot.clone())
                .map_err(at_index)?
        {
            return Ok(seen(index, Vec::new()));
        }
        let access = Access::ToRead;
        let mut segments = open_segments(directory, access, space)?;
        let mut layout = Layout::new(&options);
        layout.geometry.segments = places_for(&segments, layout.geometry.segments);
        drop(beyond_table(&mut segments, layout.geometry.segments));
        let least = state.snapshot();
        let FoundSnapshot { newest, untouched } =
            checkpoint_files::find(directory.storage, &directory.path, least.unwrap_or(0))?;
        let base = self.base(newest, least, untouched || segments.is_empty());
        let known_sequence = state.clean().map_or(0, Index::sequence_in);
        let inputs = recovery::Inputs {
            directory,
            layout: &layout,
            process_slot,
            hasher,
            options: &options,
            access,
        };
        let Recovered { index, .. } = recovery::recover(inputs, &segments, known_sequence, base)?;
        index.set_limits(options.limits(), sizing::possible(options.limits(), index.geometry()));
        Ok(seen(index, segments))
    }

    /// What a recovery begins with, where `newest` is the snapshot that counts and has at `least` this number, if anything is
    /// known of that. `untouched`: no snapshot was ever written, as far as the files tell.
    fn base(&self, newest: Option<(File, Header)>, least: Option<u64>, untouched: bool) -> Base {
        match (newest, least) {
            _ if self.options.salvage => Base::Salvage,
            (Some((file, header)), _) => Base::Snapshot(file, header),
            (None, Some(0)) => Base::Empty,
            (None, None) if untouched => Base::Empty,
            (None, _) => {
                tracing::error!(dir = %self.directory.path.display(), "the snapshots are damaged; the cache starts cold");
                Base::Lost
            }
        }
    }
}

/// What an onlooker has of a directory.
pub(crate) struct Observed {
    pub(crate) index: Index,
    /// All segments, oldest first, if the index is this process's own.
    pub(crate) segments: Vec<Segment>,
    /// On the index in the directory.
    pub(crate) watch: Watch,
}

/// Opens all segments, oldest first. What was begun and has nothing in it goes, if it may; what is not ours stays, unread.
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
            tracing::warn!(path = %path.display(), "no segment has such an id; it is passed over");
            continue;
        }
        match Segment::open(directory.storage, &path, id, access, space)? {
            SegmentFile::Segment(segment) => {
                // Only the newest may be written to again.
                segments.last().inspect(|older: &&Segment| older.close_file());
                segments.push(segment);
            }
            SegmentFile::Incomplete if access == Access::ToRead => {}
            SegmentFile::Incomplete => {
                directory.storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?
            }
            SegmentFile::Foreign => {
                tracing::warn!(path = %path.display(), "not a segment, or damaged; it is passed over");
            }
        }
    }
    Ok(segments)
}

/// How many places a table needs, at least `wanted`, so that each segment has one of its own. A table is larger than
/// wanted only where `max_bytes` was larger once, or a file was planted.
fn places_for(segments: &[Segment], wanted: u32) -> u32 {
    /// No larger table is made.
    const MOST: u32 = 1 << 16;
    let each_has_one = |places: u32| {
        let mut taken = HashSet::new();
        segments.iter().all(|segment| taken.insert(segment.id & (places - 1)))
    };
    let mut places = wanted;
    while places < MOST && !each_has_one(places) {
        places *= 2;
    }
    places
}

/// Takes the oldest segments away until those that stay have each a place of its own in a table of `places`.
fn beyond_table(segments: &mut Vec<Segment>, places: u32) -> std::vec::Drain<'_, Segment> {
    let mut taken = HashSet::new();
    let staying = segments.iter().rev().take_while(|s| taken.insert(s.id & (places - 1))).count();
    segments.drain(..segments.len() - staying)
}

/// What a directory that was closed has to go on with.
enum Closed {
    /// Its index and hints.
    Fits(Recovered),
    /// The words of an index that is too small or too large now, and what its header said.
    OtherSize(Vec<Word>, Header),
    /// Nothing: it was not closed, or the index is not as it was.
    No,
}

/// The index and the hints as they were when the directory was closed, if it was, and if they still serve.
fn open_closed(
    directory: &Directory,
    state: &StateFile,
    layout: &Layout,
    process_slot: &ProcessSlot,
) -> Result<Closed> {
    let Some(header) = state.clean() else { return Ok(Closed::No) };
    let index_path = directory.file("index");
    let index = match directory.storage.open(&index_path) {
        Ok(file) => Index::open(&file, header, process_slot.clone()),
        Err(e) if is_unusable(&e) => return Ok(Closed::No),
        Err(e) => Err(e),
    };
    let Some(index) = index.map_err(|e| Error::io("open", &index_path, e))? else {
        return Ok(Closed::No);
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
        return Ok(Closed::OtherSize(words, header));
    }
    let hints = open_hints(directory, &index)?;
    Ok(Closed::Fits(Recovered { index, hints, wants_checkpoint: false, sealed: HashSet::new() }))
}

/// The hints beside an index, made anew if they do not fit it.
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
