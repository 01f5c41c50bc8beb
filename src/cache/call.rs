//! One call on one key: composes the stored key, and adds the name of the call and the key to
//! errors.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, context};
use crate::backend::{Change, Codec, Condition, Expiry, Item, Outcome, Soft, Stored};
use crate::codec::{self, Encoded};
use crate::error::{Error, ErrorKind, Result};
use crate::key::FullKey;

/// A call named `name` on `key`, which is stored as `full`.
pub(super) struct Call<'a> {
    pub(super) cache: &'a Cache,
    pub(super) name: &'static str,
    pub(super) key: &'a str,
    pub(super) full: FullKey,
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

/// An owned call, which another thread can run.
#[cfg(feature = "async")]
pub(super) struct Detached {
    cache: Cache,
    name: &'static str,
    key: String,
    full: FullKey,
}

#[cfg(feature = "async")]
impl Detached {
    pub(super) fn make<R>(self, f: impl FnOnce(&Call<'_>) -> R) -> R {
        let Self { cache, name, key, full } = self;
        f(&Call { cache: &cache, name, key: &key, full })
    }
}

impl Call<'_> {
    #[cfg(feature = "async")]
    pub(super) fn detach(&self) -> Detached {
        let &Self { cache, name, key, ref full } = self;
        Detached { cache: cache.clone(), name, key: key.to_owned(), full: full.clone() }
    }

    /// Applies `f` to the entry; `None` if there is none.
    pub(super) fn read<R>(&self, mut f: impl FnMut(Item<'_>) -> R) -> Result<Option<R>> {
        let mut seen = None;
        let visited = self.cache.shared.backend.visit(&self.full, &mut |item| seen = Some(f(item)));
        match visited {
            Ok(true) => Ok(seen),
            Ok(false) => Ok(None),
            Err(error) => Err(self.about(error)),
        }
    }

    pub(super) fn stored(&self) -> Result<Option<Stored>> {
        self.cache.shared.backend.get(&self.full).map_err(|error| self.about(error))
    }

    /// The expiry of the entry; `None` if there is none.
    pub(super) fn expiry(&self) -> Result<Option<Expiry>> {
        self.cache.shared.backend.expiry_of(&self.full).map_err(|error| self.about(error))
    }

    /// The entry, decoded as a `T`.
    pub(super) fn decoded<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        // Decodes from the stored bytes in place, without a copy.
        self.read(codec::decode)?.transpose().map_err(|error| self.about(error))
    }

    /// `value` as MessagePack.
    pub(super) fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Encoded> {
        codec::encode(value).map_err(|error| self.about(error))
    }

    pub(super) fn commit(&self, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.cache
            .shared
            .backend
            .commit(&self.full, condition, change)
            .map_err(|error| self.about(error))
    }

    /// Commits, and returns whether the change took effect.
    pub(super) fn took_effect(&self, condition: Condition, change: Change<'_>) -> Result<bool> {
        Ok(matches!(self.commit(condition, change)?, Outcome::Done { .. }))
    }

    pub(super) fn fail(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.name).with_key(self.key)
    }

    pub(super) fn about(&self, error: Error) -> Error {
        context::about(error, self.name, Some(self.key))
    }
}

/// A change that stores MessagePack.
pub(super) fn pack(value: &[u8], expires_at: Expiry) -> Change<'_> {
    Change::Store { value, codec: Codec::MessagePack, expires_at, soft: Soft::default() }
}
