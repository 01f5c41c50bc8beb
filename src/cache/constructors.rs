//! The ways to get a cache: open a directory, or create one in memory; and views of one.

use std::path::Path;
use std::sync::Arc;

use super::Cache;
use super::builder::Builder;
use super::view::View;
use crate::backend::Backend;
use crate::error::Result;

impl Cache {
    /// Opens the cache in the directory `dir`, with the default options. Creates the directory if
    /// it is missing; its parent must exist.
    ///
    /// ```no_run
    /// let cache = keepwarm::Cache::open("/var/cache/app")?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the directory cannot be used; the [kind](crate::Error::kind) says why, see
    /// [`Builder::open`]. At most 1,024 processes can have a directory open: one more gets `Busy`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Builder::new(dir.as_ref()).open()
    }

    /// A [`Builder`] for a cache in the directory `dir`, with the default options.
    /// [`Builder::open`] opens it.
    ///
    /// ```no_run
    /// use keepwarm::Cache;
    /// use std::time::Duration;
    ///
    /// let hour = Duration::from_secs(3600);
    /// let cache = Cache::builder("/var/cache/app").default_timeout(hour).open()?;
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn builder(dir: impl AsRef<Path>) -> Builder {
        Builder::new(dir.as_ref())
    }

    /// A cache in the memory of this process, with the default options. It is freed with its last
    /// clone. [`Builder::in_memory`] creates one with other options.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.len(), 1);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn in_memory() -> Self {
        Builder::in_memory().build_in_memory()
    }

    /// A cache that stores nothing, for development and tests. Every write succeeds, every read is
    /// a miss. `get_or_set` computes on each call, but once for all threads that wait for the same
    /// key.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let cache = Cache::dummy();
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.get::<i32>("a")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn dummy() -> Self {
        Builder::dummy().build_dummy()
    }

    /// A cache on a custom backend, with the default options. [`Builder::backend`] takes other
    /// options too. [`backend`](crate::backend) says what a backend must promise.
    ///
    /// ```
    /// use keepwarm::backend::{Backend, Change, Condition, Outcome, Stored};
    /// use keepwarm::{Cache, Result, Timeout};
    ///
    /// /// Stores nothing.
    /// struct Void;
    ///
    /// impl Backend for Void {
    ///     fn get(&self, _: &str) -> Result<Option<Stored>> {
    ///         Ok(None)
    ///     }
    ///     fn commit(&self, _: &str, _: Condition, _: Change<'_>) -> Result<Outcome> {
    ///         Ok(Outcome::Done { token: None, existed: false })
    ///     }
    ///     fn clear(&self) -> Result<()> {
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let cache = Cache::with_backend(Void);
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.get::<i32>("a")?, None);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn with_backend(backend: impl Backend) -> Self {
        Builder::dummy().build(Box::new(backend))
    }

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
