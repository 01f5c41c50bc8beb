//! After any sequence of operations, reopens and kills, the cache answers as a plain map would.
#![no_main]

#[path = "../../tests/support/dir.rs"]
mod dir;
#[path = "../../tests/support/model.rs"]
mod model;
#[path = "../../tests/support/operations.rs"]
mod operations;
#[path = "../../tests/support/rng.rs"]
#[expect(dead_code, reason = "the fuzzer's inputs replace random seeds")]
mod rng;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| operations::operations(bytes));
