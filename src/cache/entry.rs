//! Entries with their tokens, and compare-and-swap.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cache;
use super::call::{Call, pack};
use crate::backend::{Condition, Expiry, Outcome};
use crate::codec;
use crate::error::Result;
use crate::time::Timestamp;
use crate::timeout::Timeout;

/// Identifies one write of one key: whoever changes the entry in whatever way, be it to the same value,
/// gives it another token. Means nothing to another cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// The token of an entry that was gone as soon as it was stored. Backends begin to count at one.
const NO_ENTRY: Token = Token(0);

/// An entry: its value, its token and its expiry. See [`Cache::get_entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<T> {
    /// The value.
    pub value: T,
    /// What [`Cache::compare_and_swap`] expects, in order to replace just this.
    pub token: Token,
    /// When it expires; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// From when on `get_or_set` computes it anew, before it expires: [`Lifespan::stale_for`](crate::Lifespan).
    pub stale_at: Option<Timestamp>,
}

/// What became of a [`Cache::compare_and_swap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The value was stored, and this is the token of the entry now there. (With a timeout of zero no entry
    /// is there, and the token is never that of one.)
    Stored(Token),
    /// The entry was not the one expected, but has this token, or there is none. Nothing changed.
    Conflict(Option<Token>),
}

impl Cache {
    /// The entry of `key`, if there is one: the value, and what is needed to replace it safely.
    ///
    /// # Errors
    /// As [`get`](Cache::get).
    pub fn get_entry<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Entry<T>>> {
        self.call("get_entry", key)?.entry()
    }

    /// Stores `value` only if the entry of `key` is still the one with the token `expected`, or, given
    /// `None`, only if there is no entry. One step for all who use the cache.
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
        call.compare_and_swap(expected, &encoded, self.expiry(timeout))
    }
}

impl Call<'_> {
    pub(super) fn entry<T: DeserializeOwned>(&self) -> Result<Option<Entry<T>>> {
        let entry = self.read(|item| {
            codec::decode(item).map(|value| Entry {
                value,
                token: Token(item.token),
                expires_at: item.expires_at,
                stale_at: item.soft.stale_at,
            })
        })?;
        entry.transpose().map_err(|error| self.about(error))
    }

    pub(super) fn compare_and_swap(
        &self,
        expected: Option<Token>,
        encoded: &[u8],
        expires_at: Expiry,
    ) -> Result<Swap> {
        let condition = expected.map_or(Condition::Absent, |token| Condition::Token(token.0));
        Ok(match self.commit(condition, pack(encoded, expires_at))? {
            Outcome::Done { token, .. } => Swap::Stored(token.map_or(NO_ENTRY, Token)),
            Outcome::Refused { current } => Swap::Conflict(current.map(Token)),
        })
    }
}
