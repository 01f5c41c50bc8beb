//! Any bytes are safe to read as `meta`, and what is read is what would be written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::meta(bytes));
