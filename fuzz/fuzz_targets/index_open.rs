//! With any bytes in `index`, `state` and `hints`, the directory opens or is refused, and no read
//! returns a value that was not stored under its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::index_open(bytes));
