use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{Draft, Kind, Stamp};
use super::segment::Segment;
use super::usage::SpaceInUse;
use super::*;
use crate::entry::{Change, Codec, Condition, Outcome, Soft};
use crate::error::ErrorKind;
use crate::options::Eviction;
use crate::time::{Clock, ManualClock, Timestamp};

fn options() -> Options {
    Options { max_entries: 1000, max_bytes: 4 << 20, ..Options::default() }
}

fn open(dir: &Path, options: &Options) -> Arc<Attached> {
    Attached::open(dir, options).unwrap()
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

/// Leaves as a killed process would: nothing is closed, the lock goes.
fn kill(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir, copy.path());
    copy
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_all(&entry.path(), &to);
        } else {
            match std::fs::copy(entry.path(), to) {
                // The background removed a segment meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

fn assert_sound(engine: &Engine) {
    // The background may be removing something meanwhile.
    let mut report = engine.check();
    for _ in 0..20 {
        if report.is_sound() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
        report = engine.check();
    }
    panic!("{:?}", report.problems);
}

#[test]
fn what_is_set_is_read_and_survives_close_and_kill() {
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

/// Whether `dir` has files of segments with these ids.
fn has_segments(dir: &Path, ids: &[u32]) -> bool {
    ids.iter().any(|id| dir.join("segments").join(Segment::file_name(*id)).exists())
}

#[test]
fn a_recovery_begins_with_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { max_entries: 5000, ..options() };
    let engine = open(dir.path(), &options());
    for i in 0..2000 {
        set(&engine, &format!("key {i}"), &[7; 100]);
    }
    assert!(delete(&engine, "key 7"));
    engine.checkpoint().unwrap();
    set(&engine, "key 8", b"after");
    assert!(delete(&engine, "key 9"));
    let holds = |engine: &Engine| {
        assert_eq!((get(engine, "key 7"), get(engine, "key 9")), (None, None));
        assert_eq!(get(engine, "key 8").unwrap(), b"after");
        assert_eq!(get(engine, "key 10").unwrap(), [7; 100]);
        assert_eq!(engine.len(), 1998);
        assert_sound(engine);
    };
    let killed = kill(dir.path());
    // What the snapshot has is not looked for in the log: without its snapshots the directory starts cold.
    holds(&open(killed.path(), &options()));
    let killed = kill(dir.path());
    for name in ["snapshot.a", "snapshot.b"] {
        std::fs::write(killed.path().join(name), [0xee; 8192]).unwrap();
    }
    assert_eq!(open(killed.path(), &options()).len(), 0);
    // And what it took since, it has.
    let killed = kill(dir.path());
    for name in ["snapshot.a", "snapshot.b"] {
        std::fs::write(killed.path().join(name), [0xee; 8192]).unwrap();
    }
    let engine = open(killed.path(), &Options { salvage: true, ..options() });
    assert_eq!(get(&engine, "key 8").unwrap(), b"after");
    assert_eq!(engine.len(), 1998);
    drop(engine);
    holds(&open(killed.path(), &options()));
}

#[test]
fn a_cold_start_keeps_what_is_written_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    (0..100).for_each(|i| set(&engine, &format!("{i}"), b"old"));
    engine.checkpoint().unwrap();
    let killed = kill(dir.path());
    for name in ["snapshot.a", "snapshot.b"] {
        std::fs::write(killed.path().join(name), [0xee; 8192]).unwrap();
    }
    let cold = open(killed.path(), &options());
    set(&cold, "0", b"new");
    let killed = kill(killed.path());
    let engine = open(killed.path(), &options());
    assert_eq!((get(&engine, "0").unwrap(), engine.len()), (b"new".to_vec(), 1));
    assert_sound(&engine);
}

#[test]
fn another_size_of_index_is_filled_from_the_old_one() {
    for clean in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let small = Options { max_entries: 2000, ..options() };
        let engine = open(dir.path(), &small);
        (0..1500).for_each(|i| set(&engine, &format!("key {i}"), format!("{i}").as_bytes()));
        engine.checkpoint().unwrap();
        (0..100).for_each(|i| set(&engine, &format!("key {i}"), b"again"));
        let killed = kill(dir.path());
        drop(engine);
        let dir = if clean { dir.path() } else { killed.path() };
        for max_entries in [100_000, 20_000, 1800] {
            let engine = open(dir, &Options { max_entries, ..options() });
            assert_eq!(engine.len(), 1500);
            assert_eq!(get(&engine, "key 5").unwrap(), b"again");
            assert_eq!(get(&engine, "key 1400").unwrap(), b"1400");
            assert_sound(&engine);
        }
    }
}

