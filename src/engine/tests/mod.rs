use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::engine::format::record::{Draft, Kind, Stamp};
use crate::engine::index::ProcessSlot;
use crate::engine::log::segment::Segment;
use crate::engine::shared::accounting::SpaceInUse;
use crate::entry::{Change, Codec, Condition, Outcome, Soft};
use crate::error::ErrorKind;
use crate::options::Eviction;
use crate::sys::fork::OwnFile;
use crate::sys::storage::{File, SYSTEM};
use crate::time::{Clock, ManualClock, Timestamp};

mod attach;
mod clearing;
#[path = "../../../tests/support/dir.rs"]
mod dir;
mod held;
mod observer;
mod recovery;
mod space;

use dir::copy_as_killed;

fn options() -> Options {
    Options { max_entries: 1000, max_bytes: 4 << 20, ..Options::default() }
}

fn open(dir: &Path, options: &Options) -> Arc<Attached> {
    Attached::open(SYSTEM, dir, options).unwrap()
}

fn set_until(engine: &Engine, key: &str, value: &[u8], expires_at: Expiry) -> Outcome {
    let change = Change::Store { value, codec: Codec::Raw, expires_at, soft: Soft::default() };
    engine.commit(key.as_bytes(), Condition::Always, change).unwrap()
}

fn set(engine: &Engine, key: &str, value: &[u8]) {
    set_until(engine, key, value, None);
}

fn get(engine: &Engine, key: &str) -> Option<Vec<u8>> {
    engine.read(key.as_bytes(), |source| source.item().value.to_vec()).unwrap()
}

fn delete(engine: &Engine, key: &str) -> bool {
    let outcome = engine.commit(key.as_bytes(), Condition::Always, Change::Delete).unwrap();
    matches!(outcome, Outcome::Done { existed: true, .. })
}

fn file(dir: &Path, name: &str) -> File {
    SYSTEM.open_or_create(&dir.join(name)).unwrap().0
}

/// An index as another process maps it. It asks the file `locks` which processes are alive.
fn another_process(dir: &Path, locks: &str, number: u32) -> (Index, Arc<OwnFile>) {
    let locks = Arc::new(OwnFile::new(file(dir, locks)));
    let process_slot = ProcessSlot::new(locks.clone(), number);
    (Index::join(&file(dir, "index"), process_slot).unwrap().unwrap(), locks)
}

/// A copy of the directory as a killed process leaves it: not closed, and not locked.
fn kill(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_as_killed(dir, copy.path());
    copy
}

fn assert_sound(engine: &Engine) {
    let report = engine.check();
    assert!(report.is_sound(), "{:?}", report.problems);
}

#[test]
fn a_value_is_read_and_survives_close_and_kill() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    for i in 0..500 {
        set(&engine, &format!("key {i}"), format!("value {i}").as_bytes());
    }
    set(&engine, "key 1", b"again");
    assert!(delete(&engine, "key 2") && !delete(&engine, "key 2"));
    let holds = |engine: &Engine| {
        assert_eq!(get(engine, "key 0").unwrap(), b"value 0");
        assert_eq!(get(engine, "key 1").unwrap(), b"again");
        assert_eq!(get(engine, "key 2"), None);
        assert_eq!(get(engine, "key 499").unwrap(), b"value 499");
        assert_eq!(engine.len(), 499);
        assert_sound(engine);
    };
    holds(&engine);
    let killed = kill(dir.path());
    holds(&open(killed.path(), &options()));
    holds(&open(killed.path(), &options()));
    drop(engine);
    holds(&open(dir.path(), &options()));
}

#[test]
fn cleared_entries_do_not_evict_new_ones() {
    let options = Options { max_entries: 2000, max_bytes: 16 << 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    for round in 0..20 {
        (0..2000).for_each(|i| set(&engine, &format!("{round}:{i}"), b"v"));
        assert_eq!(engine.len(), 2000, "round {round}");
        engine.clear().unwrap();
    }
}

#[test]
fn a_commit_obeys_its_condition() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let store =
        Change::Store { value: b"v", codec: Codec::Raw, expires_at: None, soft: Soft::default() };
    let commit = |condition, change| engine.commit(b"k", condition, change).unwrap();
    assert_eq!(commit(Condition::Present, store), Outcome::Refused { current: None });
    assert_eq!(
        commit(Condition::Always, Change::Touch { expires_at: None }),
        Outcome::Refused { current: None }
    );
    let Outcome::Done { token: Some(token), existed: false } = commit(Condition::Absent, store)
    else {
        panic!()
    };
    assert_eq!(commit(Condition::Absent, store), Outcome::Refused { current: Some(token) });
    let Outcome::Done { token: Some(next), existed: true } = commit(Condition::Token(token), store)
    else {
        panic!()
    };
    assert!(next > token);
    assert_eq!(commit(Condition::Token(token), store), Outcome::Refused { current: Some(next) });
    assert!(matches!(
        commit(Condition::Always, Change::Delete),
        Outcome::Done { token: None, existed: true }
    ));
}

#[test]
fn entries_expire_and_are_reaped_unread() {
    let clock = ManualClock::new();
    let options = Options { clock: Arc::new(clock.clone()), ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let soon = clock.now().checked_add(Duration::from_secs(5));
    for i in 0..50 {
        set_until(&engine, &format!("short {i}"), b"v", soon);
        set(&engine, &format!("long {i}"), b"v");
    }
    assert_eq!(get(&engine, "short 1").unwrap(), b"v");
    clock.advance(Duration::from_millis(4999));
    assert_eq!(get(&engine, "short 1").unwrap(), b"v");
    // The background thread reaps too, once a second.
    let unreaped = engine.chores.lock().unwrap();
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&engine, "short 1"), None);
    assert_eq!(engine.len(), 100);
    drop(unreaped);
    engine.maintain().unwrap();
    assert_eq!(engine.len(), 50);
    assert_eq!(engine.stats().expired, 50);
    assert_sound(&engine);
    set_until(&engine, "gone", b"v", Some(Timestamp::default()));
    assert_eq!(get(&engine, "gone"), None);
}

