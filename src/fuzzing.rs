//! What the fuzz targets in `fuzz/` call, and the test that replays their corpora. Not part of the API.

/// Decodes a record from any bytes: 8 of salt, then the record.
///
/// # Panics
/// If what is decoded is not what is there.
pub fn record_decode(bytes: &[u8]) {
    crate::engine::record::fuzz(bytes);
}
