//! Bounds on bytes, and how space is reclaimed.
//!
//! Shows invariants I27 and I33.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;
use crate::engine::index::{ProcessSlot, Role, SegmentState};
use crate::engine::ops::compaction::Evacuate;
use crate::sys::fork::OwnFile;

/// The ids of all segments that have a file.
fn ids(engine: &Engine) -> Vec<u32> {
    let there = engine.index.segments().filter(|segment| segment.state != SegmentState::Dropped);
    let mut ids: Vec<_> = there.map(|segment| segment.id).collect();
    ids.sort_unstable();
    ids
}

/// Whether `dir` has files of segments with these ids.
fn has_segments(dir: &Path, ids: &[u32]) -> bool {
    ids.iter().any(|id| dir.join("segments").join(Segment::file_name(*id)).exists())
}

#[test]
fn files_of_emptied_segments_are_removed_by_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { max_entries: 5000, max_bytes: 8 << 20, ..options() };
    let engine = open(dir.path(), &options());
    (0..4000).for_each(|i| set(&engine, &format!("{i}"), &[7; 1000]));
    let (full, ids) = (engine.bytes(), ids(&engine));
    (0..4000).filter(|i| i % 10 != 0).for_each(|i| assert!(delete(&engine, &format!("{i}"))));
    // No write happens between the two calls.
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
fn values_overwritten_all_the_time_take_little_space() {
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
fn entries_used_since_are_copied_at_a_low_cost() {
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
    assert_eq!(kept, 20, "of the entries that are always used");
    let stats = engine.stats();
    let amplification =
        (stats.written_bytes + stats.copied_bytes) as f64 / stats.written_bytes as f64;
    assert!(amplification <= 1.3, "{amplification}");
    assert_sound(&engine);
}

#[test]
fn bytes_stay_within_max_bytes_and_the_newest_entries_stay() {
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
    /// Three directories, locks, state, statistics, two snapshots, and the segments that are
    /// appended to: the active one, the spare, and the one for copies.
    const FEW: usize = 11;
    let durability = Durability::Buffered;
    let options = Options { max_entries: 100_000, max_bytes: 2 << 20, durability, ..options() };
    let dir = tempfile::tempdir().unwrap();
    let opened = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let paths = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        paths.filter(|path| path.starts_with(dir.path())).collect::<Vec<_>>()
    };
    let are_few = |engine: &Engine| {
        assert!(ids(engine).len() > 20);
        // The background thread opens others for a moment.
        let started = Instant::now();
        while opened().len() > FEW {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}", opened());
        }
    };
    let mut engine = open(dir.path(), &options);
    for _ in 0..2 {
        (0..3000).for_each(|i| set(&engine, &format!("{i}"), &[7; 1000]));
        are_few(&engine);
        drop(engine);
        engine = open(dir.path(), &options);
        are_few(&engine);
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
    let change = Change::Store {
        value: &too_large,
        codec: Codec::Raw,
        expires_at: None,
        soft: Soft::default(),
    };
    let error = engine.commit(b"large", Condition::Always, change).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValueTooLarge);
    assert_eq!(get(&engine, "large").unwrap(), large);
    assert_eq!(get(&open(kill(dir.path()).path(), &options()), "large").unwrap(), large);
}

#[test]
fn entries_set_after_a_value_beyond_the_reach_of_a_word_exist() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_bytes: 192 << 20, ..options() };
    let engine = open(dir.path(), &options);
    let huge = vec![1; crate::engine::format::word::MAX_OFFSET as usize + 100];
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
fn the_largest_value_always_fits_while_others_read_and_sync() {
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
        let change = Change::Store {
            value: &largest,
            codec: Codec::Raw,
            expires_at: None,
            soft: Soft::default(),
        };
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
fn a_value_held_over_a_close_counts_from_the_next_open_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "held", &[9; 8000]);
    let held = engine.read(b"held", |source| source.into_stored()).unwrap().unwrap().value;
    let len = engine.index.segments().find(|segment| segment.tail > 0).unwrap().len;
    drop(engine);
    let engine = open(dir.path(), &options());
    let beside_the_table = || engine.log.bytes() - engine.index.segment_bytes();
    // No thread claims bytes meanwhile.
    let _quiet = engine.chores.lock().unwrap();
    assert_eq!(beside_the_table(), len, "another process may have removed its file meanwhile");
    drop(held);
    assert_eq!(beside_the_table(), 0);
}

#[test]
fn held_values_keep_at_most_a_part_of_the_log() {
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
    assert!(engine.stats().pinned_bytes > 0, "some are returned without a copy");
    assert!(held.iter().enumerate().all(|(i, value)| *value == vec![i as u8; 8000]));
    drop(held);
    assert_eq!(engine.stats().pinned_bytes, 0);
}

