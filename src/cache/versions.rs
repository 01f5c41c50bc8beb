//! Moving an entry from one version to another.

use super::Cache;
use crate::backend::{Change, Condition};
use crate::error::{ErrorKind, Result};

impl Cache {
    /// Moves the entry of `key` from the version of this view to the one `delta` higher, and returns that
    /// version. The expiry stays. A delta of 0 changes nothing.
    ///
    /// The new entry is there before the old one goes, so that one of the two is there at any moment, and
    /// for a moment both. An old entry that somebody changes meanwhile stays, under the old version.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("layout", "x", Timeout::Default)?;
    /// assert_eq!(cache.incr_version("layout", 1)?, 2);
    /// assert_eq!(cache.get::<String>("layout")?, None);
    /// assert_eq!(cache.with_version(2).get::<String>("layout")?.as_deref(), Some("x"));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `NotFound` if there is no entry; `Overflow` if there is no such version; `InvalidKey`; `NoSpace` or
    /// `Io` if the disk refuses. Then the old entry is as before, and the new one may be there already.
    pub fn incr_version(&self, key: &str, delta: i64) -> Result<i64> {
        self.change_version("incr_version", key, self.view.version.checked_add(delta))
    }

    /// Moves the entry of `key` to the version `delta` lower. Otherwise as
    /// [`incr_version`](Cache::incr_version).
    ///
    /// # Errors
    /// As [`incr_version`](Cache::incr_version).
    pub fn decr_version(&self, key: &str, delta: i64) -> Result<i64> {
        self.change_version("decr_version", key, self.view.version.checked_sub(delta))
    }

    fn change_version(&self, name: &'static str, key: &str, version: Option<i64>) -> Result<i64> {
        let old = self.call(name, key)?;
        old.expiry()?.ok_or_else(|| old.fail(ErrorKind::NotFound))?;
        let version = version.ok_or_else(|| old.fail(ErrorKind::Overflow))?;
        if version == self.view.version {
            return Ok(version);
        }
        let there = self.with_version(version);
        let new = there.call(name, key)?;
        let copied = self.shared.backend.copy(&old.full, &new.full).map_err(|error| new.about(error))?;
        let token = copied.ok_or_else(|| old.fail(ErrorKind::NotFound))?;
        // Refused if it has changed meanwhile; by the copy itself, if a key function leaves the version out.
        old.commit(Condition::Token(token), Change::Delete)?;
        Ok(version)
    }
}
