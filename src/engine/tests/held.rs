//! A process that is stopped while it holds a chain lock: how long the passes of other processes
//! over many entries wait for it.
//!
//! Shows invariant I25.

use std::time::Instant;

use super::*;
use crate::engine::format::word::Word;
use crate::engine::index::Slot;
use crate::engine::ops::compaction::Evacuate;
use crate::engine::ops::cull::RETRY_AFTER;

/// Entries of one chain.
const ENTRIES: usize = 40;
/// Much longer than a pass waits for one chain, and much shorter than it would for each entry.
const MOST: Duration = Duration::from_secs(10);

/// Keys of the same chain.
fn keys_of(engine: &Engine, chain: u32, count: usize) -> Vec<String> {
    let is_in = |key: &String| engine.index.primary_of(engine.hasher.hash(key.as_bytes())) == chain;
    (0u32..).map(|n| n.to_string()).filter(is_in).take(count).collect()
}

fn entries(engine: &Engine) -> Vec<(Slot, Word)> {
    engine.index.entries(0..engine.index.geometry().buckets).collect()
}

#[track_caller]
fn waits_once<T>(pass: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = pass();
    assert!(started.elapsed() < MOST, "{:?}", started.elapsed());
    result
}

#[test]
fn a_pass_waits_once_for_a_chain_locked_by_a_stopped_process() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let engine = open(dir.path(), &Options { clock: Arc::new(clock.clone()), ..options() });
    let quiet = engine.chores.lock().unwrap();
    let keys = keys_of(&engine, 3, ENTRIES);
    keys.iter().for_each(|key| set(&engine, key, b"v"));
    let (other, _locks) = another_process(dir.path(), "locks", 77);
    let held = other.lock(engine.hasher.hash(keys[0].as_bytes())).unwrap();

    assert_eq!(waits_once(|| engine.evict_coldest(ENTRIES as u64)), 0);
    assert_eq!(engine.len(), ENTRIES as u64);
    engine.clear().unwrap();
    let generation = engine.index.generation();
    waits_once(|| engine.reap_all());
    // The rest is swept later, not at once.
    assert!(!engine.index.is_swept(generation) && !engine.has_expired_entries());
    // Another chain gets full, and room is made in it without another pass for each entry.
    let full = keys_of(&engine, 4, 150);
    waits_once(|| full.iter().for_each(|key| set(&engine, key, b"v")));
    assert!((1..150).contains(&engine.len()), "{}", engine.len());
    full.iter().for_each(|key| _ = delete(&engine, key));
    engine.log.seal_all();
    let id = entries(&engine)[0].1.segment();
    assert!(!waits_once(|| engine.empty(id, Evacuate::Copy)).unwrap());
    assert_eq!(entries(&engine).len(), ENTRIES);

    drop(held);
    clock.advance(RETRY_AFTER);
    assert!(engine.has_expired_entries());
    engine.reap_all();
    assert_eq!(entries(&engine).len(), 0);
    assert!(engine.index.is_swept(generation) && !engine.has_expired_entries());
    assert!(engine.empty(id, Evacuate::Copy).unwrap());
    drop(quiet);
    assert_sound(&engine);
}
