//! Entries with their tokens, and compare-and-swap.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::call::{Call, pack};
use super::io::{Io, now};
use crate::backend::{Condition, Expiry, Outcome};
use crate::codec;
use crate::error::Result;
use crate::time::Timestamp;
use crate::timeout::Timeout;

/// Identifies one write of one key. Every change of the entry gives it a new token, even a change
/// to the same value. A token is valid only for the cache that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// The token of an entry that expired as it was stored. Backends count from one.
const NO_ENTRY: Token = Token(0);

/// An entry: its value, its token and its expiry. See [`Cache::get_entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<T> {
    /// The value.
    pub value: T,
    /// Pass it to [`Cache::compare_and_swap`] to replace exactly this write.
    pub token: Token,
    /// When the entry expires; `None` if never.
    pub expires_at: Option<Timestamp>,
    /// When the value becomes stale, so that `get_or_set` recomputes it. `None` if it has no stale
    /// window; see [`Lifespan::stale_for`](crate::Lifespan::stale_for).
    pub stale_at: Option<Timestamp>,
}

/// The result of a [`Cache::compare_and_swap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The value was stored, and this is its token. (With a timeout of zero there is no entry, and
    /// no entry ever has this token.)
    Stored(Token),
    /// The entry is not the expected one; this is its token, or `None` if there is no entry.
    /// Nothing changed.
    Conflict(Option<Token>),
}

impl Cache {
    /// The entry of `key`, or `None`: the value, its expiry, and the token that
    /// [`compare_and_swap`](Cache::compare_and_swap) expects. Costs what [`get`](Cache::get) costs.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set("a", &1, Timeout::Never)?;
    /// let entry = cache.get_entry::<u8>("a")?.unwrap();
    /// assert_eq!((entry.value, entry.expires_at), (1, None));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`get`](Cache::get).
    pub fn get_entry<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Entry<T>>> {
        let call = self.call("get_entry", key)?;
        now(call.entry(call.blocking()))
    }

    /// Stores `value` only if the entry of `key` still has the token `expected`; if `expected` is
    /// `None`, only if there is no entry. Atomic among all threads and processes that use the
    /// cache.
    ///
    /// ```
    /// use keepwarm::{Cache, Swap, Timeout};
    ///
    /// let cache = Cache::in_memory();
    /// cache.set("tags", &["a"], Timeout::Never)?;
    /// loop {
    ///     let entry = cache.get_entry::<Vec<String>>("tags")?;
    ///     let (mut tags, token) = match entry {
    ///         Some(entry) => (entry.value, Some(entry.token)),
    ///         None => (Vec::new(), None),
    ///     };
    ///     tags.push("b".to_owned());
    ///     if let Swap::Stored(_) = cache.compare_and_swap("tags", token, &tags, Timeout::Never)? {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(cache.get::<Vec<String>>("tags")?.unwrap(), ["a", "b"]);
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`set`](Cache::set).
    ///
    /// # Panics
    /// As [`set`](Cache::set).
    pub fn compare_and_swap<T: Serialize + ?Sized>(
        &self,
        key: &str,
        expected: Option<Token>,
        value: &T,
        timeout: impl Into<Timeout>,
    ) -> Result<Swap> {
        let call = self.call("compare_and_swap", key)?;
        let encoded = call.encode(value)?;
        now(call.compare_and_swap(call.blocking(), expected, &encoded, self.expiry(timeout)))
    }
}

impl Call<'_> {
    pub(super) async fn entry<T: DeserializeOwned>(&self, io: Io<'_>) -> Result<Option<Entry<T>>> {
        let entry = self.read(io, |item| {
            codec::decode(item).map(|value| Entry {
                value,
                token: Token(item.token),
                expires_at: item.expires_at,
                stale_at: item.soft.stale_at,
            })
        });
        entry.await?.transpose().map_err(|error| self.about(error))
    }

    pub(super) async fn compare_and_swap(
        &self,
        io: Io<'_>,
        expected: Option<Token>,
        encoded: &[u8],
        expires_at: Expiry,
    ) -> Result<Swap> {
        let condition = expected.map_or(Condition::Absent, |token| Condition::Token(token.0));
        Ok(match self.commit(io, condition, pack(encoded, expires_at)).await? {
            Outcome::Done { token, .. } => Swap::Stored(token.map_or(NO_ENTRY, Token)),
            Outcome::Refused { current } => Swap::Conflict(current.map(Token)),
        })
    }
}
