//! Forks on systems other than Linux, where only caches in memory work: objects of the parent are
//! recognised by the process id, and no file descriptor has to be closed.

use std::sync::{Mutex, PoisonError};

/// The process in which an object was created. The default is the current one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(u32);

impl Default for Epoch {
    fn default() -> Self {
        Self::now()
    }
}

impl Epoch {
    pub(crate) fn now() -> Self {
        Self(std::process::id())
    }

    /// Whether this process was forked since, so that the object belongs to an ancestor.
    pub(crate) fn is_over(self) -> bool {
        self.0 != std::process::id()
    }
}

/// A value that each process has one of. A child gets a new one; that of its parent is never freed,
/// because a thread that does not exist in the child may have locked it.
pub(crate) struct EachEpoch<T: 'static>(Mutex<Option<(Epoch, &'static T)>>);

impl<T: Default + Send + Sync> EachEpoch<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn get(&self) -> &'static T {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *current {
            Some((epoch, value)) if !epoch.is_over() => value,
            _ => {
                let value: &'static T = Box::leak(Box::default());
                *current = Some((Epoch::now(), value));
                value
            }
        }
    }
}
