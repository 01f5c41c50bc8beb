//! What fuzzing found worth keeping is tried again by an ordinary test.

#![cfg(test)]

use std::path::Path;

/// Runs `target` on every file of its corpus and says how many there were.
fn replay(name: &str, target: fn(&[u8])) -> usize {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        target(&std::fs::read(path).unwrap());
        inputs += 1;
    }
    inputs
}

#[test]
fn record_decode() {
    let inputs = replay("record_decode", keepwarm::fuzzing::record_decode);
    assert!(inputs >= 20, "only {inputs} inputs in the corpus");
}
