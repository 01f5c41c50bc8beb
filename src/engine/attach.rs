//! Attaching to a directory and detaching from it: one engine for each directory and process, found by device and
//! inode, so that opening again is cheap whatever path leads there.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::balance::Balance;
use super::blob::{Blobs, Haste};
use super::checkpoint::{self, Checkpoints, Found};
use super::counters::Counters;
use super::directory::{Directory, FIRST_PROCESS};
use super::hints::Hints;
use super::hot::Hot;
use super::index::{Index, Word};
use super::layout::{self, Layout};
use super::log::Log;
use super::maintenance::{Bell, Maintenance};
use super::recovery::{Base, Recovered};
use super::segment::{self, Opened, Segment};
use super::snapshot::Header;
use super::state::State;
use super::usage::{SpaceInUse, Usage};
use super::{Engine, recovery};
use crate::entry::Streamed;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::KeyHasher;
use crate::options::{Eviction, Options};
use crate::sys::file::{self, DirectoryId, HeldDirectory};
use crate::sys::{lock, step};

/// The engines of this process.
static ENGINES: Registry =
    Registry { engines: Mutex::new(None), gone: Condvar::new(), spaces: Mutex::new(Vec::new()) };

struct Registry {
    engines: Mutex<Engines>,
    /// Rung when an engine has detached.
    gone: Condvar,
    /// What counts the bytes of each directory: the same for as long as the program holds any value of it, whether
    /// the directory is open or not. A segment that is held from before and still in use counts twice.
    spaces: Mutex<Vec<(DirectoryId, Weak<Usage>)>>,
}

type Engines = Option<HashMap<DirectoryId, Weak<Attached>>>;

