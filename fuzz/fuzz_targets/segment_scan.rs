//! Any bytes are safe to scan as a segment: the scan ends, stays within the file, and yields sound records alone.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::segment_scan(bytes));
