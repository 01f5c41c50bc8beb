//! Attaching to a directory and detaching from it: one engine for each directory in a process.
//!
//! Engines are found by device and inode. So a second open is cheap and shares the engine, under
//! whatever path. The first attach takes the attach mutex, a number, and the index; the last drop
//! of the engine detaches. The last process to detach makes everything durable and marks the
//! directory as clean.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use crate::engine::blob::{Blobs, Haste};
use crate::engine::index::ProcessSlot;
use crate::engine::lifecycle::directory::Directory;
use crate::engine::lifecycle::footprint::Footprint;
use crate::engine::lifecycle::observer::{self, Observation};
use crate::engine::lifecycle::open::{self, Opened, Opening};
use crate::engine::lifecycle::presence;
use crate::engine::lifecycle::registry::{Entered, Registry, Tenant};
use crate::engine::log::Log;
use crate::engine::ops::background::Maintenance;
use crate::engine::shared::accounting::SpaceInUse;
use crate::engine::shared::checkpoint_files::CheckpointFiles;
use crate::engine::shared::file_watch::{Change, FileWatch};
use crate::engine::shared::holders::Holder;
use crate::engine::shared::state_file::StateFile;
use crate::engine::shared::stats_file::StatsFile;
use crate::engine::{Engine, Mode, Parts};
use crate::error::{Error, Result};
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::fork::{self, EachEpoch, Epoch, OwnFile};
use crate::sys::storage::Access;
use crate::sys::storage::{HeldDirectory, Storage};
use crate::sys::{lock, step};

/// The engines of this process.
static ENGINES: EachEpoch<Registry<Attached>> = EachEpoch::new();

/// The names that are watched beside those whose files the attach has open. `meta` is watched for
/// its content.
const WATCHED: [&str; 6] = ["hints", "snapshot.a", "snapshot.b", "stats", "segments", "blobs"];

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
    /// The file of the index, with the byte of this process locked; none in an observer.
    pub(crate) index_lock: Option<OwnFile>,
    /// Marked as in use. Kept open, so that a new directory cannot get the inode of this one after
    /// it was removed.
    pub(crate) held: HeldDirectory,
    pub(crate) epoch: Epoch,
}

/// The attachment of a cache in the program. Empty between a `close` and the next call.
#[derive(Default)]
pub(crate) struct AttachmentCell {
    current: ArcSwapOption<Attached>,
    /// Why the last attachment was taken out, until a call has returned the error.
    change: ArcSwapOption<Change>,
}

impl AttachmentCell {
    #[inline]
    pub(crate) fn load(&self) -> Guard<Option<Arc<Attached>>> {
        self.current.load()
    }

    pub(crate) fn swap(&self, attached: Option<Arc<Attached>>) -> Option<Arc<Attached>> {
        self.current.swap(attached)
    }

    /// Takes the attachment out, if `condition` holds for it.
    pub(crate) fn empty(&self, condition: impl FnOnce(&Attached) -> bool) {
        let found = self.current.load();
        if found.as_deref().is_some_and(condition) {
            drop(self.current.compare_and_swap(&*found, None));
        }
    }

    /// The error of a directory whose files were removed or replaced, if no call has returned it.
    pub(crate) fn error(&self) -> Option<Error> {
        self.change.load().as_deref().map(Change::error)
    }

