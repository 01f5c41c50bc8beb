//! Any MessagePack can be read as any type on a small stack: what is nested too deep is refused.
#![no_main]

#[path = "../../tests/support/nested.rs"]
mod nested;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nested::msgpack_decode(bytes));
