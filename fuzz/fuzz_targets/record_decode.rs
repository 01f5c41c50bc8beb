//! Decoding any bytes as a record is safe, and a decoded record equals the encoded bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::record_decode(bytes));