    /// The same; afterwards a call has returned it.
    pub(crate) fn take_error(&self) -> Option<Error> {
        self.change.swap(None).as_deref().map(Change::error)
    }
}

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
        Self::open_at(&directory, path, options).inspect_err(|_| directory.remove_if_new())
    }

    fn open_at(directory: &Directory, path: &Path, options: &Options) -> Result<Arc<Self>> {
        let held =
            HeldDirectory::open(directory.storage, path).map_err(|e| Error::io("open", path, e))?;
        let attaching = match ENGINES.get().enter(held.id(), path)? {
            Entered::Found(_) if options.salvage => return Err(open::salvaged_in_use(path)),
            Entered::Found(attached) => return Ok(attached),
            Entered::Attaching(attaching) => attaching,
        };
        let attached = Arc::new(Self::attach(directory, held, options)?);
        attaching.finish(&attached);
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
        ENGINES.get().find(id, path)?.map_or(Ok(()), |attached| attached.flush())
    }

    fn attach(directory: &Directory, held: HeldDirectory, options: &Options) -> Result<Self> {
        let storage = directory.storage;
        // First: a directory of an unknown format must not be changed.
        directory.identify()?;
        fork::watch().map_err(|e| Error::io("open", &directory.path, e))?;
        let locks_path = directory.file("locks");
        let at_locks = |e| Error::io("lock", &locks_path, e);
        let had_locks = storage.exists(&locks_path).map_err(at_locks)?;
        let (locks, is_shared) = presence::enter(directory, &held)?;
        let locks = Arc::new(locks);
        let found = Footprint::of(directory)?;
        Self::attach_alone(directory, held, options, &locks, is_shared).inspect_err(|_| {
            // What other processes use is theirs.
            if !is_shared {
                found.restore(directory);
                if !had_locks && let Err(error) = storage.remove(&locks_path) {
                    tracing::warn!(%error, "a failed open leaves a file behind");
                }
            }
            if let Err(error) = Directory::release(&locks) {
                tracing::warn!(%error, "cannot unlock the directory before its file is closed");
            }
        })
    }

    /// Attaches with the attach mutex held. If that fails, it is still held.
    fn attach_alone(
        directory: &Directory,
        held: HeldDirectory,
        options: &Options,
        locks: &Arc<OwnFile>,
        is_shared: bool,
    ) -> Result<Self> {
        let storage = directory.storage;
        let at_locks = |e| Error::io("lock", &directory.file("locks"), e);
        let meta = directory.meta(is_shared, options.salvage)?;
        let number = directory.number(locks)?;
        let process_slot = ProcessSlot::new(locks.clone(), number);
        let state_path = directory.file("state");
        let at_state = |e| Error::io("open", &state_path, e);
        let mut state = storage
            .open_or_create(&state_path)
            .and_then(|(f, _)| StateFile::open(f))
            .map_err(at_state)?;
        let place = held.place();
        state.set_directory(place.inode).map_err(at_state)?;
        let hasher = KeyHasher::new(&meta.hash_key);
        let options = options.for_limits(state.limits());
        let space = ENGINES.get().space(held.id());
        let entering = Entering { locks, number, space: &space };
        let opening = Opening {
            directory,
            held: &held,
            process_slot,
            hasher: &hasher,
            space: &space,
            options,
        };
        let Opened { index, hints, segments, ends, recovered } =
            if is_shared { opening.join()? } else { opening.begin(state)? };
        let options = opening.options;
        let index_lock = presence::hold_index(directory, &index, number)?;
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
        log.restore(segments, &ends);
        log.adapt_access();
        if recovered.is_some_and(|recovered| recovered.is_recovered) {
            log.note_left_by_dead();
        }
        let state = storage.open(&state_path).and_then(StateFile::open).map_err(at_state)?;
        let checkpoints = CheckpointFiles::open(storage, &directory.path, state, index.geometry())?;
        let stats = directory.file("stats");
        let stats_file = StatsFile::open(
            storage,
            stats,
            number,
            index.owner().bits(),
            options.clock.last_read(),
            !is_shared,
        )?;
        let watch = || -> io::Result<FileWatch> {
            let mut files = FileWatch::new(&held, &directory.path, meta, true);
            files.add(directory.file("locks"), locks.id()?);
            files.add(directory.file("index"), index_lock.id()?);
            files.add(state_path.clone(), checkpoints.state.id()?);
            for name in WATCHED {
                files.add_name(directory.file(name))?;
            }
            Ok(files)
        };
        let files = watch().map_err(|e| Error::io("open", &directory.path, e))?;
        let mode = Mode::ReadWrite(Box::new(Mutex::new(checkpoints)));
        let parts = Parts { options, hasher, index, hints, log, blobs, stats_file, files, mode };
        let engine = Arc::new(Engine::new(parts, directory.path.clone(), &held));
        if let Some(recovered) = recovered {
            engine.dead_blobs(Haste::Later);
            engine.settle(recovered)?;
            // From here on the index tells a recovery what was stored.
            engine.index.set_page_cache(place.page_cache.unwrap_or(0));
        }
        engine.publish_stats();
        let maintenance = Some(Maintenance::start(engine.clone())?);
        step!("attach::ready");
        engine.check_index()?;
        Directory::release(locks).map_err(at_locks)?;
        std::mem::forget(entering);
        let locks = locks.clone();
        let index_lock = Some(index_lock);
        Ok(Self { engine, maintenance, locks, number, index_lock, held, epoch: Epoch::now() })
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
        if let Some(attached) = registry.find(id, path)? {
            return Ok(attached);
        }
        let observer = registry.observer(id);
        let mut observer = observer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attached) = observer.upgrade()
            && attached.is_usable()
            && !attached.is_displaced()
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
        let index_lock = None;
        Self { engine, maintenance, locks, number: 0, index_lock, held, epoch: Epoch::now() }
    }

    /// Whether this can be used. The directory must be opened again when its index was retired, for
    /// an observer, or when a page of the mapped index faulted.
    #[inline]
    pub(crate) fn is_usable(&self) -> bool {
        self.is_ours() && !self.engine.has_lost_index() && !self.engine.is_outdated()
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
        // For other processes this one dies here.
        engine.check_index()?;
        // Other processes may wait until this one unmaps the segments that they dropped.
        Directory::reenter(&self.locks, || engine.log.unmap_new_drops())?;
        // Files that are not those of the directory any more must not be marked as closed.
        if engine.find_displacement().is_some() {
            return Ok(());
        }
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
        engine.check_index()?;
        let mut checkpoints = engine.checkpoints()?;
        checkpoints
            .mark_clean(engine.index.header_copy(), engine.index.asked_limits())
            .map_err(io_error)
    }
}