#[test]
fn what_is_dead_gives_its_space_back_and_a_removal_waits_for_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { max_entries: 5000, max_bytes: 8 << 20, ..options() };
    let engine = open(dir.path(), &options());
    (0..4000).for_each(|i| set(&engine, &format!("{i}"), &[7; 1000]));
    let (full, ids) = (engine.bytes(), engine.log.ids());
    (0..4000).filter(|i| i % 10 != 0).for_each(|i| assert!(delete(&engine, &format!("{i}"))));
    // Nobody writes between two looks.
    engine.maintain().unwrap();
    engine.maintain().unwrap();
    assert!(engine.bytes() < full / 2, "{} of {full}", engine.bytes());
    assert!(engine.stats().copied_bytes > 0);
    assert!(ids.iter().any(|id| !has_segments(dir.path(), &[*id])));
    let holds = |engine: &Engine| {
        for i in 0..4000 {
            assert_eq!(get(engine, &format!("{i}")).is_some(), i % 10 == 0, "{i}");
        }
        assert_sound(engine);
    };
    holds(&engine);
    holds(&open(kill(dir.path()).path(), &options()));
    drop(engine);
    holds(&open(dir.path(), &options()));
}

#[test]
fn what_is_overwritten_all_the_time_takes_little_space() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_bytes: 2 << 20, ..options() });
    let mut numbers = 1u64;
    for i in 0..2000 {
        numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Most are overwritten soon; a few stay among them.
        let key = if i % 16 == 0 { i } else { (numbers >> 40) % 8 };
        set(&engine, &format!("{key}"), &vec![7; (numbers >> 33) as usize % 1500]);
        if i % 20 == 0 {
            engine.maintain().unwrap();
        }
    }
    let stats = engine.stats();
    assert!(stats.copied_bytes > 0 && stats.evicted == 0, "{stats:?}");
    assert_sound(&engine);
}

#[test]
fn what_was_used_since_is_copied_and_few_bytes_are() {
    let options = Options { max_entries: 10_000, max_bytes: 4 << 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let hot = || (0..2000).step_by(100);
    for i in 0..40_000 {
        set(&engine, &format!("{i}"), &[7; 1000]);
        // A few are used again and again.
        if i % 10 == 0 {
            hot().for_each(|hot| drop(get(&engine, &format!("{hot}"))));
        }
    }
    let kept = hot().filter(|hot| get(&engine, &format!("{hot}")).is_some()).count();
    assert_eq!(kept, 20, "of those that are always used");
    let stats = engine.stats();
    let amplification = (stats.written_bytes + stats.copied_bytes) as f64 / stats.written_bytes as f64;
    assert!(amplification <= 1.3, "{amplification}");
    assert_sound(&engine);
}

#[test]
fn opening_again_and_again_takes_no_space_and_pushes_nothing_out() {
    let mut dirs = vec![tempfile::tempdir().unwrap()];
    let mut bytes = 0;
    for i in 0..300 {
        let dir = dirs.last().unwrap();
        let engine = open(dir.path(), &options());
        set(&engine, &format!("{i}"), &vec![7; i % 100]);
        if i == 0 {
            bytes = engine.bytes();
        }
        assert_eq!(engine.bytes(), bytes, "{i}");
        if i % 3 == 0 {
            // Killed, some of the time with a write under way.
            if i % 2 == 0 {
                let draft =
                    Draft { kind: Kind::Value, codec: Codec::Raw, flags: 0, key_len: 1, body_len: 77 };
                let reservation = engine.reserve(&draft).unwrap();
                let (offset, len) = (reservation.offset, reservation.len);
                reservation.segment.prepare(offset, len, draft, b"k", [&[], &[0; 77]]);
            }
            let killed = kill(dir.path());
            drop(engine);
            dirs = vec![killed];
        }
    }
    let engine = open(dirs[0].path(), &options());
    assert_eq!(engine.len(), 300);
    for i in 0..300 {
        assert_eq!(get(&engine, &format!("{i}")).unwrap(), vec![7; i % 100]);
    }
    assert_sound(&engine);
}

#[test]
fn a_replay_into_a_smaller_segment_table_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let places = engine.index.geometry().segments;
    engine.index.raise_next_segment_id(u64::from(2 * places) + 5);
    set(&engine, "new", b"new");
    drop(engine);
    // As if the table had been larger once.
    for (id, key) in [(5, b"old"), (places + 5, b"mid")] {
        let segment =
            Segment::create(&dir.path().join("segments"), id, SpaceInUse::default().account(16 << 10), false)
                .unwrap();
        let draft = Draft { kind: Kind::Value, codec: Codec::Raw, flags: 0, key_len: 3, body_len: 3 };
        let len = draft.len().unwrap();
        segment.begin(64, len);
        let prepared = segment.prepare(64, len, draft, key, [&[], key]);
        segment.stamp(64, &prepared, Stamp { sequence: u64::from(id), generation: 0, expires_at: None });
    }
    std::fs::remove_file(dir.path().join("state")).unwrap();
    let engine = open(dir.path(), &options());
    engine.maintain().unwrap();
    assert_eq!(get(&engine, "new").unwrap(), b"new");
    assert_eq!(engine.stats().corrupt, 0);
    assert_sound(&engine);
}

