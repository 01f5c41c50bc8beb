//! Whether the files that a process has open are still those of the directory.
//!
//! Another program may remove a file of a directory in use, replace it, or restore it from an older
//! copy: a cleaner of temporary directories, a backup, a person. The process then works on a file
//! that no other process finds. So it notes which file each name led to when it attached, and the
//! background thread compares: device and inode of a dozen names, twice a second.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::format::meta::Meta;
use crate::engine::shared::meta_file;
use crate::error::{Error, ErrorKind};
use crate::sys::storage::{FileId, HeldDirectory, Storage};

/// What happened to the directory of an attachment: the attachment cannot be used any more.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    path: PathBuf,
    what: Changed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    Removed,
    Replaced,
    /// Another process found a change, and stopped using the index.
    FoundByOther,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "it was removed",
            Self::Replaced => "it was replaced or restored from a copy",
            Self::FoundByOther => "another process found a file removed or replaced",
        })
    }
}

impl Change {
    pub(crate) fn new(path: &Path, what: Changed) -> Self {
        Self { path: path.to_owned(), what }
    }

    /// The error of the first call that finds the attachment gone.
    pub(crate) fn error(&self) -> Error {
        Error::new(ErrorKind::DirectoryChanged, "use")
            .with_path(&self.path)
            .with_source(self.what.to_string())
    }
}

/// The change of a name that led to `expected`, if there is one.
///
/// # Errors
/// If the system does not say: then nothing is known.
pub(crate) fn change_of(
    storage: &'static dyn Storage,
    path: &Path,
    expected: FileId,
) -> io::Result<Option<Change>> {
    let what = match storage.stat_path(path) {
        Ok(found) if found.id == expected => return Ok(None),
        Ok(_) => Changed::Replaced,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Changed::Removed
        }
        Err(e) => return Err(e),
    };
    Ok(Some(Change::new(path, what)))
}

/// The names in a directory, and the files that they led to at the attach.
#[derive(Debug)]
pub(crate) struct FileWatch {
    storage: &'static dyn Storage,
    names: Vec<(PathBuf, FileId)>,
    meta: Option<(Meta, FileId)>,
    meta_path: PathBuf,
    /// Whether this process may write `meta` again.
    may_write: bool,
}

impl FileWatch {
    /// Watches the directory and, in it, `meta`. The directory is at the full path `dir`.
    pub(crate) fn new(held: &HeldDirectory, dir: &Path, meta: Meta, may_write: bool) -> Self {
        let (storage, meta_path) = (held.storage(), dir.join("meta"));
        let id = storage.stat_path(&meta_path).ok().map(|found| found.id);
        let names = vec![(dir.to_owned(), held.id())];
        Self { storage, names, meta: id.map(|id| (meta, id)), meta_path, may_write }
    }

    /// Watches a name that leads to the file `id`.
    pub(crate) fn add(&mut self, path: PathBuf, id: FileId) {
        self.names.push((path, id));
    }

    /// Watches a name that leads to any file now; not if there is none.
    pub(crate) fn add_name(&mut self, path: PathBuf) -> io::Result<()> {
        match self.storage.stat_path(&path) {
            Ok(found) => self.add(path, found.id),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The first change that is found. `meta` never changes, so if it is missing it is written
    /// again, and if another file has its content, that is as good.
    ///
    /// # Errors
    /// If the system does not say: then nothing is known.
    // Keeps invariant I41.
    pub(crate) fn find_change(&mut self) -> io::Result<Option<Change>> {
        for (path, id) in &self.names {
            if let Some(change) = change_of(self.storage, path, *id)? {
                return Ok(Some(change));
            }
        }
        let Some((meta, id)) = &mut self.meta else { return Ok(None) };
        let Some(change) = change_of(self.storage, &self.meta_path, *id)? else { return Ok(None) };
        match (change.what, self.may_write) {
            (Changed::Removed, true) => {
                let path = self.meta_path.display();
                tracing::warn!(%path, "it was removed; writing it again");
                meta_file::write(self.storage, &self.meta_path, meta)?;
            }
            (Changed::Removed, false) => return Ok(None),
            _ if !meta_file::is(self.storage, &self.meta_path, meta)? => return Ok(Some(change)),
            _ => {}
        }
        *id = self.storage.stat_path(&self.meta_path)?.id;
        Ok(None)
    }

    /// When `meta` was last changed or [refreshed](Storage::touch), in seconds since 1970.
    pub(crate) fn refreshed_at(&self) -> io::Result<i64> {
        Ok(self.storage.stat_path(&self.meta_path)?.changed_at.0)
    }

    pub(crate) fn storage(&self) -> &'static dyn Storage {
        self.storage
    }
}
