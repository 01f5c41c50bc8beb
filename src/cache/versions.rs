//! Moves of an entry from one version to another.

use super::Cache;
use super::call::Call;
use super::io::{Io, now};
use crate::backend::{Change, Condition};
use crate::error::{ErrorKind, Result};

impl Cache {
    /// Moves the entry of `key` from the version of this view to the version `delta` higher, and
    /// returns that version. The entry keeps its expiry and its stale window
    /// ([`Lifespan`](crate::Lifespan)). A delta of 0 changes nothing.
    ///
    /// Not atomic: the new entry is added before the old one is removed, so at least one of them
    /// exists at any moment, and for a moment both. If another call changes the old entry
    /// meanwhile, it stays under the old version.
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
    /// `NotFound` if there is no entry. `Overflow` if the version does not fit into an `i64`.
    /// `InvalidKey`. `NoSpace` or `Io` if the disk is full or fails. Then the old entry is
    /// unchanged, and the new one may already exist.
    pub fn incr_version(&self, key: &str, delta: i64) -> Result<i64> {
        let call = self.call("incr_version", key)?;
        now(call.change_version(call.blocking(), self.view.version.checked_add(delta)))
    }

    /// Moves the entry of `key` to the version `delta` lower. Otherwise as
    /// [`incr_version`](Cache::incr_version).
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// let v2 = Cache::in_memory().with_version(2);
    /// v2.set("layout", "x", Timeout::Default)?;
    /// assert_eq!(v2.decr_version("layout", 1)?, 1);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`incr_version`](Cache::incr_version).
    pub fn decr_version(&self, key: &str, delta: i64) -> Result<i64> {
        let call = self.call("decr_version", key)?;
        now(call.change_version(call.blocking(), self.view.version.checked_sub(delta)))
    }
}

impl Call<'_> {
    /// Moves the entry to `version`; `None` stands for a version out of bounds.
    pub(super) async fn change_version(&self, io: Io<'_>, version: Option<i64>) -> Result<i64> {
        self.expiry(io).await?.ok_or_else(|| self.fail(ErrorKind::NotFound))?;
        let version = version.ok_or_else(|| self.fail(ErrorKind::Overflow))?;
        if version == self.cache.view.version {
            return Ok(version);
        }
        let there = self.cache.with_version(version);
        let new = there.call(self.name, self.key)?;
        let copied = self.copy_to(io, &new.full).await?;
        let token = copied.ok_or_else(|| self.fail(ErrorKind::NotFound))?;
        // Refused if another call changed the old entry meanwhile. Also refused if a key function
        // ignores the version: then the copy itself replaced the old entry.
        self.commit(io, Condition::Token(token), Change::Delete).await?;
        Ok(version)
    }
}