impl Registry {
    /// The engine of a directory, if there is one: one that is detaching is waited for until it is gone.
    fn find(&self, id: DirectoryId) -> (MutexGuard<'_, Engines>, Option<Arc<Attached>>) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match engines.as_ref().and_then(|engines| engines.get(&id)).map(Weak::upgrade) {
                Some(None) => engines = self.gone.wait(engines).unwrap_or_else(PoisonError::into_inner),
                found => return (engines, found.flatten()),
            }
        }
    }

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
        let (mut registry, found) = ENGINES.find(id);
        if let Some(attached) = found {
            return Ok(attached);
        }
        // Held while attaching: another thread that opens the directory waits and shares the engine.
        let attached = Arc::new(Self::attach(&directory, held, options)?);
        registry.get_or_insert_default().insert(id, Arc::downgrade(&attached));
        Ok(attached)
    }

    /// Waits until everything that was acknowledged of the directory at `path` is on the disk, whoever has it open in
    /// this process, or is just closing it.
    pub(crate) fn flush_at(path: &Path) -> Result<()> {
        let id = match file::directory_id(path) {
            Ok(id) => id,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("sync", path, e)),
        };
        let (engines, found) = ENGINES.find(id);
        // Detaching, which dropping it may be, takes the lock.
        drop(engines);
        found.map_or(Ok(()), |attached| attached.flush())
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
        let mut layout = Layout::new(options);
        let space = ENGINES.space(held.id());
        let segments = open_segments(directory, &space)?;
        let blobs = Blobs::open(&directory.blobs(), &space)?;
        blobs.recount(Haste::Now)?;
        layout.geometry.segments = places_for(&segments, layout.geometry.segments);
        let owner = segment::random().map_err(at_state)? as u32;
        let closed =
            if options.salvage { Closed::No } else { open_closed(directory, &state, &layout, owner)? };
        let known_sequence = state.clean().map_or(0, Index::sequence_in);
        let least = state.snapshot();
        let Found { newest, untouched } = checkpoint::find(directory, least.unwrap_or(0))?;
        let number = newest.as_ref().map_or(0, |(_, header)| header.number).max(least.unwrap_or(0));
        let base_header = newest.as_ref().map(|(_, header)| *header);
        // Durably, before anything is changed.
        state.mark_open(options.limits()).map_err(at_state)?;
        step!("attach::marked");
        let (recovered, is_closed) = match closed {
            Closed::Fits(recovered) => (recovered, true),
            other => {
                // Whoever was killed may have left anything unsynced, the name of the newest segment too.
                segments.iter().for_each(Segment::mark_dirty);
                let names = directory.segments();
                file::sync_dir(&names).map_err(|e| Error::io("sync directory", &names, e))?;
                let base = match (other, newest, least) {
                    _ if options.salvage => Base::Salvage,
                    (Closed::OtherSize(words, header), ..) => Base::Closed(words, header),
                    (_, Some((file, header)), _) => {
                        // Whoever wrote it may have been killed before it was synced, and the other one is overwritten next.
                        file::sync(&file).map_err(|e| Error::io("sync a snapshot in", &directory.path, e))?;
                        Base::Snapshot(file, header)
                    }
                    (_, None, Some(0)) => Base::Empty,
                    (_, None, None) if untouched || segments.is_empty() => Base::Empty,
                    (_, None, _) => {
                        tracing::error!(dir = %directory.path.display(), "the snapshots are damaged; the cache starts cold");
                        Base::Lost
                    }
                };
                let inputs = recovery::Inputs { directory, layout: &layout, owner, hasher: &hasher, options };
                (recovery::recover(inputs, &segments, known_sequence, base)?, false)
            }
        };
        let Recovered { index, hints, wants_checkpoint } = recovered;
        let segments = fit_table(segments, index.geometry().segments)?;
        let end = segments.last().and_then(|newest| {
            let from =
                base_header.filter(|header| header.segment == newest.id).map_or(0, |header| header.from);
            if is_closed { index.end_of_log(newest.id) } else { Some(newest.end(from)) }
        });
        let backlog = segments.iter().filter(|s| base_header.is_none_or(|h| s.id > h.segment));
        let backlog = backlog.map(Segment::len).sum();
        let budget = layout::segment_budget(options.max_bytes, index.geometry());
        let highest = segments.iter().map(|s| u64::from(s.id)).max().unwrap_or(0);
        index.raise_next_segment_id(highest + 1);
        let log = Log::new(&directory.segments(), &index, budget, space, segments, end)?;
        let checkpoints = Checkpoints::open(directory, state, index.geometry(), number, backlog)?;
        let engine = Arc::new(Engine {
            dir: directory.path.clone(),
            options: options.clone(),
            max_entries: layout.max_entries,
            inserts_per_tick: layout.inserts_per_tick(),
            hasher,
            index,
            hints,
            log,
            blobs,
            hot: Hot::new(options.hot_bytes),
            balance: (options.eviction == Eviction::Adaptive).then(|| Balance::new(layout.max_entries)),
            counters: Counters::default(),
            culling: Mutex::new(()),
            emptying: Mutex::new(()),
            checkpoints: Mutex::new(checkpoints),
            seen_appended: AtomicU64::new(0),
            chores: Mutex::new(()),
            bell: Bell::default(),
            next_few: AtomicU32::new(0),
            next_expiry: AtomicU64::new(0),
            recount: AtomicBool::new(false),
            swept: AtomicU32::new(0),
            told_of_entries: AtomicBool::new(false),
            told_of_bytes: AtomicBool::new(false),
        });
        engine.dead_blobs(Haste::Later);
        if !is_closed && engine.culls_inline() {
            // A write beside a clear may have left a word that does not count. Where the bound is exact, so is the count.
            engine.count_again();
        }
        engine.keep_entries()?;
        if wants_checkpoint {
            engine.checkpoint()?;
        }
        drop(engine.make_space(0)?);
        let maintenance = Some(Maintenance::start(engine.clone())?);
        step!("attach::ready");
        Directory::release(&locks).map_err(at_locks)?;
        Ok(Self { engine, maintenance, locks, held })
    }

    /// The live entry of `key`, to be read piece by piece if it is large.
    pub(crate) fn stream(&self, key: &[u8]) -> Result<Option<Streamed>> {
        self.engine.stream(key, &Arc::downgrade(&self.engine))
    }

    /// Makes everything durable and says so, so that the next to open finds the index as it is.
    fn detach(&self) -> Result<()> {
        let io_error = |e| Error::io("close", &self.engine.dir, e);
        let engine = &*self.engine;
        engine.log.retire(&engine.index);
        engine.flush()?;
        step!("detach::flushed");
        if engine.emptied_bytes() > 0 || engine.is_checkpoint_due() {
            engine.checkpoint()?;
        }
        Directory::reenter(&self.locks).map_err(io_error)?;
        engine.index.sync().map_err(io_error)?;
        step!("detach::synced");
        let mut checkpoints = engine.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        checkpoints.mark_clean(engine.index.header_copy(), engine.options.limits()).map_err(io_error)
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

/// A file with a higher id was planted: after it there would be no ids left.
const HIGHEST_SEGMENT: u32 = u32::MAX - (1 << 24);

/// Opens all segments, oldest first. What was begun and has nothing in it goes; what is not ours stays, unread.
fn open_segments(directory: &Directory, space: &SpaceInUse) -> Result<Vec<Segment>> {
    let mut files: Vec<_> = directory.segment_files()?.collect();
    files.sort_unstable();
    let mut segments = Vec::new();
    for (id, path) in files {
        if id > HIGHEST_SEGMENT {
            tracing::warn!(path = %path.display(), "no segment has such an id; it is passed over");
            continue;
        }
        match Segment::open(&path, id, space)? {
            Opened::Segment(segment) => {
                // Only the newest may be written to again.
                segments.last().inspect(|older: &&Segment| older.seal(0));
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

/// Removes the oldest segments until those that stay have each a place of its own in a table of `places`.
fn fit_table(mut segments: Vec<Segment>, places: u32) -> Result<Vec<Segment>> {
    let mut taken = HashSet::new();
    let staying = segments.iter().rev().take_while(|s| taken.insert(s.id & (places - 1))).count();
    for segment in segments.drain(..segments.len() - staying) {
        file::remove(&segment.path).map_err(|e| Error::io("remove", &segment.path, e))?;
    }
    Ok(segments)
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
fn open_closed(directory: &Directory, state: &State, layout: &Layout, owner: u32) -> Result<Closed> {
    let Some(header) = state.clean() else { return Ok(Closed::No) };
    let index_path = directory.file("index");
    let index = match file::open(&index_path) {
        Ok(file) => Index::open(&file, header, owner),
        Err(e) if is_unusable(&e) => return Ok(Closed::No),
        Err(e) => Err(e),
    };
    let Some(index) = index.map_err(|e| Error::io("open", &index_path, e))? else { return Ok(Closed::No) };
    if !index.geometry().serves(&layout.geometry) {
        let mut words = Vec::new();
        for chain in 0..index.geometry().primaries {
            words.extend(index.chain_words(chain));
        }
        let header = Header {
            sequence: Index::sequence_in(header),
            generation: index.generation(),
            recency: index.recency(),
            next_segment: index.unused_segment_id(),
            // There is nothing to replay.
            segment: u32::MAX,
            ..Header::default()
        };
        return Ok(Closed::OtherSize(words, header));
    }
    let hints_path = directory.file("hints");
    let hints =
        file::open_or_create(&hints_path).and_then(|(file, _)| match Hints::open(&file, index.geometry())? {
            Some(hints) => Ok(hints),
            None => Hints::create(&file, index.geometry()),
        });
    let hints = hints.map_err(|e| Error::io("open", &hints_path, e))?;
    Ok(Closed::Fits(Recovered { index, hints, wants_checkpoint: false }))
}

/// Whether a file that can be made anew is missing or not what it should be.
pub(super) fn is_unusable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
    )
}
