//! The footprint of an open: which files it found. If it fails, what it made since is removed, so
//! that a disk without room for the cache is as before.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use crate::engine::lifecycle::directory::Directory;
use crate::engine::shared::checkpoint_files;
use crate::error::{Error, Result};

/// The lengths of the files in a directory, by name, before an open changed it.
pub(crate) struct Footprint {
    found: HashMap<OsString, u64>,
}

impl Footprint {
    /// What is in the directory now. The attach mutex is held.
    pub(crate) fn of(directory: &Directory) -> Result<Self> {
        let (storage, path) = (directory.storage, &directory.path);
        let names = storage.names(path).map_err(|e| Error::io("open", path, e))?;
        // A link without a target has no length; it is not removed.
        let len =
            |name: &OsString| storage.stat_path(&path.join(name)).map_or(0, |found| found.len);
        Ok(Self { found: names.into_iter().map(|name| (name.clone(), len(&name))).collect() })
    }

    /// Removes what the failed open of this process made. The attach mutex is held, and no process
    /// is attached.
    ///
    /// In a directory that was not new, only what every open can build again is removed: the rest
    /// may be needed already.
    pub(crate) fn restore(&self, directory: &Directory) {
        let is_new = !self.found.contains_key(OsStr::new("meta"));
        for name in ["index", "hints"] {
            self.restore_file(directory, name);
        }
        if !is_new {
            return;
        }
        for name in ["state", "stats"].iter().chain(&checkpoint_files::NAMES) {
            self.restore_file(directory, name);
        }
        for name in ["segments", "blobs"] {
            self.remove_new(directory, name, |path| directory.storage.remove_dir(path));
        }
        self.restore_file(directory, "CACHEDIR.TAG");
        // In this order: without `meta` the copy would take its place.
        self.restore_file(directory, "meta.copy");
        self.restore_file(directory, "meta");
    }

    /// Removes a file that was not there, and cuts one that was shorter.
    fn restore_file(&self, directory: &Directory, name: &str) {
        let storage = directory.storage;
        let Some(len) = self.found.get(OsStr::new(name)) else {
            return self.remove_new(directory, name, |path| storage.remove(path));
        };
        let path = directory.file(name);
        let cut = storage
            .open(&path)
            .and_then(|file| if file.len()? > *len { file.set_len(*len) } else { Ok(()) });
        warn_unless_gone(&path, cut);
    }

    fn remove_new(
        &self,
        directory: &Directory,
        name: &str,
        remove: impl FnOnce(&Path) -> io::Result<()>,
    ) {
        let path = directory.file(name);
        if !self.found.contains_key(OsStr::new(name)) {
            warn_unless_gone(&path, remove(&path));
        }
    }
}

fn warn_unless_gone(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a failed open leaves a file behind");
    }
}
