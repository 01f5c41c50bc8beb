//! Any bytes are safe to take for a record, and what is decoded is what is there.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::record_decode(bytes));
