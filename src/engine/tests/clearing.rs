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
    engine.index.reach_generation(1);
    (0..300).for_each(|i| set(&engine, &format!("new {i}"), b"v"));
    let new = there("new");
    assert!((50..=100).contains(&new), "{new} entries");
    assert_eq!((there("old"), engine.len()), (0, new));
    // The clear continues.
    engine.index.begin_generation(1);
    lock.unlock().unwrap();
    assert_eq!(there("new"), engine.len());
    engine.index.reach_generation(2);
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
    assert!(taken.is_unfinished());
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
fn a_clear_that_a_death_interrupts_removes_nothing_later() {
    for is_stamped in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path(), &options());
        let quiet = engine.chores.lock().unwrap();
        set(&engine, "before", b"v");
        let (dead, locks) = another_process(dir.path(), "locks", 77);
        std::mem::forget(dead.lock_clear().unwrap());
        let reservation = engine.reserve(&CLEAR).unwrap();
        let (segment, offset) = (reservation.segment.clone(), reservation.offset);
        if is_stamped {
            engine.stamp_clear(&reservation, 1).unwrap();
            assert!(segment.record(offset).is_some());
        }
        drop(reservation);
        lock::unlock(&locks, 77).unwrap();
        // Acknowledged after the death, and before another process sees it.
        set(&engine, "after", b"v");
        drop(quiet);
        engine.checkpoint(&engine.space_role().unwrap()).unwrap();
        assert!(!engine.index.is_clearing());
        let is_there = |key| get(&engine, key).as_deref() == Some(b"v");
        assert!(is_there("before") && is_there("after"));
        // A recovery would apply it.
        assert!(segment.record(offset).is_none());
        drop(engine);
        let engine = open(dir.path(), &Options { salvage: true, ..options() });
        assert_eq!(get(&engine, "before").unwrap(), b"v");
        assert_eq!(get(&engine, "after").unwrap(), b"v");
        engine.clear().unwrap();
        assert_eq!((engine.len(), get(&engine, "after")), (0, None));
    }
}

#[test]
fn a_clear_whose_process_dies_after_it_took_effect_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let quiet = engine.chores.lock().unwrap();
    set(&engine, "before", b"v");
    let (dead, locks) = another_process(dir.path(), "locks", 77);
    std::mem::forget(dead.lock_clear().unwrap());
    engine.stamp_clear(&engine.reserve(&CLEAR).unwrap(), 1).unwrap();
    dead.reach_generation(1);
    lock::unlock(&locks, 77).unwrap();
    set(&engine, "after", b"v");
    drop(quiet);
    engine.end_clear_of_dead().unwrap();
    drop(engine);
    let engine = open(dir.path(), &Options { salvage: true, ..options() });
    assert_eq!((get(&engine, "before"), engine.len()), (None, 1));
    assert_eq!(get(&engine, "after").unwrap(), b"v");
}

#[test]
fn entries_that_a_dead_process_should_reap_are_reaped() {
    let clock = ManualClock::new();
    let options = Options { clock: StoreClock::new(clock.clone()), ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let quiet = engine.chores.lock().unwrap();
    set_until(&engine, "k", b"v", clock.now().checked_add(Duration::from_secs(5)));
    let (dead, locks) = another_process(dir.path(), "locks", 77);
    dead.forget_next_expiry();
    lock::unlock(&locks, 77).unwrap();
    clock.advance(Duration::from_secs(5));
    engine.options.clock.read();
    assert!(!engine.has_expired_entries());
    engine.clean_up_after_dead();
    assert!(engine.has_expired_entries());
    assert_eq!(engine.reap_all(), 1);
    drop(quiet);
}
