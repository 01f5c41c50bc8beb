//! How a call reaches the backend: by its blocking side or by its asynchronous side.
//!
//! The operations of a cache are `async fn`s over [`Io`], so that each is written once. Over
//! [`Io::Blocking`] nothing in them is ever pending, and [`now`] runs them for blocking callers.
//! Over [`Io::Awaited`] they are awaited, on the task of an asynchronous caller.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use serde::de::DeserializeOwned;

use super::call::Call;
#[cfg(feature = "async")]
use crate::backend::AsyncBackend;
use crate::backend::{
    Backend, Change, ClaimKey, Claimed, Condition, Expiry, Item, Outcome, Stored,
};
use crate::codec;
use crate::error::Result;

/// One side of the backend.
#[derive(Clone, Copy)]
pub(super) enum Io<'a> {
    /// Every call is over when it returns.
    Blocking(&'a dyn Backend),
    /// Every call is awaited.
    #[cfg(feature = "async")]
    Awaited(&'a dyn AsyncBackend),
}

/// Runs an operation over [`Io::Blocking`], which is ready at its first poll.
pub(super) fn now<F: Future>(operation: F) -> F::Output {
    let mut operation = pin!(operation);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match operation.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::yield_now(),
        }
    }
}

impl Io<'_> {
    async fn visit<R>(self, key: &str, mut f: impl FnMut(Item<'_>) -> R) -> Result<Option<R>> {
        match self {
            Self::Blocking(backend) => {
                let mut seen = None;
                let visited = backend.visit(key, &mut |item| seen = Some(f(item)))?;
                Ok(seen.filter(|_| visited))
            }
            #[cfg(feature = "async")]
            Self::Awaited(backend) => Ok(backend.get(key).await?.map(|stored| f(stored.item()))),
        }
    }

    async fn get(self, key: &str) -> Result<Option<Stored>> {
        match self {
            Self::Blocking(backend) => backend.get(key),
            #[cfg(feature = "async")]
            Self::Awaited(backend) => backend.get(key).await,
        }
    }

    async fn expiry_of(self, key: &str) -> Result<Option<Expiry>> {
        match self {
            Self::Blocking(backend) => backend.expiry_of(key),
            #[cfg(feature = "async")]
            Self::Awaited(backend) => backend.expiry_of(key).await,
        }
    }

    async fn copy(self, from: &str, to: &str) -> Result<Option<u64>> {
        match self {
            Self::Blocking(backend) => backend.copy(from, to),
            #[cfg(feature = "async")]
            Self::Awaited(backend) => backend.copy(from, to).await,
        }
    }

    pub(super) async fn claim(self, key: ClaimKey<'_>) -> Claimed {
        match self {
            Self::Blocking(backend) => backend.claim(key),
            #[cfg(feature = "async")]
            Self::Awaited(backend) => backend.claim(key).await,
        }
    }

    /// Whether it is known, without a read, that `key` has no entry.
    pub(super) fn is_known_to_lack(self, key: &str) -> bool {
        match self {
            Self::Blocking(backend) => backend.weight(key) == 0,
            #[cfg(feature = "async")]
            Self::Awaited(_) => false,
        }
    }
}

/// The parts of an operation, with errors that say which call failed.
impl Call<'_> {
    /// The blocking side of the backend.
    pub(super) fn blocking(&self) -> Io<'_> {
        Io::Blocking(&*self.cache.shared.backend)
    }

    /// Applies `f` to the entry; `None` if there is none.
    pub(super) async fn read<R>(
        &self,
        io: Io<'_>,
        f: impl FnMut(Item<'_>) -> R,
    ) -> Result<Option<R>> {
        io.visit(&self.full, f).await.map_err(|error| self.about(error))
    }

    pub(super) async fn stored(&self, io: Io<'_>) -> Result<Option<Stored>> {
        io.get(&self.full).await.map_err(|error| self.about(error))
    }

    /// The entry, decoded as a `T`.
    pub(super) async fn decoded<T: DeserializeOwned>(&self, io: Io<'_>) -> Result<Option<T>> {
        // The blocking side decodes the bytes where they are stored, without a copy.
        let decoded = self.read(io, codec::decode).await?;
        decoded.transpose().map_err(|error| self.about(error))
    }

    /// The expiry of the entry; `None` if there is none.
    pub(super) async fn expiry(&self, io: Io<'_>) -> Result<Option<Expiry>> {
        io.expiry_of(&self.full).await.map_err(|error| self.about(error))
    }

    /// Copies the entry to the stored key `to`, and returns the token of the original.
    pub(super) async fn copy_to(&self, io: Io<'_>, to: &str) -> Result<Option<u64>> {
        io.copy(&self.full, to).await.map_err(|error| self.about(error))
    }

    pub(super) async fn commit(
        &self,
        io: Io<'_>,
        condition: Condition,
        change: Change<'_>,
    ) -> Result<Outcome> {
        let committed = match io {
            Io::Blocking(backend) => backend.commit(&self.full, condition, change),
            #[cfg(feature = "async")]
            Io::Awaited(backend) => backend.commit(&self.full, condition, change).await,
        };
        committed.map_err(|error| self.about(error))
    }

    /// Commits over the blocking side, without a future, which would add five per cent to the
    /// instructions of a `set`.
    pub(super) fn commit_now(&self, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        let committed = self.cache.shared.backend.commit(&self.full, condition, change);
        committed.map_err(|error| self.about(error))
    }

    /// Commits, and returns whether the change took effect.
    pub(super) async fn took_effect(
        &self,
        io: Io<'_>,
        condition: Condition,
        change: Change<'_>,
    ) -> Result<bool> {
        Ok(matches!(self.commit(io, condition, change).await?, Outcome::Done { .. }))
    }
}
