//! Attaching to a directory and detaching from it: one engine for each directory and process, found by device and
//! inode, so that opening again is cheap whatever path leads there.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use crate::engine::blob::{Blobs, Haste};
use crate::engine::index::ProcessSlot;
use crate::engine::lifecycle::directory::Directory;
use crate::engine::lifecycle::observer::{self, Observation};
use crate::engine::lifecycle::open::{self, Opened, Opening};
use crate::engine::log::Log;
use crate::engine::ops::background::Maintenance;
use crate::engine::shared::accounting::{SpaceInUse, Usage};
use crate::engine::shared::checkpoint_files::CheckpointFiles;
use crate::engine::shared::meta_file;
use crate::engine::shared::read_only::Holder;
use crate::engine::shared::state_file::StateFile;
use crate::engine::shared::stats_file::StatsFile;
use crate::engine::{Engine, Mode, Parts};
use crate::error::{Error, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::fork::{self, EachEpoch, Epoch, OwnFile};
use crate::sys::storage::{Access, DirectoryId, HeldDirectory, Storage};
use crate::sys::{lock, step};

/// The engines of this process.
static ENGINES: EachEpoch<Registry> = EachEpoch::new();

#[derive(Default)]
struct Registry {
    engines: Mutex<Engines>,
    /// Those of directories that this process only looks at, each locked while it is attached, which may take long.
    onlookers: Mutex<HashMap<DirectoryId, Arc<Mutex<Weak<Attached>>>>>,
    /// Rung when an engine has detached.
    gone: Condvar,
    /// What counts the bytes of each directory: the same for as long as the program holds any value of it, whether
    /// the directory is open or not. A segment that is held from before and still in use counts twice.
    spaces: Mutex<Vec<(DirectoryId, Weak<Usage>)>>,
}

type Engines = HashMap<DirectoryId, Weak<Attached>>;

impl Registry {
    /// The engine of a directory, if there is one: one that is detaching is waited for until it is gone.
    fn find(&self, id: DirectoryId) -> (MutexGuard<'_, Engines>, Option<Arc<Attached>>) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match engines.get(&id).map(Weak::upgrade) {
                Some(None) => {
                    engines = self.gone.wait(engines).unwrap_or_else(PoisonError::into_inner)
                }
                found => return (engines, found.flatten()),
            }
        }
    }

    /// Where the onlooker of a directory is, if there is one.
    fn onlooker(&self, id: DirectoryId) -> Arc<Mutex<Weak<Attached>>> {
        let mut onlookers = self.onlookers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in_use = |place: &Arc<Mutex<Weak<Attached>>>| {
            // Nobody waits here: who has it locked has it.
            Arc::strong_count(place) > 1
                || place.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
        };
        onlookers.retain(|_, place| is_in_use(place));
        onlookers.entry(id).or_default().clone()
    }

    fn space(&self, id: DirectoryId) -> SpaceInUse {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|(_, count)| count.strong_count() > 0);
        if let Some(space) =
            spaces.iter().find(|(i, _)| *i == id).and_then(|(_, c)| SpaceInUse::upgrade(c))
        {
            return space;
        }
        let space = SpaceInUse::default();
        spaces.push((id, space.downgrade()));
        space
    }
}

/// A directory that this process is attached to. Dropping the last one detaches: everything is made durable and
/// the directory marked clean.
///
/// In a process that was forked from the one that attached, it is of no use ([`is_ours`](Attached::is_ours)): its
/// descriptors are closed, its locks may be held by threads that are not there, and the attachment is the parent's.
pub(crate) struct Attached {
    pub(crate) engine: Arc<Engine>,
    pub(crate) maintenance: Option<Maintenance>,
    pub(crate) locks: Arc<OwnFile>,
    /// The byte of `locks` that stands for this process; 0 of an [onlooker](crate::engine::lifecycle::observer).
    pub(crate) number: u32,
    /// Held, so that a directory made after this one was removed is not taken for it.
    pub(crate) held: HeldDirectory,
    pub(crate) epoch: Epoch,
}

/// Where a program keeps what it is attached to. Empty between a `close` and the next call.
pub(crate) type AttachmentCell = ArcSwapOption<Attached>;

