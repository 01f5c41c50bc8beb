//! An entry as the facade, the backends and the engine pass it to each other: its value, how to
//! read the value, when it ends, and the token of the write that made it.
//!
//! The parts beside it: [`change`] (conditional writes), [`stream`] (values in pieces), [`claim`]
//! (exclusive rights among processes), [`stats`] and [`report`] (what a store tells about itself).

mod change;
mod claim;
mod report;
mod stats;
mod stream;

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::time::Timestamp;

pub use change::{Change, Condition, Decided, Outcome};
pub use claim::{Claim, ClaimKey, Claimed, HeldClaim};
pub use report::CheckReport;
pub use stats::{ProcessStats, Stats};
pub use stream::{Pieces, Spool, Streamed};

/// How the bytes of a value are encoded. A backend stores it with the value and returns it
/// unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Codec {
    /// One MessagePack value, and nothing after it.
    MessagePack = 0,
    /// The bytes themselves, as `set_bytes` was given them.
    Raw = 1,
}

impl Codec {
    /// A number for the codec, stable across versions, to store beside the value.
    ///
    /// ```
    /// use keepwarm::backend::Codec;
    ///
    /// assert_eq!(Codec::from_u8(Codec::Raw.as_u8()), Some(Codec::Raw));
    /// assert_eq!(Codec::from_u8(200), None);
    /// ```
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The codec with this number; `None` if this version knows none. Treat such an entry as a
    /// miss.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::MessagePack),
            1 => Some(Self::Raw),
            _ => None,
        }
    }
}

/// When an entry ends, in milliseconds since the Unix epoch: `None` is never. At this time it has
/// expired already.
pub type Expiry = Option<Timestamp>;

/// What `get_or_set` stores about the freshness of a value, beside its expiry. A backend stores it
/// and returns it unchanged; only [`touched`](Soft::touched) changes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Soft {
    /// From when on the value is stale: still returned, but due to be computed again.
    pub stale_at: Expiry,
    /// How long the computation of the value took, in milliseconds. `None` unless an early refresh
    /// needs it.
    pub took: Option<u32>,
}

impl Soft {
    /// The two parts, as they were stored.
    ///
    /// ```
    /// use keepwarm::backend::Soft;
    ///
    /// assert_eq!(Soft::new(None, None), Soft::default());
    /// ```
    pub const fn new(stale_at: Expiry, took: Option<u32>) -> Self {
        Self { stale_at, took }
    }

    /// What remains when the entry is touched: the new lifetime is fresh to its end, so `stale_at`
    /// is dropped.
    #[must_use]
    pub const fn touched(self) -> Self {
        Self { stale_at: None, ..self }
    }
}

/// An entry, borrowed from the store for the length of a call.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Item<'a> {
    /// The bytes of the value. The store has verified them.
    pub value: &'a [u8],
    /// How to read them.
    pub codec: Codec,
    /// When the entry ends.
    pub expires_at: Expiry,
    /// Its freshness.
    pub soft: Soft,
    /// The token of the write that made this entry; see [`Outcome::Done`].
    pub token: u64,
}

impl<'a> Item<'a> {
    /// An entry without a stale time; see [`with_soft`](Item::with_soft).
    pub const fn new(value: &'a [u8], codec: Codec, expires_at: Expiry, token: u64) -> Self {
        Self { value, codec, expires_at, soft: Soft::new(None, None), token }
    }

    /// The same entry with this freshness.
    #[must_use]
    pub const fn with_soft(mut self, soft: Soft) -> Self {
        self.soft = soft;
        self
    }
}

/// An entry that outlives the call: the same as [`Item`], with the bytes shared instead of
/// borrowed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Stored {
    /// The bytes of the value. They may share memory with the store.
    pub value: Bytes,
    /// How to read them.
    pub codec: Codec,
    /// When the entry ends.
    pub expires_at: Expiry,
    /// Its freshness.
    pub soft: Soft,
    /// The token of the write that made this entry; see [`Outcome::Done`].
    pub token: u64,
}

impl Stored {
    /// An entry without a stale time; see [`with_soft`](Stored::with_soft).
    ///
    /// ```
    /// use keepwarm::backend::{Codec, Stored};
    ///
    /// let stored = Stored::new("value", Codec::Raw, None, 7);
    /// assert_eq!(stored.item().value, b"value");
    /// ```
    pub fn new(value: impl Into<Bytes>, codec: Codec, expires_at: Expiry, token: u64) -> Self {
        Self { value: value.into(), codec, expires_at, soft: Soft::default(), token }
    }

    /// The same entry with this freshness.
    #[must_use]
    pub fn with_soft(mut self, soft: Soft) -> Self {
        self.soft = soft;
        self
    }

    /// The same entry, borrowed.
    pub fn item(&self) -> Item<'_> {
        let &Self { ref value, codec, expires_at, soft, token } = self;
        Item { value, codec, expires_at, soft, token }
    }
}

/// A value of any type, shared between callers.
pub type SharedValue = Arc<dyn Any + Send + Sync>;

/// A value that was decoded from the bytes of an entry. A store may keep it beside the entry; it
/// cannot look into it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Decoded {
    /// The value.
    pub value: SharedValue,
    /// The memory that it takes, in bytes; an estimate.
    pub weight: usize,
}

impl Decoded {
    /// A decoded value that takes about `weight` bytes.
    pub fn new(value: SharedValue, weight: usize) -> Self {
        Self { value, weight }
    }

    /// Whether the value is of the type `wanted`.
    pub fn is_a(&self, wanted: TypeId) -> bool {
        (*self.value).type_id() == wanted
    }
}

impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoded").field("weight", &self.weight).finish_non_exhaustive()
    }
}
