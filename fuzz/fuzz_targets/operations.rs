//! Whatever is done to a cache, in whatever order, reopenings and kills included, it answers as a plain map would.
#![no_main]

#[path = "../../tests/support/dir.rs"]
mod dir;
#[path = "../../tests/support/model.rs"]
mod model;
#[path = "../../tests/support/operations.rs"]
mod operations;
#[path = "../../tests/support/rng.rs"]
#[expect(dead_code, reason = "a fuzzer brings its own seeds")]
mod rng;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| operations::operations(bytes));
