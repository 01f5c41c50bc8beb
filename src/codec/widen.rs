//! Rewrites MessagePack with its byte arrays as arrays of integers.
//!
//! The header of a container counts values, not bytes. So the values are copied one after the
//! other, each with its header, without regard to the container that they are in.

use rmp::Marker;

/// `value` with each bin turned into an array; `None` if it has no bin, or is not valid
/// MessagePack.
pub(super) fn bin_to_arrays(value: &[u8]) -> Option<Vec<u8>> {
    let mut rest = value;
    let mut wider = Vec::new();
    let mut found = false;
    while let Some((&first, after)) = rest.split_first() {
        // The size of the length field in bytes, and the payload bytes that the length does not
        // count.
        let (length_bytes, payload) = match Marker::from_u8(first) {
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let length_bytes = 1 << (first - 0xc4);
                let (length, after) = number(after, length_bytes)?;
                let (bytes, after) = after.split_at_checked(length)?;
                rmp::encode::write_array_len(&mut wider, u32::try_from(length).ok()?).ok()?;
                for &byte in bytes {
                    rmp::encode::write_uint(&mut wider, u64::from(byte)).ok()?;
                }
                found = true;
                rest = after;
                continue;
            }
            Marker::Str8 => (1, 0),
            Marker::Str16 => (2, 0),
            Marker::Str32 => (4, 0),
            // The type byte of the extension follows the length.
            Marker::Ext8 => (1, 1),
            Marker::Ext16 => (2, 1),
            Marker::Ext32 => (4, 1),
            Marker::FixStr(length) => (0, usize::from(length)),
            Marker::U8 | Marker::I8 => (0, 1),
            Marker::U16 | Marker::I16 | Marker::Array16 | Marker::Map16 | Marker::FixExt1 => (0, 2),
            Marker::FixExt2 => (0, 3),
            Marker::U32 | Marker::I32 | Marker::F32 | Marker::Array32 | Marker::Map32 => (0, 4),
            Marker::FixExt4 => (0, 5),
            Marker::U64 | Marker::I64 | Marker::F64 => (0, 8),
            Marker::FixExt8 => (0, 9),
            Marker::FixExt16 => (0, 17),
            Marker::Reserved => return None,
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::FixMap(_) | Marker::FixArray(_) => {
                (0, 0)
            }
            Marker::Null | Marker::True | Marker::False => (0, 0),
        };
        let length = if length_bytes == 0 { 0 } else { number(after, length_bytes)?.0 };
        let whole = length.checked_add(1 + length_bytes + payload)?;
        let (copied, after) = rest.split_at_checked(whole)?;
        wider.extend_from_slice(copied);
        rest = after;
    }
    found.then_some(wider)
}

/// The big-endian number in the first `bytes` bytes, and the bytes after it.
fn number(from: &[u8], bytes: usize) -> Option<(usize, &[u8])> {
    let (digits, rest) = from.split_at_checked(bytes)?;
    Some((digits.iter().fold(0, |number, &digit| number << 8 | usize::from(digit)), rest))
}