impl std::ops::Deref for Attached {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Attached {
    /// The engine of the directory at `path`. If this process has it open already, that one, with the options
    /// it was opened with.
    /// Keeps invariant I9.
    pub(crate) fn open(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Arc<Self>> {
        options.validate()?;
        let directory = Directory::at(storage, path, options)?;
        let held = HeldDirectory::open(storage, path).map_err(|e| Error::io("open", path, e))?;
        let id = held.id();
        let (mut engines, found) = ENGINES.get().find(id);
        if let Some(attached) = found {
            // Detaching, which dropping it may be, takes the lock.
            drop(engines);
            return if options.salvage { Err(open::salvaged_in_use(path)) } else { Ok(attached) };
        }
        // Held while attaching: another thread that opens the directory waits and shares the engine.
        let attached = Arc::new(Self::attach(&directory, held, options)?);
        engines.insert(id, Arc::downgrade(&attached));
        Ok(attached)
    }

    /// Waits until everything that was acknowledged of the directory at `path` is on the disk, whoever has it open in
    /// this process, or is just closing it.
    pub(crate) fn flush_at(storage: &'static dyn Storage, path: &Path) -> Result<()> {
        let id = match storage.directory_id(path) {
            Ok(id) => id,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("sync", path, e)),
        };
        let (engines, found) = ENGINES.get().find(id);
        // Detaching, which dropping it may be, takes the lock.
        drop(engines);
        found.map_or(Ok(()), |attached| attached.flush())
    }

    fn attach(directory: &Directory, held: HeldDirectory, options: &Options) -> Result<Self> {
        let storage = directory.storage;
        // What is not understood is not touched.
        meta_file::read(storage, &directory.file("meta"))?;
        fork::watch().map_err(|e| Error::io("open", &directory.path, e))?;
        let locks = Arc::new(directory.enter(Access::ToWrite)?);
        let at_locks = |e| Error::io("lock", &directory.file("locks"), e);
        let meta = directory.meta()?;
        let (number, is_shared) = directory.number(&locks)?;
        let process_slot = ProcessSlot::new(locks.clone(), number);
        let state_path = directory.file("state");
        let at_state = |e| Error::io("open", &state_path, e);
        let state = storage
            .open_or_create(&state_path)
            .and_then(|(f, _)| StateFile::open(f))
            .map_err(at_state)?;
        let hasher = KeyHasher::new(&meta.hash_key);
        let options = options.for_limits(state.limits());
        let space = ENGINES.get().space(held.id());
        let entering = Entering { locks: &locks, number, space: &space };
        let opening = Opening { directory, process_slot, hasher: &hasher, space: &space, options };
        let Opened { index, hints, segments, end, recovered } =
            if is_shared { opening.join()? } else { opening.begin(state)? };
        let options = opening.options;
        let index = Arc::new(index);
        space.attach(index.clone());
        let blobs = Blobs::open(storage, &directory.blobs(), &space)?;
        if !is_shared {
            // Whoever joins others counts with what they count, and finds the blobs when it has to decide about space.
            blobs.recount(Haste::Now)?;
        }
        let log = Log::new(
            storage,
            &directory.segments(),
            Access::ToWrite,
            index.clone(),
            space.clone(),
        )?;
        log.restore(segments, end);
        let state = storage.open(&state_path).and_then(StateFile::open).map_err(at_state)?;
        let checkpoints = CheckpointFiles::open(storage, &directory.path, state, index.geometry())?;
        let stats = directory.file("stats");
        let stats_file = StatsFile::open(
            storage,
            stats,
            number,
            index.owner().bits(),
            options.clock.now(),
            !is_shared,
        )?;
        let mode = Mode::ReadWrite(Box::new(Mutex::new(checkpoints)));
        let parts = Parts { options, hasher, index, hints, log, blobs, stats_file, mode };
        let engine = Arc::new(Engine::new(parts, directory.path.clone(), &held));
        if let Some(recovered) = recovered {
            engine.dead_blobs(Haste::Later);
            engine.settle(recovered)?;
        }
        engine.publish_stats();
        let maintenance = Some(Maintenance::start(engine.clone())?);
        step!("attach::ready");
        Directory::release(&locks).map_err(at_locks)?;
        std::mem::forget(entering);
        Ok(Self { engine, maintenance, locks, number, held, epoch: Epoch::now() })
    }

    /// The same for an onlooker: what this process has open to write to, or else what it looks at already.
    pub(crate) fn look(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Arc<Self>> {
        options.validate()?;
        let directory = Directory::to_look_at(storage, path, options)?;
        let held = HeldDirectory::open(storage, path).map_err(|e| Error::io("open", path, e))?;
        let id = held.id();
        let registry = ENGINES.get();
        let (engines, open) = registry.find(id);
        drop(engines);
        if let Some(attached) = open {
            return Ok(attached);
        }
        let onlooker = registry.onlooker(id);
        let mut onlooker = onlooker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = onlooker.upgrade()
            && attached.is_of_use()
        {
            return Ok(attached);
        }
        let attached =
            Arc::new(Self::from_observation(observer::observe(&directory, &held, options)?, held));
        *onlooker = Arc::downgrade(&attached);
        Ok(attached)
    }

    fn from_observation(observation: Observation, held: HeldDirectory) -> Self {
        let Observation { engine, maintenance, locks } = observation;
        let maintenance = Some(maintenance);
        Self { engine, maintenance, locks, number: 0, held, epoch: Epoch::now() }
    }

    /// Whether it can be used. An onlooker has to look again where the index that it sees was given up.
    #[inline]
    pub(crate) fn is_of_use(&self) -> bool {
        self.is_ours() && !self.engine.is_outdated()
    }

    /// Whether this process attached, and not the one that it was forked from.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        !self.epoch.is_over()
    }

