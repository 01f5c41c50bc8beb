//! One call on one key: composes the stored key, and adds the name of the call and the key to
//! errors.

use serde::Serialize;

use super::{Cache, context};
use crate::backend::{Change, Codec, Expiry, Soft};
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

    /// `value` as MessagePack.
    pub(super) fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Result<Encoded> {
        codec::encode(value).map_err(|error| self.about(error))
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