#[test]
fn a_clear_is_a_clear_after_any_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "before", b"1");
    engine.clear().unwrap();
    set(&engine, "after", b"2");
    let holds = |engine: &Engine| {
        assert_eq!((get(engine, "before"), get(engine, "after").unwrap()), (None, b"2".to_vec()));
        assert_eq!(engine.len(), 1);
        assert_sound(engine);
    };
    holds(&engine);
    holds(&open(kill(dir.path()).path(), &options()));
    engine.maintain().unwrap();
    holds(&engine);
    drop(engine);
    holds(&open(dir.path(), &options()));
}

#[test]
fn what_a_clear_leaves_behind_pushes_nothing_out() {
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
fn conditions_decide() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let store = Change::Store { value: b"v", codec: Codec::Raw, expires_at: None, soft: Soft::default() };
    let commit = |condition, change| engine.commit(b"k", condition, change).unwrap();
    assert_eq!(commit(Condition::Present, store), Outcome::Refused { current: None });
    assert_eq!(
        commit(Condition::Always, Change::Touch { expires_at: None }),
        Outcome::Refused { current: None }
    );
    let Outcome::Done { token: Some(token), existed: false } = commit(Condition::Absent, store) else {
        panic!()
    };
    assert_eq!(commit(Condition::Absent, store), Outcome::Refused { current: Some(token) });
    let Outcome::Done { token: Some(next), existed: true } = commit(Condition::Token(token), store) else {
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
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&engine, "short 1"), None);
    assert_eq!(engine.len(), 100);
    engine.maintain().unwrap();
    assert_eq!(engine.len(), 50);
    assert_eq!(engine.stats().expired, 50);
    assert_sound(&engine);
    set_until(&engine, "gone", b"v", Some(Timestamp::default()));
    assert_eq!(get(&engine, "gone"), None);
}

