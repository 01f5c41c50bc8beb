//! Values that are read or written in pieces, so that a large one is never in memory as a whole.

use std::fmt;

use super::{Codec, Expiry, Stored};
use crate::error::Result;

/// An entry whose value may be read in pieces.
#[non_exhaustive]
pub enum Streamed {
    /// The value is small, or in memory already.
    Whole(Stored),
    /// The value is read from where the store keeps it.
    Pieces {
        /// How to read the value.
        codec: Codec,
        /// The length of the value, in bytes.
        len: u64,
        /// The value.
        source: Box<dyn Pieces>,
    },
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(stored) => f.debug_tuple("Whole").field(stored).finish(),
            Self::Pieces { codec, len, .. } => f
                .debug_struct("Pieces")
                .field("codec", codec)
                .field("len", len)
                .finish_non_exhaustive(),
        }
    }
}

/// A value that can be read from any position. The store keeps the value readable until this is
/// dropped, even if the entry is replaced or removed meanwhile.
pub trait Pieces: Send + Sync {
    /// Reads bytes from the position `at` on into `into`, and returns how many: fewer than asked
    /// for are possible, 0 only at the end or if `into` is empty.
    ///
    /// # Errors
    /// `Damaged` if the bytes read are not those that were stored; `Io` or another kind if they
    /// cannot be read.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<usize>;
}

/// A value that is written in pieces and is no entry until it is committed. Dropping it discards
/// what was written.
pub trait Spool: Send + Sync {
    /// Appends bytes.
    ///
    /// # Errors
    /// `ValueTooLarge`, `NoSpace`, `Io` or another kind. After an error the spool must be dropped.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes what was written the raw value of `key`, whatever the key had.
    ///
    /// # Errors
    /// As [`write`](Spool::write). The key then keeps what it had, unless the kind is
    /// `UnknownOutcome`.
    fn commit(self: Box<Self>, key: &str, expires_at: Expiry) -> Result<()>;
}
