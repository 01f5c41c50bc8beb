//! The codec: typed values to and from the bytes that a backend stores.
//!
//! A typed value is stored as one MessagePack value, with no bytes after it. Structs are maps with
//! the names of the fields, so that fields may be reordered and added. Byte arrays are bin.

mod raw;
mod widen;

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use rmp_serde::config::BytesMode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entry::{Codec, Item, Stored};
use crate::error::{Error, ErrorKind, Result};

thread_local! {
    /// One buffer for each thread, taken by the value in use. A nested call finds none and
    /// allocates.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer with more capacity than this is freed instead of kept.
const SPARE_BYTES: usize = 64 << 10;

/// An encoded value, in the reused buffer of the thread. When it is dropped, also after a panic in
/// the value's `Serialize`, the buffer is returned empty.
pub(crate) struct Encoded(Vec<u8>);

impl Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        if self.0.capacity() <= SPARE_BYTES {
            self.0.clear();
            // Fails only while the thread exits; then the buffer is freed.
            let _ = SPARE.try_with(|spare| spare.set(std::mem::take(&mut self.0)));
        }
    }
}

/// Encodes `value` as MessagePack.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Encoded> {
    let mut encoded = Encoded(SPARE.try_with(Cell::take).unwrap_or_default());
    if write(&mut encoded.0, value, BytesMode::ForceAll).is_err() {
        // A sequence whose first element is a byte and the others are not (of an untagged enum) is
        // taken for a byte array, and fails at the second element. As a plain array it can be
        // encoded.
        encoded.0.clear();
        write(&mut encoded.0, value, BytesMode::Normal)
            .map_err(|e| Error::new(ErrorKind::Encode, "encode").with_source(e))?;
    }
    Ok(encoded)
}

fn write<T: Serialize + ?Sized>(
    buffer: &mut Vec<u8>,
    value: &T,
    bytes: BytesMode,
) -> Result<(), rmp_serde::encode::Error> {
    value.serialize(&mut rmp_serde::Serializer::new(buffer).with_struct_map().with_bytes(bytes))
}

/// Decodes the value of `item` as a `T`.
pub(crate) fn decode<T: DeserializeOwned>(item: Item<'_>) -> Result<T> {
    match item.codec {
        Codec::Raw => T::deserialize(raw::RawBytes(item.value)).map_err(not_a),
        Codec::MessagePack => read(item.value).or_else(|error| {
            // Types that serde reads through a buffer (flattened and untagged ones) accept byte
            // arrays only as sequences. So a failed read is repeated with byte arrays turned into
            // sequences.
            match widen::bin_to_arrays(item.value) {
                Some(wider) => read(&wider).map_err(|_| error),
                None => Err(error),
            }
        }),
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(&bytes);
    let value = T::deserialize(&mut deserializer).map_err(not_a)?;
    // The deserializer does not say how many bytes it used. Reading one more scalar value fails at
    // its marker only if no byte is left.
    match bool::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(not_a("there are bytes after the value")),
    }
}

/// The bytes of an entry: those that `set_bytes` stored, or the payload of a byte array that `set`
/// stored.
pub(crate) fn into_bytes(stored: Stored) -> Result<Bytes> {
    match stored.codec {
        Codec::Raw => Ok(stored.value),
        Codec::MessagePack => match bin_payload(&stored.value) {
            Some(payload) => Ok(stored.value.slice_ref(payload)),
            None => Err(not_a("the entry is not a byte array")),
        },
    }
}

/// The payload, if `value` is one byte array and nothing else.
fn bin_payload(value: &[u8]) -> Option<&[u8]> {
    let mut rest = value;
    let len = match rmp::decode::read_marker(&mut rest).ok()? {
        // rmp-serde writes a `[u8; N]` as an array if that is no longer than a bin (fewer than 16
        // elements, all below 128), and an empty `Vec<u8>` too. Each element is one byte there.
        rmp::Marker::FixArray(len) if rest.iter().all(|&byte| byte < 128) => u32::from(len),
        rmp::Marker::FixArray(_) => return None,
        _ => {
            rest = value;
            rmp::decode::read_bin_len(&mut rest).ok()?
        }
    };
    (rest.len() == usize::try_from(len).ok()?).then_some(rest)
}

/// The longest header of a byte array, in bytes.
pub(crate) const LONGEST_BIN_HEAD: usize = 5;

/// The offset of the payload in a value of `len` bytes that starts with `head`.
///
/// # Errors
/// `Decode` if the value is not one byte array and nothing else.
pub(crate) fn bin_head(head: &[u8], len: u64) -> Result<u64> {
    let mut rest = head;
    let payload =
        rmp::decode::read_bin_len(&mut rest).map_err(|_| not_a("the entry is not a byte array"))?;
    let start = (head.len() - rest.len()) as u64;
    if start + u64::from(payload) == len {
        Ok(start)
    } else {
        Err(not_a("there are bytes after the value"))
    }
}

/// The integer that a counter call finds in an entry. Wider than 64 bits, since `set` can store a
/// `u64`.
pub(crate) fn decode_integer(item: Item<'_>) -> Result<i128> {
    let not_an_integer = || Error::new(ErrorKind::NotAnInteger, "decode");
    if item.codec != Codec::MessagePack {
        return Err(not_an_integer());
    }
    let mut rest = item.value;
    // Checks the marker itself, since a float or a bool must not be converted.
    let integer = match rmp::decode::read_marker(&mut &*item.value).map_err(|_| not_an_integer())? {
        rmp::Marker::U64 => {
            rmp::decode::read_u64(&mut rest).map(i128::from).map_err(|_| not_an_integer())?
        }
        _ => rmp::decode::read_int::<i64, _>(&mut rest)
            .map(i128::from)
            .map_err(|_| not_an_integer())?,
    };
    if rest.is_empty() { Ok(integer) } else { Err(not_an_integer()) }
}

/// The stored form of a counter: a MessagePack int64 of nine bytes for any value, so that the size
/// of a counter never changes.
pub(crate) fn encode_integer(value: i64) -> [u8; 9] {
    let mut bytes = [0xd3; 9];
    bytes[1..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn not_a(why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Decode, "decode").with_source(why.to_string())
}

#[cfg(test)]
mod tests;