impl Attached {
    /// Notes that `cell` is about to hold this. When it cannot be used any more, it is taken out of
    /// its cells: the index of an observer was retired, a page of the index faulted, or files were
    /// removed or replaced.
    pub(crate) fn note_holder(&self, cell: &Arc<AttachmentCell>) {
        let holder: Arc<dyn Holder> = cell.clone();
        self.engine.holders.add(Arc::downgrade(&holder));
    }
}

impl Tenant for Attached {
    fn is_displaced(&self) -> bool {
        self.engine.is_displaced() || self.engine.has_lost_index()
    }
}

impl Holder for AttachmentCell {
    fn release_unusable(&self) {
        self.empty(|attached| {
            let change = attached.engine.displacement();
            // First: the call that finds the cell empty returns the error. An observer has stored
            // nothing that could be lost.
            if let Some(change) = change.filter(|_| !attached.engine.is_read_only()) {
                self.change.store(Some(Arc::new(change.clone())));
            }
            change.is_some() || (attached.is_ours() && !attached.is_usable())
        });
    }
}

/// An attach in progress. If it fails, dropping this releases its number. That is necessary if a
/// value of the program keeps the byte counts, and with them the lock file, open.
struct Entering<'a> {
    locks: &'a OwnFile,
    number: u32,
    space: &'a SpaceInUse,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.space.detach();
        if let Err(error) = lock::unlock(self.locks, i64::from(self.number)) {
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
        // If it was displaced, it leaves as if it had died: what it has open may not be what others
        // find in the directory.
        if !self.engine.is_displaced()
            && let Err(error) = self.detach()
        {
            // Nothing is lost: the next open replays the log.
            tracing::warn!(%error, "the cache was not closed cleanly");
        }
        self.engine.log.unmap_all();
        self.engine.log.space().detach();
        drop(self.index_lock.take());
        // In this order: the directory is unlocked before another thread of this process opens it.
        if let Err(error) = self
            .held
            .unmark()
            .and_then(|()| lock::unlock(&self.locks, i64::from(self.number)))
            .and_then(|()| Directory::release(&self.locks))
        {
            tracing::warn!(%error, "cannot unlock the directory before its file is closed");
        }
        registry.leave(self.held.id(), self);
    }
}
