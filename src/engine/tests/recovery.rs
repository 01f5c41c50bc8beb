//! What a directory contains after a close, a kill, or a loss of files.
//!
//! Shows invariants I15, I19 and I21.

use super::*;

#[test]
fn a_recovery_starts_from_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { max_entries: 5000, ..options() };
    let engine = open(dir.path(), &options());
    for i in 0..2000 {
        set(&engine, &format!("key {i}"), &[7; 100]);
    }
    assert!(delete(&engine, "key 7"));
    engine.checkpoint(&engine.space_role().unwrap()).unwrap();
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
    // The log is not replayed for entries that the snapshot has. Without its snapshots, the cache
    // starts cold.
    holds(&open(killed.path(), &options()));
    let killed = kill(dir.path());
    for name in ["snapshot.a", "snapshot.b"] {
        std::fs::write(killed.path().join(name), [0xee; 8192]).unwrap();
    }
    assert_eq!(open(killed.path(), &options()).len(), 0);
    // With `salvage`, the whole log is replayed.
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
fn a_cold_start_keeps_later_writes() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    (0..100).for_each(|i| set(&engine, &format!("{i}"), b"old"));
    engine.checkpoint(&engine.space_role().unwrap()).unwrap();
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
        engine.checkpoint(&engine.space_role().unwrap()).unwrap();
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
fn many_opens_take_no_space_and_evict_nothing() {
    // So large that the segment never gets half full: then the background thread would create the
    // next one.
    let options = || Options { max_bytes: 16 << 20, ..options() };
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
            // Killed, each second time during a write.
            if i % 2 == 0 {
                let draft = Draft {
                    kind: Kind::Value,
                    codec: Codec::Raw,
                    flags: 0,
                    key_len: 1,
                    body_len: 77,
                };
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
    let rows = engine.index.geometry().segments;
    engine.index.raise_next_segment_id(u64::from(2 * rows) + 5);
    set(&engine, "new", b"new");
    drop(engine);
    // As if the table had had more rows once.
    for (id, key) in [(5, b"old"), (rows + 5, b"mid")] {
        let segment = Segment::create(
            SYSTEM,
            &dir.path().join("segments"),
            id,
            16 << 10,
            false,
            &SpaceInUse::default(),
        )
        .unwrap();
        let draft =
            Draft { kind: Kind::Value, codec: Codec::Raw, flags: 0, key_len: 3, body_len: 3 };
        let len = draft.len().unwrap();
        segment.begin(64, len);
        let prepared = segment.prepare(64, len, draft, key, [&[], key]);
        segment.stamp(
            64,
            &prepared,
            Stamp { sequence: u64::from(id), generation: 0, expires_at: None },
        );
    }
    std::fs::remove_file(dir.path().join("state")).unwrap();
    let engine = open(dir.path(), &options());
    engine.maintain().unwrap();
    assert_eq!(get(&engine, "new").unwrap(), b"new");
    assert_eq!(engine.stats().corrupt, 0);
    assert_sound(&engine);
}

#[test]
fn a_clear_stays_effective_after_close_and_kill() {
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
fn an_index_too_small_for_the_options_is_rebuilt() {
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
fn a_log_with_more_keys_than_slots_brings_no_deleted_key_back() {
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
fn a_key_deleted_after_its_eviction_does_not_come_back() {
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
    // The chain is still marked as lost after a close.
    drop(engine);
    let engine = open(dir.path(), &options);
    assert!(!delete(&engine, "3"));
    for key in &keys[4..] {
        delete(&engine, key);
    }
    let after = open(kill(dir.path()).path(), &options);
    assert_eq!(
        after.len(),
        0,
        "{:?}",
        keys.iter().filter(|k| get(&after, k).is_some()).collect::<Vec<_>>()
    );
    assert_sound(&after);
}

#[test]
fn a_token_is_never_reused_even_with_an_empty_log() {
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
    // A larger index is rebuilt.
    let engine = open(dir.path(), &Options { max_entries: 10_000, ..options() });
    assert!(token(&engine) > before);
}

#[test]
fn a_key_evicted_by_a_replay_and_deleted_stays_deleted() {
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
fn a_flipped_byte_in_a_control_word_blocks_no_operation() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_entries: 40, ..options() };
    let path = dir.path().join("index");
    let keys: Vec<_> = (0..40).map(|i| format!("{i}")).collect();
    let engine = open(dir.path(), &options);
    keys.iter().for_each(|key| set(&engine, key, b"v"));
    let buckets = engine.index.geometry().buckets as usize;
    drop(engine);
    let end = std::fs::metadata(&path).unwrap().len() as usize;
    for byte in
        (end - end % 64 - buckets * 64..end).step_by(64).flat_map(|bucket| bucket..bucket + 8)
    {
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
fn an_engine_does_not_touch_the_successor_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let removed = open(&path, &options());
    set(&removed, "k", b"old");
    std::fs::remove_dir_all(&path).unwrap();
    let engine = open(&path, &options());
    assert_eq!(get(&engine, "k"), None);
    set(&engine, "k", b"new");
    let change = Change::Store {
        value: &[1; 500],
        codec: Codec::Raw,
        expires_at: None,
        soft: Soft::default(),
    };
    let refused =
        (0..20_000).find_map(|_| removed.commit(b"other", Condition::Always, change).err());
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
fn entries_in_a_reopened_segment_survive_its_seal() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "first", b"v");
    drop(engine);
    let engine = open(dir.path(), &options());
    // It needs a segment of its own, so the one before is sealed.
    set(&engine, "large", &vec![7; 300_000]);
    engine.maintain().unwrap();
    assert!(get(&engine, "first").is_some());
}

#[test]
fn holes_in_a_copied_directory_are_allocated_at_the_open() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "k", b"v");
    drop(engine);
    let files = ["index", "hints", "segments/00000001.seg"].map(|name| dir.path().join(name));
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        std::fs::File::create(path).unwrap();
        let file = SYSTEM.open(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for at in (0..bytes.len()).step_by(4096) {
            let page = &bytes[at..(at + 4096).min(bytes.len())];
            if page.iter().any(|b| *b != 0) {
                file.write_at(page, at as u64).unwrap();
            }
        }
        assert!(path.metadata().unwrap().blocks() * 512 < bytes.len() as u64, "{}", path.display());
    }
    let engine = open(dir.path(), &options());
    assert_eq!(get(&engine, "k").unwrap(), b"v");
    for path in &files {
        let found = path.metadata().unwrap();
        assert!(found.blocks() * 512 >= found.len(), "{}", path.display());
    }
}

#[test]
fn a_much_smaller_bound_on_entries_holds_after_the_next_open() {
    for clean in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path(), &Options { max_entries: 9000, ..options() });
        (0..6000).for_each(|i| set(&engine, &format!("{i}"), b"value"));
        let killed = kill(dir.path());
        drop(engine);
        let dir = if clean { dir.path() } else { killed.path() };
        let engine = open(dir, &options());
        assert_eq!(engine.len(), 1000);
        assert_sound(&engine);
        drop(engine);
        assert_eq!(open(dir, &options()).len(), 1000);
    }
}

#[test]
fn the_snapshot_a_recovery_started_from_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = |engine: &Engine| engine.checkpoint(&engine.space_role().unwrap()).unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "key", b"value");
    checkpoint(&engine);
    let state = std::fs::read(dir.path().join("state")).unwrap();
    checkpoint(&engine);
    // As a power cut leaves it before `state` says that the second snapshot is the current one.
    let cut = kill(dir.path());
    std::fs::write(cut.path().join("state"), state).unwrap();
    let files =
        || ["snapshot.a", "snapshot.b"].map(|name| std::fs::read(cut.path().join(name)).unwrap());
    let before = files();
    let engine = open(cut.path(), &options());
    checkpoint(&engine);
    let after = files();
    assert_ne!(before[1], after[1], "the first one is older");
    assert_eq!(before[0], after[0]);
}