#[test]
fn the_least_recently_used_go_at_the_bound() {
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

#[test]
fn nearly_the_coldest_go_while_the_background_is_behind() {
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
fn bytes_stay_within_their_bound_and_the_newest_stay() {
    let options = Options { max_entries: 100_000, max_bytes: 1 << 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let value = vec![7; 1000];
    for i in 0..20_000 {
        set(&engine, &format!("{i}"), &value);
        assert!(engine.bytes() <= options.max_bytes);
    }
    assert!(get(&engine, "19999").is_some() && get(&engine, "19800").is_some());
    assert!(get(&engine, "0").is_none());
    assert!(engine.len() > 400, "{}", engine.len());
    assert_sound(&engine);
    let killed = kill(dir.path());
    let after = open(killed.path(), &options);
    assert!(get(&after, "19999").is_some());
    assert_sound(&after);
}

#[test]
fn a_cache_of_many_segments_takes_few_open_files() {
    let options = Options { max_entries: 100_000, max_bytes: 2 << 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let opened = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter(|f| std::fs::read_link(f.path()).is_ok_and(|to| to.starts_with(dir.path()))).count()
    };
    // The directory, locks, state, the active segment and the next one, and for moments one each that is being
    // synced, sealed, or given up.
    const FEW: usize = 10;
    let mut engine = open(dir.path(), &options);
    for _ in 0..2 {
        (0..3000).for_each(|i| set(&engine, &format!("{i}"), &[7; 1000]));
        assert!(engine.log.ids().len() > 20 && opened() <= FEW, "{}", opened());
        drop(engine);
        engine = open(dir.path(), &options);
        assert!(engine.log.ids().len() > 20 && opened() <= FEW, "{}", opened());
        engine.flush().unwrap();
    }
    assert!(get(&engine, "2999").is_some());
    assert_sound(&engine);
}

#[test]
fn a_large_value_fits_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let large = vec![3; 600_000];
    set(&engine, "a", b"small");
    set(&engine, "large", &large);
    set(&engine, "b", b"small");
    assert_eq!(get(&engine, "large").unwrap(), large);
    let too_large = vec![3; 2 << 20];
    let change =
        Change::Store { value: &too_large, codec: Codec::Raw, expires_at: None, soft: Soft::default() };
    let error = engine.commit(b"large", Condition::Always, change).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValueTooLarge);
    assert_eq!(get(&engine, "large").unwrap(), large);
    assert_eq!(get(&open(kill(dir.path()).path(), &options()), "large").unwrap(), large);
}

#[test]
fn what_is_set_after_a_value_beyond_the_reach_of_a_word_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_bytes: 192 << 20, ..options() };
    let engine = open(dir.path(), &options);
    let huge = vec![1; index::MAX_OFFSET as usize + 100];
    set(&engine, "huge", &huge);
    (0..60).for_each(|i| set(&engine, &format!("{i}"), b"v"));
    let holds = |engine: &Engine| {
        assert!(get(engine, "huge").unwrap() == huge);
        assert!((0..60).all(|i| get(engine, &format!("{i}")).is_some()));
        assert_sound(engine);
    };
    holds(&engine);
    holds(&open(kill(dir.path()).path(), &options));
}

#[test]
fn the_largest_value_fits_again_and_again_while_others_read_and_sync() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_bytes: 4 << 20, ..options() });
    let largest = vec![7; engine.log.max_record_len() as usize - 64];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    engine.flush().unwrap();
                    engine.read(b"0", |_| std::thread::sleep(Duration::from_millis(1))).unwrap();
                }
            });
        }
        let change =
            Change::Store { value: &largest, codec: Codec::Raw, expires_at: None, soft: Soft::default() };
        let refused = (0..300).find_map(|i: u32| {
            engine.commit(format!("{}", i % 3).as_bytes(), Condition::Always, change).err()
        });
        done.store(true, Ordering::Relaxed);
        assert!(refused.is_none(), "{refused:?}");
    });
    assert!(get(&engine, "2").unwrap() == largest);
}

#[test]
fn shared_bytes_outlive_their_segment() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_bytes: 1 << 20, ..options() });
    let value = vec![9; 8000];
    set(&engine, "held", &value);
    let held = engine.read(b"held", |source| source.into_stored()).unwrap().unwrap();
    for i in 0..1000 {
        set(&engine, &format!("{i}"), &value);
    }
    assert_eq!(get(&engine, "held"), None);
    assert_eq!(held.value, value);
    drop(engine);
    assert_eq!(held.value, value);
}

#[test]
fn values_that_are_held_keep_a_part_of_the_log_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_bytes: 1 << 20, ..options() });
    let mut held = Vec::new();
    for i in 0..1000u32 {
        let value = vec![i as u8; 8000];
        set(&engine, "key", &value);
        let stored = engine.read(b"key", |source| source.into_stored()).unwrap().unwrap();
        assert_eq!(stored.value, value);
        held.push(stored.value);
        assert!(engine.stats().pinned_bytes <= engine.log.budget() / 8);
    }
    assert!(engine.stats().pinned_bytes > 0, "some are handed out where they lie");
    assert!(held.iter().enumerate().all(|(i, value)| *value == vec![i as u8; 8000]));
    drop(held);
    assert_eq!(engine.stats().pinned_bytes, 0);
}

