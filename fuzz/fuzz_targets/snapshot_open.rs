//! Whatever a snapshot holds, a directory that was not closed opens, and no value is read that was not stored under
//! its key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::snapshot_open(bytes));
