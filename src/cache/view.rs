//! Views: the same cache with another prefix or version.

use std::sync::Arc;

use super::Cache;
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

impl Cache {
    /// A view of the same cache, whose keys have version `version`. Entries of one version are not
    /// visible in another.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let v1 = Cache::in_memory();
    /// let v2 = v1.with_version(2);
    /// v1.set("a", &1, Timeout::Default)?;
    /// assert_eq!(v2.get::<i32>("a")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[must_use]
    pub fn with_version(&self, version: i64) -> Self {
        Self { shared: self.shared.clone(), view: View::new(self.view.prefix.clone(), version) }
    }

    /// A view of the same cache, whose keys have the prefix `prefix` in place of the prefix of this
    /// view.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::in_memory();
    /// let users = cache.with_prefix("users");
    /// users.set("7", "Ada", Timeout::Default)?;
    /// assert_eq!(cache.with_prefix("users").get::<String>("7")?.as_deref(), Some("Ada"));
    /// assert_eq!(cache.get::<String>("7")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    #[must_use]
    pub fn with_prefix(&self, prefix: impl Into<Arc<str>>) -> Self {
        Self { shared: self.shared.clone(), view: View::new(prefix.into(), self.view.version) }
    }

    /// The prefix of this view. Free.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// assert_eq!(Cache::in_memory().with_prefix("users").prefix(), "users");
    /// ```
    pub fn prefix(&self) -> &str {
        &self.view.prefix
    }

    /// The version of this view. Free.
    ///
    /// ```
    /// # use keepwarm::Cache;
    /// assert_eq!(Cache::in_memory().version(), 1);
    /// ```
    pub fn version(&self) -> i64 {
        self.view.version
    }
}
