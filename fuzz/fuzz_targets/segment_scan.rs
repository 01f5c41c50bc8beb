//! Scanning any bytes as a segment is safe: the scan ends, stays within the file, and yields only
//! sound records.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwarm::fuzzing::segment_scan(bytes));
