//! Views: the same cache with another prefix or version.

use std::sync::Arc;

use crate::key;

/// The prefix and version of a cache handle.
#[derive(Clone)]
pub(super) struct View {
    pub(super) prefix: Arc<str>,
    pub(super) version: i64,
    /// `prefix:version:`, which the default key rule puts before each key.
    pub(super) head: Arc<str>,
}

impl View {
    pub(super) fn new(prefix: Arc<str>, version: i64) -> Self {
        let head = key::head(&prefix, version).into();
        Self { prefix, version, head }
    }
}
