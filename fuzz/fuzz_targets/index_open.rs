//! Whatever `index`, `state` and `hints` hold, a directory opens or is refused, and no value is read that was not
//! stored under its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::index_open(bytes));
