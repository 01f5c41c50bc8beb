//! Attaching to a directory and detaching from it: one engine for each directory and process, found by device and
//! inode, so that opening again is cheap whatever path leads there.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

use super::blob::Blobs;
use super::counters::Counters;
use super::directory::{Directory, FIRST_PROCESS};
use super::hints::Hints;
use super::hot::Hot;
use super::index::Index;
use super::layout::{self, Layout};
use super::log::Log;
use super::maintenance::{Bell, Maintenance};
use super::recovery::Recovered;
use super::segment::{self, Opened, Segment, SpaceInUse, Usage};
use super::state::State;
use super::{Engine, recovery};
use crate::entry::Streamed;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::file::{self, DirectoryId, HeldDirectory};
use crate::sys::{lock, step};

/// The engines of this process.
static ENGINES: Registry =
    Registry { engines: Mutex::new(None), gone: Condvar::new(), spaces: Mutex::new(Vec::new()) };

struct Registry {
    engines: Mutex<Option<HashMap<DirectoryId, Weak<Attached>>>>,
    /// Rung when an engine has detached.
    gone: Condvar,
    /// What counts the bytes of each directory: the same for as long as the program holds any value of it, whether
    /// the directory is open or not. A segment that is held from before and still in use counts twice.
    spaces: Mutex<Vec<(DirectoryId, Weak<Usage>)>>,
}

impl Registry {
    fn space(&self, id: DirectoryId) -> SpaceInUse {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|(_, count)| count.strong_count() > 0);
        if let Some(space) = spaces.iter().find(|(i, _)| *i == id).and_then(|(_, c)| SpaceInUse::upgrade(c)) {
            return space;
        }
        let space = SpaceInUse::default();
        spaces.push((id, space.downgrade()));
        space
    }
}

/// A directory that this process is attached to. Dropping the last one detaches: everything is made durable and
/// the directory marked clean.
pub(crate) struct Attached {
    engine: Arc<Engine>,
    maintenance: Option<Maintenance>,
    state: Mutex<State>,
    locks: File,
    /// Held, so that a directory made after this one was removed is not taken for it.
    held: HeldDirectory,
}

