//! Helpers for the tests of programs that use keepwarm, and of backends (feature `test-util`).

pub mod backend_contract;

use std::fmt;
use std::ops::Deref;
use std::path::Path;

use tempfile::TempDir;

use crate::cache::{Builder, Cache};
use crate::error::{Error, Result};

/// A [`Cache`] in a temporary directory, which is deleted when this is dropped.
///
/// ```
/// use keepwarm::testing::TempCache;
/// use keepwarm::{ManualClock, Timeout};
///
/// let clock = ManualClock::new();
/// let cache = TempCache::with(|builder| builder.max_entries(100).clock(clock.clone()))?;
/// cache.set("a", &1, Timeout::Never)?;
/// assert_eq!(cache.get::<i32>("a")?, Some(1));
/// # Ok::<(), keepwarm::Error>(())
/// ```
pub struct TempCache {
    // Declared before the directory, since fields are dropped in order.
    cache: Cache,
    dir: TempDir,
}

impl TempCache {
    /// A cache with the default options, in the system's directory for temporary files.
    ///
    /// # Errors
    /// If the directory cannot be created or used.
    pub fn new() -> Result<Self> {
        Self::with(|builder| builder)
    }

    /// A cache with the options that `options` sets.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn with(options: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(|error| {
            Error::io("create a temporary directory in", &std::env::temp_dir(), error)
        })?;
        let cache = options(Cache::builder(dir.path())).open()?;
        Ok(Self { cache, dir })
    }

    /// The directory of the cache.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Deref for TempCache {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.cache
    }
}

impl fmt::Debug for TempCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TempCache")
            .field("cache", &self.cache)
            .field("dir", &self.dir.path())
            .finish()
    }
}
