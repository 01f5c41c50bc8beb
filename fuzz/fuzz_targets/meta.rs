//! Decoding any bytes as `meta` is safe, and encoding a decoded `meta` returns the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::meta(bytes));