impl std::ops::Deref for Attached {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Attached {
    /// The engine of the directory at `path`. If this process has it open already, that one, with the options
    /// it was opened with.
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Arc<Self>> {
        options.validate()?;
        let directory = Directory::at(path)?;
        let held = HeldDirectory::open(path).map_err(|e| Error::io("open", path, e))?;
        let id = held.id();
        let mut registry = ENGINES.engines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let engines = registry.get_or_insert_default();
            match engines.get(&id).map(Weak::upgrade) {
                Some(Some(attached)) => return Ok(attached),
                // The last handle was dropped; its detaching is not finished yet.
                Some(None) => {
                    registry = ENGINES.gone.wait(registry).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        // Held while attaching: another thread that opens the directory waits and shares the engine.
        let attached = Arc::new(Self::attach(&directory, held, options)?);
        registry.get_or_insert_default().insert(id, Arc::downgrade(&attached));
        Ok(attached)
    }

    fn attach(directory: &Directory, held: HeldDirectory, options: &Options) -> Result<Self> {
        let locks = directory.enter()?;
        let at_locks = |e| Error::io("lock", &directory.file("locks"), e);
        let meta = directory.meta()?;
        if !lock::try_lock(&locks, FIRST_PROCESS).map_err(at_locks)? {
            return Err(Error::new(ErrorKind::InUse, "open").with_path(&directory.path));
        }
        let state_path = directory.file("state");
        let at_state = |e| Error::io("open", &state_path, e);
        let mut state =
            file::open_or_create(&state_path).and_then(|(f, _)| State::open(f)).map_err(at_state)?;
        let hasher = KeyHasher::new(&meta.hash_key);
        let options = &options.for_limits(state.limits());
        let layout = Layout::new(options);
        let space = ENGINES.space(held.id());
        let segments = open_segments(directory, &space)?;
        let blobs = Blobs::open(&directory.blobs(), &space)?;
        let owner = segment::random().map_err(at_state)? as u32;
        let closed = open_closed(directory, &state, &layout, owner, &blobs)?;
        let known_sequence = state.clean().map_or(0, Index::sequence_in);
        // Durably, before anything is changed.
        state.mark_open(options.limits()).map_err(at_state)?;
        step!("attach::marked");
        let geometry = closed.as_ref().map_or(layout.geometry, |closed| closed.index.geometry());
        let segments = fit_table(segments, geometry.segments)?;
        let newest = segments.last();
        let (Recovered { index, hints }, end) = match closed {
            Some(closed) => {
                let end = newest.and_then(|s| closed.index.end_of_log(s.id));
                (closed, end)
            }
            None => {
                // Whoever was killed may have left anything unsynced.
                segments.iter().for_each(Segment::mark_dirty);
                let recovered = recovery::recover(
                    directory,
                    &layout,
                    owner,
                    &hasher,
                    &segments,
                    &blobs,
                    options,
                    known_sequence,
                )?;
                (recovered, newest.map(Segment::end))
            }
        };
        blobs.remove_orphans();
        let budget = layout::segment_budget(options.max_bytes, index.geometry());
        let highest = segments.iter().map(|s| u64::from(s.id)).max().unwrap_or(0);
        index.raise_next_segment_id(highest + 1);
        let log = Log::new(&directory.segments(), &index, budget, space, segments, end)?;
        let engine = Arc::new(Engine {
            dir: directory.path.clone(),
            options: options.clone(),
            max_entries: layout.max_entries,
            inserts_per_tick: (layout.max_entries / 256).max(1),
            hasher,
            index,
            hints,
            log,
            blobs,
            hot: Hot::new(options.hot_bytes),
            counters: Counters::default(),
            culling: Mutex::new(()),
            chores: Mutex::new(()),
            bell: Bell::default(),
            next_expiry: AtomicU64::new(0),
            recount: AtomicBool::new(false),
            swept: AtomicU32::new(0),
            told_of_entries: AtomicBool::new(false),
            told_of_bytes: AtomicBool::new(false),
        });
        engine.keep_bounds()?;
        let maintenance = Some(Maintenance::start(engine.clone())?);
        step!("attach::ready");
        Directory::release(&locks).map_err(at_locks)?;
        Ok(Self { engine, maintenance, state: Mutex::new(state), locks, held })
    }

    /// The live entry of `key`, to be read piece by piece if it is large.
    pub(crate) fn stream(&self, key: &[u8]) -> Result<Option<Streamed>> {
        self.engine.stream(key, &Arc::downgrade(&self.engine))
    }

    /// Makes everything durable and says so, so that the next to open finds the index as it is.
    fn detach(&self) -> Result<()> {
        let io_error = |e| Error::io("close", &self.engine.dir, e);
        self.engine.log.retire(&self.engine.index);
        self.engine.flush()?;
        step!("detach::flushed");
        Directory::reenter(&self.locks).map_err(io_error)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.engine.index.sync().map_err(io_error)?;
        let header = self.engine.index.header_copy();
        let dead = self.engine.dead_blobs();
        self.engine.blobs.release(&dead);
        self.engine.blobs.save(Index::sequence_in(&header))?;
        step!("detach::synced");
        state.mark_clean(header, self.engine.options.limits()).map_err(io_error)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        drop(self.maintenance.take());
        if let Err(error) = self.detach() {
            // Nothing is lost: the next to open replays the log.
            tracing::warn!(%error, "the cache was not closed cleanly");
        }
        self.engine.log.let_go();
        // In this order: the directory is free before another thread of this process is told so.
        if let Err(error) =
            lock::unlock(&self.locks, FIRST_PROCESS).and_then(|()| Directory::release(&self.locks))
        {
            tracing::warn!(%error, "cannot unlock the directory before its file is closed");
        }
        let mut registry = ENGINES.engines.lock().unwrap_or_else(PoisonError::into_inner);
        registry.get_or_insert_default().remove(&self.held.id());
        ENGINES.gone.notify_all();
    }
}

/// Opens all segments, oldest first. What was begun and has nothing in it goes; what is not ours stays, unread.
fn open_segments(directory: &Directory, space: &SpaceInUse) -> Result<Vec<Segment>> {
    let mut files: Vec<_> = directory.segment_files()?.collect();
    files.sort_unstable();
    let mut segments = Vec::new();
    for (id, path) in files {
        match Segment::open(&path, id, space)? {
            Opened::Segment(segment) => {
                // Only the newest may be written to again.
                segments.last().inspect(|older: &&Segment| older.seal());
                segments.push(segment);
            }
            Opened::Unborn => file::remove(&path).map_err(|e| Error::io("remove", &path, e))?,
            Opened::Foreign => {
                tracing::warn!(path = %path.display(), "not a segment, or damaged; it is passed over");
            }
        }
    }
    Ok(segments)
}

/// Removes the oldest segments until those that stay have each a place of its own in a table of `places`. Only a
/// table that is smaller than before, because `max_bytes` is, or a planted file makes any go.
fn fit_table(mut segments: Vec<Segment>, places: u32) -> Result<Vec<Segment>> {
    let mut taken = HashSet::new();
    let staying = segments.iter().rev().take_while(|s| taken.insert(s.id & (places - 1))).count();
    for segment in segments.drain(..segments.len() - staying) {
        let removed = file::remove(&segment.path);
        let dir = segment.path.parent().unwrap_or(Path::new("."));
        // Oldest first, whatever crash comes.
        removed.and_then(|()| file::sync_dir(dir)).map_err(|e| Error::io("remove", &segment.path, e))?;
    }
    Ok(segments)
}

/// The index and the hints as they were when the directory was closed, if it was, and if they still serve.
fn open_closed(
    directory: &Directory,
    state: &State,
    layout: &Layout,
    owner: u32,
    blobs: &Blobs,
) -> Result<Option<Recovered>> {
    let Some(header) = state.clean() else { return Ok(None) };
    let index_path = directory.file("index");
    let index = match file::open(&index_path) {
        Ok(file) => Index::open(&file, header, owner),
        Err(e) if is_unusable(&e) => return Ok(None),
        Err(e) => Err(e),
    };
    let Some(index) = index.map_err(|e| Error::io("open", &index_path, e))? else { return Ok(None) };
    if !index.geometry().serves(&layout.geometry) || !blobs.load(Index::sequence_in(header))? {
        return Ok(None);
    }
    let hints_path = directory.file("hints");
    let hints =
        file::open_or_create(&hints_path).and_then(|(file, _)| match Hints::open(&file, index.geometry())? {
            Some(hints) => Ok(hints),
            None => Hints::create(&file, index.geometry()),
        });
    let hints = hints.map_err(|e| Error::io("open", &hints_path, e))?;
    Ok(Some(Recovered { index, hints }))
}

/// Whether a file that can be made anew is missing or not what it should be.
pub(super) fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
    )
}
