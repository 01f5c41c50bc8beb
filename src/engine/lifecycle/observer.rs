//! ReadOnlyAttachment on: how a process reads a directory that it may not write to, as the permissions or the file system forbid.
//!
//! An onlooker opens every file to read, and maps it so. It is in no table, and nobody waits for it: what a reader else
//! leaves behind (marks of use, acknowledgements, claims, statistics) it does not. It goes by the same words as all others,
//! and a reader takes no lock, so what it reads is as good.
//!
//! ```text
//! somebody has the directory open    the index of those, mapped
//! it was closed                      the index, mapped: whoever opens the directory later goes on with it
//! it was not closed                  an index of its own, in memory, which a recovery makes that writes nothing else
//! ```
//!
//! Which of these it is does not change while the attach mutex is shared. Later it may: processes come, and die. As long as
//! they go on with the index that is mapped, nothing need be done. Whoever makes another one gives the old one up, which an
//! onlooker [watches](crate::engine::shared::index_watch::Watch) for at the beginning of each call; then it looks anew. What it sees of the old one
//! it lets go of before, or within a second if it is not called: as long as it is mapped, its space is taken.
//!
//! A segment that was dropped stays mapped here until the next read, or the next second: its bytes count nowhere then.

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

/// What a read-only attachment consists of.
pub(crate) struct Observation {
    pub(crate) engine: Arc<Engine>,
    pub(crate) maintenance: Maintenance,
    pub(crate) locks: Arc<OwnFile>,
}

/// Opens what is there in `directory`, whose limits count.
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
    // Not that of other engines of this process: what an onlooker keeps counts nowhere.
    let space = SpaceInUse::default();
    let options = Options { eviction: Eviction::Lru, ..options.clone() };
    let opening = Opening { directory, process_slot, hasher: &hasher, space: &space, options };
    let Observed { index, segments, watch } = opening.look(is_live)?;
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
    tracing::debug!(dir = %directory.path.display(), is_live, "the directory is looked at");
    Ok(Observation { engine, maintenance, locks })
}
