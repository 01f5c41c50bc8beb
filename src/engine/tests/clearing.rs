//! Clears that are stalled, or whose process dies or is taken for dead, as other processes see
//! them.
//!
//! Shows invariant I16.

use super::*;
use crate::engine::ops::clear::CLEAR;
use crate::sys::lock;

#[test]
fn max_entries_holds_beside_a_clear_stalled_between_its_stores() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_entries: 100, ..options() });
    let quiet = engine.chores.lock().unwrap();
    let there = |key: &str| {
        (0..300).filter(|i| get(&engine, &format!("{key} {i}")).is_some()).count() as u64
    };
    (0..80).for_each(|i| set(&engine, &format!("old {i}"), b"v"));
    let lock = engine.index.lock_clear().unwrap();
    engine.index.count_from_zero(1);
    (0..300).for_each(|i| set(&engine, &format!("new {i}"), b"v"));
    let new = there("new");
    assert!((50..=100).contains(&new), "{new} entries");
    assert_eq!((there("old"), engine.len()), (0, new));
    // The clear continues.
    engine.index.begin_generation(1);
    lock.unlock().unwrap();
    assert_eq!(there("new"), engine.len());
    engine.index.count_from_zero(2);
    assert_eq!((engine.len(), there("new")), (0, 0));
    drop(quiet);
    assert_sound(&engine);
}

#[test]
fn a_clear_whose_lock_was_stolen_fails_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let quiet = engine.chores.lock().unwrap();
    set(&engine, "before", b"v");
    let reservation = engine.reserve(&CLEAR).unwrap();
    let lock = engine.index.lock_clear().unwrap();
    // The lock file was replaced, so this process seems to be dead.
    let (thief, _locks) = another_process(dir.path(), "replaced", 77);
    let taken = thief.lock_clear().unwrap();
    assert!(taken.unfinished);
    thief.begin_generation(1);
    taken.unlock().unwrap();
    set(&engine, "after", b"v");
    let error = engine.clear_under(lock, reservation).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockLost, "{error}");
    assert_eq!((engine.index.generation(), engine.len()), (1, 1));
    assert_eq!((get(&engine, "before"), get(&engine, "after")), (None, Some(b"v".to_vec())));
    engine.clear().unwrap();
    assert_eq!(engine.len(), 0);
    thief.leave();
    drop(quiet);
}

#[test]
fn the_last_process_to_detach_ends_the_clear_of_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let quiet = engine.chores.lock().unwrap();
    set(&engine, "k", b"v");
    let (dead, locks) = another_process(dir.path(), "locks", 77);
    std::mem::forget(dead.lock_clear().unwrap());
    lock::unlock(&locks, 77).unwrap();
    assert_eq!(get(&engine, "k").unwrap(), b"v");
    drop(quiet);
    drop(engine);
    let engine = open(dir.path(), &options());
    assert!(!engine.index.is_clearing());
    assert_eq!((engine.index.generation(), get(&engine, "k")), (1, None));
}

#[test]
fn entries_that_a_dead_process_should_reap_are_reaped() {
    let clock = ManualClock::new();
    let options = Options { clock: Arc::new(clock.clone()), ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let quiet = engine.chores.lock().unwrap();
    set_until(&engine, "k", b"v", clock.now().checked_add(Duration::from_secs(5)));
    let (dead, locks) = another_process(dir.path(), "locks", 77);
    dead.forget_next_expiry();
    lock::unlock(&locks, 77).unwrap();
    clock.advance(Duration::from_secs(5));
    assert!(!engine.has_expired_entries());
    engine.clean_up_after_dead();
    assert!(engine.has_expired_entries());
    assert_eq!(engine.reap_all(), 1);
    drop(quiet);
}
