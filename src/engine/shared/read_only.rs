//! A read-only attachment: it maps the index that other processes change, and must notice when
//! they retire it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::index_watch::Watch;

/// Where a program keeps an attachment.
pub(crate) trait Holder: Send + Sync {
    /// Drops the attachment, if the index that it maps was retired.
    fn release_outdated(&self);
}

/// The part of a read-only attachment that an engine does not have otherwise.
pub(crate) struct ReadOnlyAttachment {
    /// Watches the index in the directory.
    watch: Watch,
    /// Where the program keeps it.
    holders: Mutex<Vec<Weak<dyn Holder>>>,
}

impl ReadOnlyAttachment {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { watch, holders: Mutex::default() }
    }

    /// Whether the index that it maps was retired.
    #[inline]
    pub(crate) fn is_outdated(&self) -> bool {
        self.watch.is_retired()
    }

    /// Notes that `holder` is about to keep the attachment.
    pub(crate) fn add_holder(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Has all holders drop the attachment, if it is outdated.
    pub(crate) fn release_outdated(&self) {
        let holders: Vec<Arc<_>> = {
            let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
            holders.iter().filter_map(Weak::upgrade).collect()
        };
        holders.iter().for_each(|holder| holder.release_outdated());
    }
}
