//! Attaching to a directory and detaching from it: one engine for each directory in a process.
//!
//! Engines are found by device and inode. So a second open is cheap and shares the engine, under
//! whatever path. The first attach takes the attach mutex, a number, and the index; the last drop
//! of the engine detaches. The last process to detach makes everything durable and marks the
//! directory as clean.

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
    /// The read-only attachments. Each has a mutex that is locked during its attach, which may take
    /// long.
    observers: Mutex<HashMap<DirectoryId, Arc<Mutex<Weak<Attached>>>>>,
    /// Notified when an engine has detached.
    gone: Condvar,
    /// The byte counts of each directory. They exist while the program holds any value of the
    /// directory, even if it is closed. A segment that a value holds since an earlier attach, and
    /// that is in use again, counts twice.
    spaces: Mutex<Vec<(DirectoryId, Weak<Usage>)>>,
}

type Engines = HashMap<DirectoryId, Weak<Attached>>;

impl Registry {
    /// The engine of a directory, if there is one. Waits while an engine is detaching.
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

    /// The cell of the read-only attachment to a directory.
    fn observer(&self, id: DirectoryId) -> Arc<Mutex<Weak<Attached>>> {
        let mut observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in_use = |cell: &Arc<Mutex<Weak<Attached>>>| {
            // Never waits: a thread that has locked the cell also holds a reference to it.
            Arc::strong_count(cell) > 1
                || cell.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
        };
        observers.retain(|_, cell| is_in_use(cell));
        observers.entry(id).or_default().clone()
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

/// A directory that this process is attached to. Dropping the last reference detaches: everything
/// is made durable and the directory is marked as clean.
///
/// It cannot be used in a child that was forked after the attach ([`is_ours`](Attached::is_ours)):
/// its descriptors are closed, threads that do not exist in the child may hold its locks, and the
/// attachment belongs to the parent.
pub(crate) struct Attached {
    pub(crate) engine: Arc<Engine>,
    pub(crate) maintenance: Option<Maintenance>,
    pub(crate) locks: Arc<OwnFile>,
    /// The byte of `locks` that stands for this process; 0 for an
    /// [observer](crate::engine::lifecycle::observer).
    pub(crate) number: u32,
    /// Kept open, so that a new directory cannot get the inode of this one after it was removed.
    pub(crate) held: HeldDirectory,
    pub(crate) epoch: Epoch,
}

/// The attachment of a cache in the program. Empty between a `close` and the next call.
pub(crate) type AttachmentCell = ArcSwapOption<Attached>;

impl std::ops::Deref for Attached {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Attached {
    /// The engine of the directory at `path`. If this process already has it open, the same engine,
    /// with the options of the first open.
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
            // Before `attached` is dropped: a drop may detach, which takes this lock.
            drop(engines);
            return if options.salvage { Err(open::salvaged_in_use(path)) } else { Ok(attached) };
        }
        // Held during the attach: another thread that opens the directory waits, then shares the
        // engine.
        let attached = Arc::new(Self::attach(&directory, held, options)?);
        engines.insert(id, Arc::downgrade(&attached));
        Ok(attached)
    }

    /// Waits until all acknowledged writes to the directory at `path` are on the disk, if any part
    /// of this process has it open or is closing it.
    pub(crate) fn flush_at(storage: &'static dyn Storage, path: &Path) -> Result<()> {
        let id = match storage.directory_id(path) {
            Ok(id) => id,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("sync", path, e)),
        };
        let (engines, found) = ENGINES.get().find(id);
        // Before `found` is dropped: a drop may detach, which takes this lock.
        drop(engines);
        found.map_or(Ok(()), |attached| attached.flush())
    }

    fn attach(directory: &Directory, held: HeldDirectory, options: &Options) -> Result<Self> {
        let storage = directory.storage;
        // First: a directory of an unknown format must not be changed.
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
            // A process that joins others uses their count. It lists the blobs when it must free
            // space.
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

    /// The engine of the directory at `path`, to read only. If this process has it open to write,
    /// that engine; otherwise a read-only attachment, shared if there is one.
    pub(crate) fn open_read_only(
        storage: &'static dyn Storage,
        path: &Path,
        options: &Options,
    ) -> Result<Arc<Self>> {
        options.validate()?;
        let directory = Directory::for_observer(storage, path, options)?;
        let held = HeldDirectory::open(storage, path).map_err(|e| Error::io("open", path, e))?;
        let id = held.id();
        let registry = ENGINES.get();
        let (engines, open) = registry.find(id);
        drop(engines);
        if let Some(attached) = open {
            return Ok(attached);
        }
        let observer = registry.observer(id);
        let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = observer.upgrade()
            && attached.is_usable()
        {
            return Ok(attached);
        }
        let attached =
            Arc::new(Self::from_observation(observer::observe(&directory, &held, options)?, held));
        *observer = Arc::downgrade(&attached);
        Ok(attached)
    }

    fn from_observation(observation: Observation, held: HeldDirectory) -> Self {
        let Observation { engine, maintenance, locks } = observation;
        let maintenance = Some(maintenance);
        Self { engine, maintenance, locks, number: 0, held, epoch: Epoch::now() }
    }

    /// Whether this can be used. An observer must open the directory again when its index was
    /// retired.
    #[inline]
    pub(crate) fn is_usable(&self) -> bool {
        self.is_ours() && !self.engine.is_outdated()
    }

    /// Whether this process attached, and not its parent before a fork.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        !self.epoch.is_over()
    }