#[test]
fn a_segment_that_a_dead_process_was_creating_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let file = |name| SYSTEM.open(&dir.path().join(name)).unwrap();
    // A process that never locked the byte of its number.
    let dead = ProcessSlot::new(Arc::new(OwnFile::new(file("locks"))), 77);
    let begun =
        Index::join(&file("index"), dead).unwrap().unwrap().create_segment(1 << 20).unwrap();
    let path = dir.path().join("segments").join(Segment::file_name(begun));
    // At first it cannot be unlinked.
    std::fs::create_dir(&path).unwrap();
    engine.maintain().unwrap();
    assert_eq!(engine.index.segment_state(begun), Some(SegmentState::Emptied));
    std::fs::remove_dir(&path).unwrap();
    engine.maintain().unwrap();
    assert_eq!(engine.index.segment_state(begun), None, "its bytes do not count any more");
}

#[test]
fn a_wrong_count_of_live_bytes_costs_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    (0..900).for_each(|i| set(&engine, &format!("{i}"), &[1; 1000]));
    assert!(ids(&engine).len() > 5);
    for id in ids(&engine) {
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
fn a_storm_of_expiries_is_reaped_at_once_and_frees_space() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let many = Options {
        max_entries: 30_000,
        max_bytes: 32 << 20,
        clock: Arc::new(clock.clone()),
        ..options()
    };
    let engine = open(dir.path(), &many);
    let end = Some(Timestamp::from_millis(clock.now().as_millis() + 60_000));
    for i in 0..20_000 {
        set_until(&engine, &format!("{i}"), &[7; 500], end);
    }
    (0..100).for_each(|i| set(&engine, &format!("stays {i}"), &[7; 500]));
    let full = engine.bytes();
    clock.advance(Duration::from_secs(61));
    engine.maintain().unwrap();
    engine.maintain().unwrap();
    assert_eq!((engine.len(), engine.stats().expired), (100, 20_000));
    assert!(engine.bytes() + (8 << 20) < full, "{} of {full}", engine.bytes());
    assert!((0..100).all(|i| get(&engine, &format!("stays {i}")).is_some()));
    assert_sound(&engine);
}

#[test]
fn a_flush_syncs_emptied_segments() {
    let dir = tempfile::tempdir().unwrap();
    let quiet = Options { durability: Durability::Buffered, max_bytes: 16 << 20, ..options() };
    let engine = open(dir.path(), &quiet);
    (0..900).for_each(|i| set(&engine, &format!("stays {i}"), &[7; 10_000]));
    // No other thread copies anything after a flush.
    let _alone = engine.chores.lock().unwrap();
    let mut seen = 0;
    for _ in 0..20 {
        (0..1000).for_each(|_| set(&engine, "key", &[7; 1000]));
        engine.keep_space(false).unwrap();
        seen += engine.log.emptied_bytes();
        engine.flush().unwrap();
        for id in ids(&engine) {
            if let Some(segment) = engine.log.segment(id).get() {
                assert!(segment.is_synced(), "segment {id}");
            }
        }
    }
    assert!(seen > 0, "nothing was ever emptied");
}

#[test]
fn a_checkpoint_moves_the_heartbeat_after_each_sync() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &Options { durability: Durability::Buffered, ..options() });
    // No other thread acquires the role.
    let _quiet = engine.chores.lock().unwrap();
    (0..900).for_each(|i| set(&engine, &format!("{i}"), &[1; 1000]));
    let (role, segments) = (engine.space_role().unwrap(), ids(&engine).len() as u64);
    let before = engine.index.heartbeats(Role::Space);
    engine.checkpoint(&role).unwrap();
    let gone_on = engine.index.heartbeats(Role::Space) - before;
    assert!(segments > 5 && gone_on >= segments - 1, "{gone_on} of {segments}");
}

#[test]
fn a_writer_times_out_on_bytes_that_a_stopped_process_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    let quiet = engine.chores.lock().unwrap();
    let [(_stopped, _), (busy, _)] =
        [77, 78].map(|number| another_process(dir.path(), "locks", number));
    set(&engine, "key", &[7; 1000]);
    let id = ids(&engine)[0];
    engine.log.seal_all();
    assert!(engine.empty(id, Evacuate::Drop).unwrap());
    engine.checkpoint(&engine.space_role().unwrap()).unwrap();
    assert!(engine.index.segments_in(SegmentState::Dropped).iter().any(|dropped| dropped.id == id));
    let (told, is_over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|threads| {
        // Another process holds the role, and makes progress.
        let role = busy.try_acquire(Role::Space).unwrap().expect("it is free");
        threads.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                busy.heartbeat(Role::Space);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let refused = engine.make_space(4 << 20).map(drop).map_err(|e| e.kind());
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(refused, Err(ErrorKind::Busy));
        drop(role);
    });
    // The holder of the role never stops, so the time-out does not come from it.
    assert!(told.elapsed() < 3 * Role::Space.patience(), "{:?}", told.elapsed());
    drop(quiet);
}
