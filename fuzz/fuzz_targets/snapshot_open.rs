//! With any bytes in a snapshot, a directory that was not closed opens, and no read returns a value
//! that was not stored under its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::snapshot_open(bytes));