    /// Unmaps the segments in a forked child, so that the space of dropped ones is freed. This is
    /// all that a child does with an attachment of its parent. It takes no lock and frees nothing
    /// else: another thread of the parent may have been changing what it had locked.
    pub(crate) fn forget(attached: Arc<Self>) {
        debug_assert!(!attached.is_ours());
        attached.engine.log.unmap_after_fork();
        std::mem::forget(attached);
    }

    /// Detaches. The last process makes everything durable and notes that, so that the next open
    /// can use the index.
    fn detach(&self) -> Result<()> {
        let io_error = |e| Error::io("close", &self.engine.dir, e);
        let engine = &*self.engine;
        // Other processes may wait until this one unmaps the segments that they dropped.
        Directory::reenter(&self.locks, || engine.log.unmap_new_drops())?;
        if Directory::is_shared(&self.locks).map_err(io_error)? {
            let synced = engine.log.sync_own();
            engine.log.orphan_all();
            engine.stats_file.leave(&engine.stats());
            engine.log.unmap_all();
            engine.index.leave();
            return synced;
        }
        let role = engine.space_role()?;
        engine.clean_up_after_dead();
        // A directory that is marked as clean must not contain the lock of a dead process.
        let cleared = engine.settled_generation();
        engine.log.seal_all();
        engine.flush()?;
        cleared?;
        step!("detach::flushed");
        // The background may not have swept yet, and a blob is removed only after its entry.
        if !engine.index.is_swept(engine.index.generation()) {
            engine.reap_all();
        }
        if engine.emptied_bytes() > 0 || engine.is_checkpoint_due() {
            engine.checkpoint(&role)?;
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
    /// Notes that `cell` is about to hold this. When the index of an observer is retired, the
    /// observer is taken out of its cells.
    pub(crate) fn note_holder(&self, cell: &Arc<AttachmentCell>) {
        if let Mode::ReadOnly(attachment) = &self.engine.mode {
            let holder: Arc<dyn Holder> = cell.clone();
            attachment.add_holder(Arc::downgrade(&holder));
        }
    }
}

impl Holder for AttachmentCell {
    fn release_outdated(&self) {
        empty(self, |attached| attached.is_outdated());
    }
}

/// Empties `cell`, if `condition` holds for its attachment.
pub(crate) fn empty(cell: &AttachmentCell, condition: impl FnOnce(&Attached) -> bool) {
    let found = cell.load();
    if found.as_deref().is_some_and(condition) {
        drop(cell.compare_and_swap(&*found, None));
    }
}

/// An attach in progress. If it fails, dropping this releases its locks. That is necessary if a
/// value of the program keeps the byte counts, and with them the lock file, open.
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
        // Syncs most of the log before other processes must wait for the attach mutex, and while
        // the background thread still unmaps what they drop.
        if let Err(error) = self.engine.log.sync_own() {
            tracing::debug!(%error, "cannot sync; will retry");
        }
        drop(self.maintenance.take());
        let registry = ENGINES.get();
        if self.engine.is_read_only() {
            self.engine.log.unmap_all();
            self.engine.log.space().detach();
            return;
        }
        if let Err(error) = self.detach() {
            // Nothing is lost: the next open replays the log.
            tracing::warn!(%error, "the cache was not closed cleanly");
        }
        self.engine.log.unmap_all();
        self.engine.log.space().detach();
        // In this order: the directory is unlocked before another thread of this process opens it.
        if let Err(error) = lock::unlock(&self.locks, i64::from(self.number))
            .and_then(|()| Directory::release(&self.locks))
        {
            tracing::warn!(%error, "cannot unlock the directory before its file is closed");
        }
        registry.engines.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.held.id());
        registry.gone.notify_all();
    }
}
