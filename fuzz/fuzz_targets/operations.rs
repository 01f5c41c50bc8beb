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

use std::path::Path;

libfuzzer_sys::fuzz_target!(
    init: {
        // In memory, where that is possible: the files of a cache are what it spends its time on.
        if Path::new("/dev/shm").is_dir() {
            let _ = tempfile::env::override_temp_dir(Path::new("/dev/shm"));
        }
    },
    |bytes: &[u8]| operations::operations(bytes)
);