#[test]
fn threads_agree() {
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
fn the_bound_on_entries_is_exact_whoever_inserts() {
    let dir = tempfile::tempdir().unwrap();
    for max_entries in [1, 3, 10_100] {
        let options = Options { max_entries, max_bytes: 16 << 20, ..options() };
        let engine = open(&dir.path().join(format!("{max_entries}")), &options);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let engine = &engine;
                scope.spawn(move || (0..6000).for_each(|i| set(engine, &format!("{thread}:{i}"), b"v")));
            }
        });
        assert!(engine.len() <= max_entries && engine.len() > 0);
        assert_sound(&engine);
    }
}

#[test]
fn a_wrong_count_is_put_right() {
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
fn everything_is_scanned_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    for i in 0..700 {
        set(&engine, &format!("{i}"), b"v");
    }
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        cursor = engine.scan(at, true, &mut |key, _| *seen.entry(key.to_vec()).or_default() += 1).unwrap();
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
fn an_index_too_small_for_the_options_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { max_entries: 100, ..options() });
    (0..100).for_each(|i| set(&engine, &format!("{i}"), b"v"));
    drop(engine);
    let engine = open(dir.path(), &Options { max_entries: 10_000, ..options() });
    (100..5000).for_each(|i| set(&engine, &format!("{i}"), b"v"));
    assert_eq!(engine.len(), 5000);
    drop(engine);
    let engine = open(dir.path(), &Options { max_entries: 100, ..options() });
    assert_eq!(engine.len(), 100);
    assert_sound(&engine);
}

