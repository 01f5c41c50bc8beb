//! What is said about an entry between the facade, the backends and the engine.

use std::any::{Any, TypeId};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::time::Timestamp;

/// How a value's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Codec {
    /// One MessagePack value, and nothing after it.
    MessagePack = 0,
    /// The bytes themselves, as `set_bytes` was given them.
    Raw = 1,
}

/// When an entry ends: `None` is never.
pub(crate) type Expiry = Option<Timestamp>;

/// What `get_or_set` wants to know of an entry beside its expiry. A store keeps it and does nothing by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Soft {
    /// From when on the value is stale: to be computed anew, and of use until that is done.
    pub(crate) stale_at: Expiry,
    /// How many milliseconds it took to compute the value, where somebody asked for that to be kept.
    pub(crate) took: Option<u32>,
}

impl Soft {
    /// What stays of it when the entry is touched: a new lifetime, all of it fresh.
    pub(crate) fn touched(self) -> Self {
        Self { stale_at: None, ..self }
    }
}

/// An entry, borrowed from the store for the length of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    /// The value's bytes, verified.
    pub(crate) value: &'a [u8],
    /// How to read them.
    pub(crate) codec: Codec,
    /// When the entry ends.
    pub(crate) expires_at: Expiry,
    /// What else is known of its freshness.
    pub(crate) soft: Soft,
    /// Identifies this very write of the key; never used again for the key. Greater for later writes.
    pub(crate) token: u64,
}

/// An entry that outlives the call: the same as [`Item`], with the bytes shared instead of borrowed.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// The value's bytes, verified. May share memory with the store.
    pub(crate) value: Bytes,
    /// How to read them.
    pub(crate) codec: Codec,
    /// When the entry ends.
    pub(crate) expires_at: Expiry,
    /// What else is known of its freshness.
    pub(crate) soft: Soft,
    /// Identifies this very write of the key.
    pub(crate) token: u64,
}

impl Stored {
    /// The same entry, borrowed.
    pub(crate) fn item(&self) -> Item<'_> {
        let &Self { ref value, codec, expires_at, soft, token } = self;
        Item { value, codec, expires_at, soft, token }
    }
}

/// A value of any type, shared.
pub(crate) type SharedValue = Arc<dyn Any + Send + Sync>;

/// A value that was decoded from an entry's bytes, for a store to keep beside them and never to look into.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    /// The value.
    pub(crate) value: SharedValue,
    /// The bytes of memory that it takes, roughly.
    pub(crate) weight: usize,
}

impl Decoded {
    /// Whether the value is of the type `wanted`.
    pub(crate) fn is_a(&self, wanted: TypeId) -> bool {
        (*self.value).type_id() == wanted
    }
}

/// An entry that is read piece by piece.
pub(crate) enum Streamed {
    /// It is small, or in memory anyway.
    Whole(Stored),
    /// It is read from where it lies.
    Pieces {
        /// How to read the value.
        codec: Codec,
        /// The length of the value, in bytes.
        len: u64,
        /// The value.
        source: Box<dyn Pieces>,
    },
}

/// A value that can be read from anywhere in it, for as long as this lives.
pub(crate) trait Pieces: Send + Sync {
    /// Reads some bytes from `at` on and says how many: none only at the end, or if `into` is empty.
    ///
    /// # Errors
    /// If the environment refuses, or what is there is damaged.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<usize>;
}

/// A value that is being written, piece by piece, and is no entry yet. Dropping it leaves nothing.
pub(crate) trait Spool: Send + Sync {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// If the environment refuses, or the value is too large. Then it is of no use any more.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes it the raw value of `key`.
    ///
    /// # Errors
    /// As [`write`](Spool::write). Then what the key had stays.
    fn commit(self: Box<Self>, key: &str, expires_at: Expiry) -> Result<()>;
}

/// What must be so for a [`Backend::commit`] to take effect. An expired entry counts as absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Nothing.
    Always,
    /// The key has no entry.
    Absent,
    /// The key has an entry.
    Present,
    /// The key's entry is the one with this token.
    Token(u64),
}

/// What a [`Backend::commit`] does to its key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// Stores a value, replacing what is there.
    Store {
        /// The value's bytes.
        value: &'a [u8],
        /// How they are to be read.
        codec: Codec,
        /// When the entry ends. A time that has passed leaves the key without an entry.
        expires_at: Expiry,
        /// What is kept with it, for whoever reads it.
        soft: Soft,
    },
    /// Gives the entry another expiry and a new token; the value stays, as do the parts of [`Soft`] that
    /// [`Soft::touched`] names. Does nothing where there is none.
    Touch {
        /// When the entry ends from now on. A time that has passed removes the entry.
        expires_at: Expiry,
    },
    /// Removes the entry.
    Delete,
}

/// What a change comes to, given what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decided {
    /// A new record of the key, with this expiry.
    Put {
        /// When the entry ends.
        expires_at: Expiry,
    },
    /// The entry, which is there, goes.
    Remove,
    /// Nothing is to be written.
    Return(Outcome),
}

impl Change<'_> {
    /// Decides what to do for a key whose entry, if it has one that has not expired, has the token `current`.
    pub(crate) fn decide(
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

/// What became of a [`Backend::commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The change took effect.
    Done {
        /// The token of the entry now there; `None` after a delete, or when the new expiry had passed.
        token: Option<u64>,
        /// Whether the key had an entry before.
        existed: bool,
    },
    /// The condition was not met, or there was nothing to touch or delete. Nothing changed.
    Refused {
        /// The token of the entry that is there, if any.
        current: Option<u64>,
    },
}

/// What one of the processes counted that have a directory open; see
/// [`Cache::process_stats`](crate::Cache::process_stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessStats {
    /// Its id, as it sees it itself. In another container it may be that of some other process.
    pub pid: u32,
    /// When it opened the directory.
    pub since: Timestamp,
    /// What it counted since. `entries` and `bytes` are those of the directory.
    pub stats: Stats,
}

/// What a backend counted since it was opened. Counters only grow; gauges are as of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Gauge: entries, expired ones that were not reaped yet included.
    pub entries: u64,
    /// Gauge: bytes of disk or memory in use, counted against `max_bytes`.
    pub bytes: u64,
    /// Gauge: of these, bytes of the log that stay where they are because the program holds values in them.
    pub pinned_bytes: u64,
    /// Reads that found an entry.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Of the hits, those answered by the hot tier.
    pub hot_hits: u64,
    /// Gauge: bytes in the hot tier.
    pub hot_bytes: u64,
    /// Changes that took effect.
    pub commits: u64,
    /// Entries removed to keep within `max_entries` or `max_bytes`.
    pub evicted: u64,
    /// Expired entries removed without being asked for.
    pub expired: u64,
    /// Records that failed a check: each was a miss.
    pub corrupt: u64,
    /// Bytes that changes took in the log, on disk.
    pub written_bytes: u64,
    /// Bytes of records that were copied within the log, so that the space around them comes back.
    pub copied_bytes: u64,
    /// Values that `get_or_set` computed but could not store.
    pub store_failures: u64,
    /// Computations anew of a value that is still there which failed, so that the value stayed.
    pub refresh_failures: u64,
}
