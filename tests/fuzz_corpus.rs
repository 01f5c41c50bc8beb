//! Replays the fuzz corpus: every stored input runs through its fuzz target as an ordinary test.

#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/model.rs"]
mod model;
#[path = "support/operations.rs"]
mod operations;
#[path = "support/rng.rs"]
#[expect(dead_code, reason = "the inputs of the corpus replace random seeds")]
mod rng;

use std::path::Path;

/// Runs `target` on every file of its corpus.
fn replay(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&std::fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 20, "only {inputs} inputs in the corpus of {name}");
}

#[test]
fn record_decode() {
    replay("record_decode", keepwarm::fuzzing::record_decode);
}

#[test]
fn meta() {
    replay("meta", keepwarm::fuzzing::meta);
}

#[test]
fn segment_scan() {
    replay("segment_scan", keepwarm::fuzzing::segment_scan);
}

#[test]
fn index_open() {
    replay("index_open", keepwarm::fuzzing::index_open);
}

#[test]
fn snapshot_open() {
    replay("snapshot_open", keepwarm::fuzzing::snapshot_open);
}

#[test]
fn operations() {
    replay("operations", operations::operations);
}