#[test]
fn a_full_log_with_more_keys_than_the_index_holds_brings_nothing_deleted_back() {
    let options = Options { max_entries: 20, max_bytes: 4 << 20, cull_frequency: 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    for i in 0..3000 {
        set(&engine, &format!("{i}"), b"v");
        assert!(delete(&engine, &format!("{i}")));
        set(&engine, &format!("stays {i}"), b"v");
    }
    let after = open(kill(dir.path()).path(), &options);
    for i in 0..3000 {
        assert_eq!(get(&after, &format!("{i}")), None, "{i}");
    }
    assert!(after.len() <= 20 && after.len() > 0);
    assert_sound(&after);
}

#[test]
fn what_was_deleted_after_its_eviction_does_not_come_back() {
    let options = Options { max_entries: 10, cull_frequency: 10, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    let keys: Vec<String> = (0..30).map(|i| i.to_string()).collect();
    keys.iter().for_each(|key| set(&engine, key, b"v"));
    assert_eq!(get(&engine, "0"), None, "evicted");
    assert!(!delete(&engine, "0"));
    set_until(&engine, "1", b"v", Some(Timestamp::default()));
    assert_eq!(get(&engine, "2"), None, "evicted");
    let with_token = engine.commit(b"2", Condition::Token(1), Change::Delete).unwrap();
    assert_eq!(with_token, Outcome::Refused { current: None });
    // The mark outlives a clean end.
    drop(engine);
    let engine = open(dir.path(), &options);
    assert!(!delete(&engine, "3"));
    for key in &keys[4..] {
        delete(&engine, key);
    }
    let after = open(kill(dir.path()).path(), &options);
    assert_eq!(after.len(), 0, "{:?}", keys.iter().filter(|k| get(&after, k).is_some()).collect::<Vec<_>>());
    assert_sound(&after);
}

#[test]
fn a_token_is_never_given_out_again_though_nothing_is_left_of_the_log() {
    let token = |engine: &Engine| match set_until(engine, "k", b"v", None) {
        Outcome::Done { token: Some(token), .. } => token,
        other => panic!("{other:?}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let before = token(&engine);
    engine.clear().unwrap();
    drop(engine);
    let engine = open(dir.path(), &options());
    engine.maintain().unwrap();
    drop(engine);
    // A larger index is made anew.
    let engine = open(dir.path(), &Options { max_entries: 10_000, ..options() });
    assert!(token(&engine) > before);
}

#[test]
fn what_a_replay_had_no_room_for_stays_deleted_after_the_next() {
    let options = Options { max_entries: 20, cull_frequency: 20, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options);
    (0..3000).for_each(|i| set(&engine, &format!("{i}"), b"v"));
    let first = kill(dir.path());
    let engine = open(first.path(), &options);
    for i in 0..3000 {
        delete(&engine, &format!("{i}"));
    }
    assert_eq!(engine.len(), 0);
    let after = open(kill(first.path()).path(), &options);
    assert_eq!(after.len(), 0);
}

#[test]
fn a_flipped_byte_in_a_control_word_of_a_closed_index_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_entries: 40, ..options() };
    let path = dir.path().join("index");
    let keys: Vec<_> = (0..40).map(|i| format!("{i}")).collect();
    let engine = open(dir.path(), &options);
    keys.iter().for_each(|key| set(&engine, key, b"v"));
    let buckets = engine.index.geometry().buckets as usize;
    drop(engine);
    let end = std::fs::metadata(&path).unwrap().len() as usize;
    for byte in (end - end % 64 - buckets * 64..end).step_by(64).flat_map(|bucket| bucket..bucket + 8) {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[byte] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let engine = open(dir.path(), &options);
        for key in &keys {
            assert!(get(&engine, key).is_none_or(|value| value == b"v"), "byte {byte}");
            set(&engine, key, b"v");
        }
        drop(engine);
    }
}

#[test]
fn a_smaller_bound_holds_at_once_whatever_is_still_to_be_swept() {
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

#[test]
fn whoever_has_a_removed_directory_open_leaves_the_one_in_its_place_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let removed = open(&path, &options());
    set(&removed, "k", b"old");
    std::fs::remove_dir_all(&path).unwrap();
    let engine = open(&path, &options());
    assert_eq!(get(&engine, "k"), None);
    set(&engine, "k", b"new");
    let change =
        Change::Store { value: &[1; 500], codec: Codec::Raw, expires_at: None, soft: Soft::default() };
    let refused = (0..20_000).find_map(|_| removed.commit(b"other", Condition::Always, change).err());
    assert_eq!(refused.unwrap().kind(), ErrorKind::Io);
    assert_eq!(get(&removed, "k").unwrap(), b"old");
    drop(removed);
    let after = kill(&path);
    let after = open(after.path(), &options());
    assert_eq!(get(&after, "k").unwrap(), b"new");
    assert_eq!((get(&engine, "k").unwrap(), after.len(), engine.len()), (b"new".to_vec(), 1, 1));
    assert_sound(&engine);
}

#[test]
fn entries_outlive_the_segment_that_a_reopening_went_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "first", b"v");
    drop(engine);
    let engine = open(dir.path(), &options());
    // It fits into a segment of its own only, so the one before is sealed.
    set(&engine, "large", &vec![7; 300_000]);
    engine.maintain().unwrap();
    assert!(get(&engine, "first").is_some());
}

#[test]
fn a_wrong_count_of_live_bytes_costs_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    (0..900).for_each(|i| set(&engine, &format!("{i}"), &[1; 1000]));
    assert!(engine.log.ids().len() > 5);
    for id in engine.log.ids() {
        engine.index.add_live_bytes(id, -1_000_000_000);
    }
    engine.maintain().unwrap();
    assert_eq!((engine.len(), engine.stats().evicted), (900, 0));
    drop(engine);
    let engine = open(dir.path(), &options());
    set(&engine, "one more", b"v");
    engine.maintain().unwrap();
    assert_eq!(engine.len(), 901);
}

#[test]
fn a_copy_with_holes_is_made_whole_before_it_is_written_to() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"v");
    drop(engine);
    let files = ["index", "hints", "segments/00000001.seg"].map(|name| dir.path().join(name));
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        let file = std::fs::File::create(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for at in (0..bytes.len()).step_by(4096) {
            let page = &bytes[at..(at + 4096).min(bytes.len())];
            if page.iter().any(|b| *b != 0) {
                crate::sys::file::write_at(&file, page, at as u64).unwrap();
            }
        }
        assert!(file.metadata().unwrap().blocks() * 512 < bytes.len() as u64, "{}", path.display());
    }
    let engine = open(dir.path(), &options());
    assert_eq!(get(&engine, "k").unwrap(), b"v");
    for path in &files {
        let found = path.metadata().unwrap();
        assert!(found.blocks() * 512 >= found.len(), "{}", path.display());
    }
}
