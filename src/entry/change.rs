//! The one conditional write that all changes of an entry are made of, and the function that
//! decides what it does.

use super::{Codec, Expiry, Soft};

/// What must hold for a commit to take effect. An expired entry counts as absent.
///
/// There will be no fifth condition without a new major version, as every backend has to implement
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the commit always takes effect.
    Always,
    /// The key has no entry.
    Absent,
    /// The key has an entry.
    Present,
    /// The key has an entry, and this is its token.
    Token(u64),
}

/// What a commit does to its key.
///
/// There will be no fourth change without a new major version, as every backend has to implement
/// each.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Stores a value, in place of the entry that is there. Made by [`Change::store`].
    #[non_exhaustive]
    Store {
        /// The bytes of the value.
        value: &'a [u8],
        /// How to read them; stored with the value.
        codec: Codec,
        /// When the entry ends. A time that has passed leaves the key without an entry.
        expires_at: Expiry,
        /// The freshness; stored with the value.
        soft: Soft,
    },
    /// Gives the entry another expiry and a new token. The value and the codec stay; the freshness
    /// becomes [`Soft::touched`]. Refused if there is no entry.
    Touch {
        /// When the entry ends from now on. A time that has passed removes the entry.
        expires_at: Expiry,
    },
    /// Removes the entry. Refused if there is none.
    Delete,
}

/// What a commit has to do, given what is there. See [`Change::decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// Write the entry: the new value, or for [`Change::Touch`] the value that is there, with this
    /// expiry and a new token. Then the outcome is [`Outcome::Done`] with that token.
    Put {
        /// When the entry ends.
        expires_at: Expiry,
    },
    /// Remove the entry, which is there. Then the outcome is [`Outcome::Done`] without a token.
    Remove,
    /// Write nothing. This is the outcome.
    Return(Outcome),
}

impl<'a> Change<'a> {
    /// The change that stores `value` with no stale time; see [`with_soft`](Change::with_soft).
    ///
    /// ```
    /// use keepwarm::backend::{Change, Codec};
    ///
    /// let change = Change::store(b"value", Codec::Raw, None);
    /// assert!(matches!(change, Change::Store { value: b"value", .. }));
    /// ```
    pub const fn store(value: &'a [u8], codec: Codec, expires_at: Expiry) -> Self {
        Self::Store { value, codec, expires_at, soft: Soft::new(None, None) }
    }

    /// The same change with this freshness. Means nothing to a change that does not store.
    #[must_use]
    pub const fn with_soft(self, soft: Soft) -> Self {
        match self {
            Self::Store { value, codec, expires_at, .. } => {
                Self::Store { value, codec, expires_at, soft }
            }
            other => other,
        }
    }

    /// Decides what to do for a key whose entry, if it has one that has not expired, has the token
    /// `current`. `has_passed` says whether an expiry is over. A backend calls this under the lock
    /// that makes its commit atomic.
    ///
    /// ```
    /// use keepwarm::backend::{Change, Codec, Condition, Decided, Outcome};
    ///
    /// let change = Change::store(b"value", Codec::Raw, None);
    /// let never = |_| false;
    /// let added = change.decide(Condition::Absent, None, never);
    /// assert_eq!(added, Decided::Put { expires_at: None });
    /// let refused = change.decide(Condition::Absent, Some(7), never);
    /// assert_eq!(refused, Decided::Return(Outcome::Refused { current: Some(7) }));
    /// ```
    pub fn decide(
        &self,
        condition: Condition,
        current: Option<u64>,
        has_passed: impl Fn(Expiry) -> bool,
    ) -> Decided {
        let met = match condition {
            Condition::Always => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Token(token) => current == Some(token),
        };
        match *self {
            _ if !met => Decided::Return(Outcome::Refused { current }),
            Self::Store { expires_at, .. } if !has_passed(expires_at) => {
                Decided::Put { expires_at }
            }
            Self::Store { .. } if current.is_none() => {
                Decided::Return(Outcome::Done { token: None, existed: false })
            }
            Self::Touch { .. } | Self::Delete if current.is_none() => {
                Decided::Return(Outcome::Refused { current })
            }
            Self::Touch { expires_at } if !has_passed(expires_at) => Decided::Put { expires_at },
            Self::Store { .. } | Self::Touch { .. } | Self::Delete => Decided::Remove,
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The change took effect.
    Done {
        /// The token of the entry that is there now, never 0; `None` after a delete, or if the new
        /// expiry had passed.
        ///
        /// A token identifies one write of one key: every change of the entry gives it another one,
        /// and no token is used twice for a key, whatever happened between. Tokens have no order.
        token: Option<u64>,
        /// Whether the key had an entry before.
        existed: bool,
    },
    /// The condition did not hold, or there was no entry to touch or delete. Nothing changed.
    Refused {
        /// The token of the entry that is there, if any.
        current: Option<u64>,
    },
}