#[test]
fn the_least_recently_used_are_evicted_at_the_bound() {
    let options = Options { max_entries: 100, cull_frequency: 4, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    for i in 0..100 {
        set(&engine, &format!("{i}"), b"v");
    }
    assert_eq!(engine.len(), 100);
    for i in 0..50 {
        assert!(get(&engine, &format!("{i}")).is_some());
    }
    set(&engine, "99", b"overwriting culls nothing");
    assert_eq!(engine.len(), 100);
    set(&engine, "new", b"v");
    assert_eq!(engine.len(), 76);
    for i in (0..50).chain(75..100) {
        assert!(get(&engine, &format!("{i}")).is_some(), "{i}");
    }
    assert_sound(&engine);
}

// Shows invariant I3.
#[test]
fn cold_entries_are_evicted_while_the_background_lags() {
    for eviction in [Eviction::Lru, Eviction::Adaptive] {
        let options = Options { max_entries: 20_000, max_bytes: 32 << 20, eviction, ..options() };
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path(), &options);
        let behind = engine.chores.lock().unwrap();
        let read = |numbers: std::ops::Range<u32>| {
            numbers.filter(|i| get(&engine, &format!("{i}")).is_some()).count()
        };
        for i in 0..25_000 {
            if i % 1000 == 0 {
                assert_eq!(read(0..100.min(i)), 100.min(i) as usize, "{eviction:?}, {i}");
            }
            set(&engine, &format!("{i}"), b"v");
            assert!(engine.len() <= 20_000);
        }
        assert!(engine.len() > 19_900, "{}", engine.len());
        let gone = 5000 - read(100..5100);
        assert!(gone > 4000, "{eviction:?}: {gone}");
        drop(behind);
        assert_sound(&engine);
    }
}

#[test]
fn concurrent_threads_leave_a_sound_cache() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_entries: 300, max_bytes: 1 << 20, ..options() });
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let engine = &engine;
            scope.spawn(move || {
                for i in 0..20_000u32 {
                    let key = format!("{}", i.wrapping_mul(2_654_435_761) % 500);
                    if i % 3 == u32::from(thread) % 3 {
                        set(engine, &key, format!("{key}:{thread}:{i}").as_bytes());
                    } else if let Some(value) = get(engine, &key) {
                        assert!(value.starts_with(format!("{key}:").as_bytes()));
                    }
                    if i % 7919 == 0 {
                        engine.clear().unwrap();
                    }
                    assert!(engine.len() <= 300);
                }
            });
        }
    });
    engine.maintain().unwrap();
    assert_sound(&engine);
}

#[test]
fn the_bound_on_entries_is_exact_with_many_writers() {
    let dir = tempfile::tempdir().unwrap();
    for max_entries in [1, 3, 10_100] {
        let options = Options { max_entries, max_bytes: 16 << 20, ..options() };
        let engine = open(&dir.path().join(format!("{max_entries}")), &options);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let engine = &engine;
                scope.spawn(move || {
                    (0..6000).for_each(|i| set(engine, &format!("{thread}:{i}"), b"v"))
                });
            }
        });
        assert!(engine.len() <= max_entries && engine.len() > 0);
        assert_sound(&engine);
    }
}

#[test]
fn a_wrong_count_is_corrected() {
    let dir = tempfile::tempdir().unwrap();
    for max_entries in [10, 20_000] {
        let options = Options { max_entries, ..options() };
        let engine = open(&dir.path().join(format!("{max_entries}")), &options);
        (0..5).for_each(|i| set(&engine, &format!("{i}"), b"v"));
        for wrong in [100_000, -4] {
            engine.index.correct_count(0, wrong);
            engine.count_again();
            assert_eq!(engine.len(), 5);
        }
        (0..5).for_each(|i| assert!(delete(&engine, &format!("{i}"))));
        engine.index.correct_count(0, 100_000);
        set(&engine, "k", b"v");
        assert_eq!(engine.len(), 1);
    }
}

#[test]
fn a_scan_returns_each_entry_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    for i in 0..700 {
        set(&engine, &format!("{i}"), b"v");
    }
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        cursor = engine
            .scan(at, true, &mut |key, _| *seen.entry(key.to_vec()).or_default() += 1)
            .unwrap();
    }
    assert_eq!(seen.len(), 700);
    assert!(seen.values().all(|n| *n == 1));
}

#[test]
fn hot_entries_are_never_stale() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"1");
    for _ in 0..5 {
        assert_eq!(get(&engine, "k").unwrap(), b"1");
    }
    assert!(engine.stats().hot_hits > 0);
    set(&engine, "k", b"2");
    assert_eq!(get(&engine, "k").unwrap(), b"2");
    (0..5).for_each(|_| drop(get(&engine, "k")));
    engine.clear().unwrap();
    assert_eq!(get(&engine, "k"), None);
}

#[test]
fn a_smaller_bound_holds_before_the_sweep() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path(), &options());
        (0..50).for_each(|i| set(&engine, &format!("before {i}"), b"v"));
        engine.clear().unwrap();
        (0..50).for_each(|i| set(&engine, &format!("after {i}"), b"v"));
        drop(engine);
        let engine = open(dir.path(), &Options { max_entries: 10, ..options() });
        assert_eq!(engine.len(), 10);
    }
}
