//! The observer of a test: it is called at each step that decides what a power cut leaves: syncs,
//! and files that are created, renamed or removed. Compiled only with the feature `failpoints`, and
//! not part of the API.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// A step that decides what a power cut leaves. Files are identified by their inode numbers.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A file was created. It is empty.
    Created(&'a Path),
    /// A directory was created.
    DirectoryCreated(&'a Path),
    /// A file is about to be truncated to zero bytes.
    Emptying(u64),
    /// A sync of a file starts. It covers earlier stores, and may or may not cover later ones.
    Syncing(u64),
    /// A sync of a file that this thread started has completed.
    Synced(u64),
    /// A sync of the names in a directory starts.
    SyncingNames(&'a Path),
    /// A sync of names that this thread started has completed.
    SyncedNames(&'a Path),
    /// A file or directory is about to be removed.
    Removing(&'a Path),
    /// A file is about to be renamed, and replaces the file that has the new name.
    Renaming(&'a Path, &'a Path),
}

/// Is called with each step by the thread that takes it. That thread may hold locks of the engine,
/// so the observer must not call the cache.
pub type Observer = dyn Fn(Step<'_>) + Send + Sync;

static OBSERVER: RwLock<Option<Arc<Observer>>> = RwLock::new(None);

/// Sets the observer of all caches of this process, in place of the previous one; `None` removes
/// it.
pub fn observe(observer: Option<Arc<Observer>>) {
    *OBSERVER.write().unwrap_or_else(PoisonError::into_inner) = observer;
}

pub(crate) fn tell(step: Step<'_>) {
    let observer = OBSERVER.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(observer) = observer {
        observer(step);
    }
}

pub(crate) fn inode(file: &File) -> u64 {
    file.metadata().map_or(0, |found| found.ino())
}
