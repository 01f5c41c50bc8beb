//! With any damage to the index of an open directory, each operation ends, and no read returns a
//! value that was not stored under its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::live_index(bytes));
