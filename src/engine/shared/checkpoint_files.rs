//! The files of the checkpoints: `state` and the two snapshot files.

use std::path::Path;
use std::time::Instant;

use crate::engine::format::geometry::Geometry;
use crate::engine::format::index_header::HeaderCopy;
use crate::engine::format::sizing;
use crate::engine::format::snapshot::{self, Header};
use crate::engine::shared::snapshot_file;
use crate::engine::shared::state_file::StateFile;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::sys::fork::OwnFile;
use crate::sys::storage::{File, Storage, is_unusable};

/// The names of the two files.
pub(crate) const NAMES: [&str; 2] = ["snapshot.a", "snapshot.b"];

/// The open files of the checkpoints. A process uses them while it holds
/// [`Role::Space`](crate::engine::index::Role).
pub(crate) struct CheckpointFiles {
    pub(crate) state: StateFile,
    pub(crate) files: [OwnFile; 2],
    /// When this process last noticed a checkpoint, and the number of its snapshot.
    pub(crate) last: Instant,
    pub(crate) seen: u64,
}

impl CheckpointFiles {
    pub(crate) fn open(
        storage: &'static dyn Storage,
        dir: &Path,
        state: StateFile,
        geometry: Geometry,
    ) -> Result<Self> {
        let mut any_new = false;
        let mut open = |name| {
            let path = dir.join(name);
            let opened = storage.open_or_create(&path).and_then(|(file, is_new)| {
                any_new |= is_new;
                if file.len()? < snapshot::LEAST_LEN {
                    file.allocate(sizing::snapshot_len(geometry))?;
                }
                Ok(file)
            });
            opened.map_err(|e| Error::io("open", &path, e))
        };
        let [a, b] = NAMES;
        let files = [open(a)?, open(b)?].map(OwnFile::new);
        if any_new {
            // Their names must be on the disk, with that of `state`, before anything is written
            // that a recovery needs them for.
            storage.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
        }
        Ok(Self { state, files, last: Instant::now(), seen: 0 })
    }

    pub(crate) fn mark_clean(&mut self, header: HeaderCopy, limits: Limits) -> std::io::Result<()> {
        self.state.refresh()?;
        self.state.mark_clean(header, limits)
    }

    /// Stores these limits in `state`. The caller holds the space role.
    pub(crate) fn set_limits(&mut self, limits: Limits) -> std::io::Result<()> {
        self.state.refresh()?;
        self.state.mark_open(limits)
    }
}

/// The snapshots that were found in a directory.
pub(crate) struct FoundSnapshot {
    /// The newest complete one.
    pub(crate) newest: Option<(File, Header)>,
    /// Whether none was ever written, as far as the files tell.
    pub(crate) untouched: bool,
}

/// Finds the newest complete snapshot whose number is `least` or higher.
pub(crate) fn find(storage: &'static dyn Storage, dir: &Path, least: u64) -> Result<FoundSnapshot> {
    let mut newest: Option<(File, Header)> = None;
    let mut untouched = true;
    for name in NAMES {
        let path = dir.join(name);
        let found = match storage.open_to_read(&path) {
            Ok(file) => snapshot_file::is_untouched(&file).and_then(|is| {
                untouched &= is;
                Ok(snapshot_file::header(&file)?.map(|header| (file, header)))
            }),
            Err(e) if is_unusable(&e) => {
                untouched = false;
                Ok(None)
            }
            Err(e) => Err(e),
        };
        let found = found.map_err(|e| Error::io("read", &path, e))?;
        let newer = |h: &Header| {
            h.number >= least && newest.as_ref().is_none_or(|(_, n)| n.number < h.number)
        };
        if let Some((file, header)) = found.filter(|(_, header)| newer(header)) {
            newest = Some((file, header));
        }
    }
    Ok(FoundSnapshot { newest, untouched })
}