    /// Lets go of the segments that are mapped, so that the space of those that are removed comes back: all that a forked
    /// process does with what its parent attached. Takes no lock, and frees nothing else: what another thread of the
    /// parent had locked may be half changed.
    pub(crate) fn forget(attached: Arc<Self>) {
        debug_assert!(!attached.is_ours());
        attached.engine.log.unmap_after_fork();
        std::mem::forget(attached);
    }

    /// Leaves the directory. The last process makes everything durable and says so, so that the next to open finds the index
    /// as it is.
    fn detach(&self) -> Result<()> {
        let io_error = |e| Error::io("close", &self.engine.dir, e);
        let engine = &*self.engine;
        // Others may wait for this process to let go of what they removed.
        Directory::reenter(&self.locks, || engine.log.unmap_new_drops())?;
        if Directory::is_shared(&self.locks).map_err(io_error)? {
            let synced = engine.log.sync_own();
            engine.log.orphan_all();
            engine.stats_file.leave(&engine.stats());
            engine.log.unmap_all();
            engine.index.leave();
            return synced;
        }
        let turn = engine.space_role()?;
        engine.clean_up_after_dead();
        // Nobody is to find the lock of one who died in a directory that says that it was closed.
        let cleared = engine.settled_generation();
        engine.log.seal_all();
        engine.flush()?;
        cleared?;
        step!("detach::flushed");
        // The background may not have come to it yet, and the file of a large value goes after its entry.
        if !engine.index.is_swept(engine.index.generation()) {
            engine.reap_all();
        }
        if engine.emptied_bytes() > 0 || engine.is_checkpoint_due() {
            engine.checkpoint(&turn)?;
        }
        engine.log.unmap_all();
        engine.log.free_dropped();
        engine.index.leave();
        engine.index.sync().map_err(io_error)?;
        step!("detach::synced");
        let mut checkpoints = engine.checkpoints()?;
        checkpoints
            .mark_clean(engine.index.header_copy(), engine.index.asked_limits())
            .map_err(io_error)
    }
}

impl Attached {
    /// Says that this is about to be kept in `place`. An onlooker is taken out of there when it is outdated.
    pub(crate) fn note_place(&self, place: &Arc<AttachmentCell>) {
        if let Mode::ReadOnly(looking) = &self.engine.mode {
            let holder: Arc<dyn Holder> = place.clone();
            looking.add_holder(Arc::downgrade(&holder));
        }
    }
}

impl Holder for AttachmentCell {
    fn release_outdated(&self) {
        empty(self, |attached| attached.is_outdated());
    }
}

/// Empties `place`, if what is in it is such.
pub(crate) fn empty(place: &AttachmentCell, is_such: impl FnOnce(&Attached) -> bool) {
    let found = place.load();
    if found.as_deref().is_some_and(is_such) {
        drop(place.compare_and_swap(&*found, None));
    }
}

/// An attach under way. If it fails, what it has taken is free again, also where a value that the program holds keeps the
/// count of bytes, and with it the lock file.
struct Entering<'a> {
    locks: &'a OwnFile,
    number: u32,
    space: &'a SpaceInUse,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.space.detach();
        let unlocked = lock::unlock(self.locks, i64::from(self.number));
        if let Err(error) = unlocked.and_then(|()| Directory::release(self.locks)) {
            tracing::warn!(%error, "cannot unlock the directory before its file is closed");
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.is_ours() {
            self.engine.log.unmap_after_fork();
            std::mem::forget((self.engine.clone(), self.maintenance.take()));
            return;
        }
        // Most of it, before others have to wait, and while the background looks after what they remove.
        if let Err(error) = self.engine.log.sync_own() {
            tracing::debug!(%error, "cannot sync; it is tried again");
        }
        drop(self.maintenance.take());
        let registry = ENGINES.get();
        if self.engine.is_read_only() {
            self.engine.log.unmap_all();
            self.engine.log.space().detach();
            return;
        }
        if let Err(error) = self.detach() {
            // Nothing is lost: the next to open replays the log.
            tracing::warn!(%error, "the cache was not closed cleanly");
        }
        self.engine.log.unmap_all();
        self.engine.log.space().detach();
        // In this order: the directory is free before another thread of this process is told so.
        if let Err(error) = lock::unlock(&self.locks, i64::from(self.number))
            .and_then(|()| Directory::release(&self.locks))
        {
            tracing::warn!(%error, "cannot unlock the directory before its file is closed");
        }
        registry.engines.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.held.id());
        registry.gone.notify_all();
    }
}
