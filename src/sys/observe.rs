//! Tells a test of each step that decides what a power cut leaves: what was synced, and which names were made or
//! went. Compiled in under the feature `failpoints` only, and not part of the API.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// A step that decides what a power cut leaves. Files are named by their inodes.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A file was made; nothing is in it yet.
    Created(&'a Path),
    /// A directory was made.
    DirectoryCreated(&'a Path),
    /// A file is about to be emptied.
    Emptying(u64),
    /// A sync of a file begins: it covers what was stored before, and need not cover what is stored from now on.
    Syncing(u64),
    /// A sync that this thread began is done.
    Synced(u64),
    /// A sync of the names in a directory begins.
    SyncingNames(&'a Path),
    /// A sync of names that this thread began is done.
    SyncedNames(&'a Path),
    /// A name is about to be removed.
    Removing(&'a Path),
    /// A file is about to get another name, in place of what has it.
    Renaming(&'a Path, &'a Path),
}

/// What is told of each step, by the thread that takes it, while that thread may hold locks of the engine: it
/// must not call the cache.
pub type Observer = dyn Fn(Step<'_>) + Send + Sync;

static OBSERVER: RwLock<Option<Arc<Observer>>> = RwLock::new(None);

/// Has `observer` told of each step of every cache of this process from now on, in place of another.
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
