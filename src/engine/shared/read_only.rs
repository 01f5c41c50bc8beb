//! A read-only attachment: it maps the index that other processes change, and must notice when
//! they retire it.

use super::index_watch::Watch;

/// The part of a read-only attachment that an engine does not have otherwise.
pub(crate) struct ReadOnlyAttachment {
    /// Watches the index in the directory.
    watch: Watch,
}

impl ReadOnlyAttachment {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { watch }
    }

    /// Whether the index that it maps was retired.
    #[inline]
    pub(crate) fn is_outdated(&self) -> bool {
        self.watch.is_retired()
    }
}
