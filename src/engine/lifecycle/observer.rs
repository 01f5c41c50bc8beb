//! An observer: a process that reads a directory and cannot or must not write to it, because of
//! permissions, a read-only file system, or its options.
//!
//! An observer opens and maps every file read-only. It has no row in the attach table, so no
//! process waits for it. It does not store what other readers store: recency, acknowledged drops,
//! claims, statistics. It reads the same index words as other processes, and readers take no lock,
//! so its reads are as correct as theirs.
//!
//! ```text
//! other processes have it open   maps their index
//! the directory was closed       maps its index; the next process that attaches continues with it
//! it was not closed              recovers an index in its own memory; writes no file
//! ```
//!
//! The case cannot change while the attach mutex is shared. Later it can: processes attach and die.
//! While they continue with the mapped index, the observer need not do anything. A process that
//! creates another index retires the old one. The observer
//! [watches](crate::engine::shared::index_watch::Watch) for that at the start of each call, then it
//! opens the directory again. It unmaps the old index before that, or within a second if it is not
//! called: the disk space of the old index stays in use while it is mapped.
//!
//! A dropped segment stays mapped here until the next read or the next second. Its bytes count
//! nowhere in that time.

use std::sync::Arc;

use crate::engine::blob::Blobs;
use crate::engine::hints::Hints;
use crate::engine::index::ProcessSlot;
use crate::engine::lifecycle::directory::Directory;
use crate::engine::lifecycle::open::{Observed, Opening};
use crate::engine::log::Log;
use crate::engine::ops::background::Maintenance;
use crate::engine::shared::accounting::SpaceInUse;
use crate::engine::shared::meta_file;
use crate::engine::shared::read_only::ReadOnlyAttachment;
use crate::engine::shared::stats_file::StatsFile;
use crate::engine::{Engine, Mode, Parts};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::KeyHasher;
use crate::options::{Eviction, Options};
use crate::sys::fork::{self, OwnFile};
use crate::sys::storage::{Access, HeldDirectory};

/// The parts of a read-only attachment.
pub(crate) struct Observation {
    pub(crate) engine: Arc<Engine>,
    pub(crate) maintenance: Maintenance,
    pub(crate) locks: Arc<OwnFile>,
}

/// Opens `directory` read-only, with the limits that it has.
pub(crate) fn observe(
    directory: &Directory,
    held: &HeldDirectory,
    options: &Options,
) -> Result<Observation> {
    let storage = directory.storage;
    let meta = directory.file("meta");
    let no_cache = || Error::new(ErrorKind::NotACache, "open").with_path(&directory.path);
    let hasher = KeyHasher::new(&meta_file::read(storage, &meta)?.ok_or_else(no_cache)?.hash_key);
    fork::watch().map_err(|e| Error::io("open", &directory.path, e))?;
    let locks = Arc::new(directory.enter(Access::ToRead)?);
    let at_locks = |e| Error::io("lock", &directory.file("locks"), e);
    let is_live = Directory::is_shared(&locks).map_err(at_locks)?;
    let process_slot = ProcessSlot::read_only(locks.clone());
    // Not shared with other engines of this process: the bytes of an observer count nowhere.
    let space = SpaceInUse::default();
    let options = Options { eviction: Eviction::Lru, ..options.clone() };
    let opening = Opening { directory, process_slot, hasher: &hasher, space: &space, options };
    let Observed { index, segments, watch } = opening.observe(is_live)?;
    let options = opening.options;
    let index = Arc::new(index);
    space.attach(index.clone());
    let log =
        Log::new(storage, &directory.segments(), Access::ToRead, index.clone(), space.clone())?;
    log.restore(segments, None);
    let blobs = Blobs::open(storage, &directory.blobs(), &space)?;
    let stats_file = StatsFile::look(storage, directory.file("stats"), options.clock.now())?;
    Directory::release(&locks).map_err(at_locks)?;
    let hints = Hints::none().map_err(|e| Error::io("open", &directory.path, e))?;
    let mode = Mode::ReadOnly(ReadOnlyAttachment::new(watch));
    let parts = Parts { options, hasher, index, hints, log, blobs, stats_file, mode };
    let engine = Arc::new(Engine::new(parts, directory.path.clone(), held));
    let maintenance = Maintenance::start(engine.clone())?;
    tracing::debug!(dir = %directory.path.display(), is_live, "attached read-only");
    Ok(Observation { engine, maintenance, locks })
}
