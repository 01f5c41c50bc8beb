//! One call on one key: the stored key, and errors that say what was being done to which key.

use serde::de::DeserializeOwned;

use super::Cache;
use crate::backend::{Change, Codec, Condition, Expiry, Item, Outcome, Stored};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::key::FullKey;

/// A call called `name` for `key`, which is stored as `full`.
pub(super) struct Call<'a> {
    pub(super) cache: &'a Cache,
    pub(super) name: &'static str,
    pub(super) key: &'a str,
    pub(super) full: FullKey,
}

/// What a read that wants a `T` came upon.
pub(super) enum Found<T> {
    Value(T),
    /// An entry with this token, not readable as a `T`.
    Other(u64),
    Nothing,
}

impl Cache {
    pub(super) fn call<'a>(&'a self, name: &'static str, key: &'a str) -> Result<Call<'a>> {
        let view = &self.view;
        match self.shared.keys.compose(&view.prefix, view.version, &view.head, key) {
            Ok(full) => Ok(Call { cache: self, name, key, full }),
            Err(error) => Err(error.during(name)),
        }
    }
}

impl Call<'_> {
    /// What `f` makes of the entry, if there is one.
    pub(super) fn read<R>(&self, mut f: impl FnMut(Item<'_>) -> R) -> Result<Option<R>> {
        let mut seen = None;
        let visited = self.cache.shared.backend.visit(&self.full, &mut |item| seen = Some(f(item)));
        match visited {
            Ok(true) => Ok(seen),
            Ok(false) => Ok(None),
            Err(error) => Err(self.about(error)),
        }
    }

    /// The entry as a `T`, where one of another type is no error.
    pub(super) fn look<T: DeserializeOwned>(&self) -> Result<Found<T>> {
        let found = self.read(|item| match codec::decode(item) {
            Ok(value) => Found::Value(value),
            Err(_) => Found::Other(item.token),
        })?;
        Ok(found.unwrap_or(Found::Nothing))
    }

    pub(super) fn stored(&self) -> Result<Option<Stored>> {
        self.cache.shared.backend.get(&self.full).map_err(|error| self.about(error))
    }

    /// When the entry expires, if there is one.
    pub(super) fn expiry(&self) -> Result<Option<Expiry>> {
        self.cache.shared.backend.expiry_of(&self.full).map_err(|error| self.about(error))
    }

    pub(super) fn commit(&self, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.cache.shared.backend.commit(&self.full, condition, change).map_err(|error| self.about(error))
    }

    /// Commits, where all that matters is whether it took effect.
    pub(super) fn took_effect(&self, condition: Condition, change: Change<'_>) -> Result<bool> {
        Ok(matches!(self.commit(condition, change)?, Outcome::Done { .. }))
    }

    pub(super) fn fail(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.name).with_key(self.key)
    }

    pub(super) fn about(&self, error: Error) -> Error {
        about(error, self.name, Some(self.key))
    }
}

/// The change that stores MessagePack.
pub(super) fn pack(value: &[u8], expires_at: Expiry) -> Change<'_> {
    Change::Store { value, codec: Codec::MessagePack, expires_at }
}

/// `error`, as the caller should read it: under the name of the call and of the key that was given. An error
/// about a file keeps saying which file, and what was being done to it.
pub(super) fn about(error: Error, name: &'static str, key: Option<&str>) -> Error {
    match key {
        _ if error.path().is_some() => error,
        Some(key) => error.during(name).with_key(key),
        None => error.during(name),
    }
}
