//! Damage after a kill or a power cut, and copies of directories in use: no older value comes back.
//!
//! Shows invariant I21.

use super::*;
use crate::engine::shared::state_file::StateFile;
use crate::sys::storage::HeldDirectory;

/// Makes a copy of a directory look like the directory itself after a power cut, in which no byte
/// was lost.
fn after_power_cut(dir: &Path) {
    let mut state = StateFile::open(file(dir, "state")).unwrap();
    let place = HeldDirectory::open(SYSTEM, dir).unwrap().place();
    state.set_directory(place.inode).unwrap();
    state.mark_open(state.limits().unwrap()).unwrap();
    // The word `at::PAGE_CACHE` of the header.
    file(dir, "index").write_at(&[0x77; 8], 48).unwrap();
}

fn segment_paths(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir.join("segments")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths
}

/// The offset of `bytes` in the first segment.
fn offset_of(dir: &Path, bytes: &[u8]) -> usize {
    let content = std::fs::read(&segment_paths(dir)[0]).unwrap();
    content.windows(bytes.len()).position(|window| window == bytes).unwrap()
}

fn change_log(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = &segment_paths(dir)[0];
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn with_zeros(mark: &[u8]) -> Vec<u8> {
    [mark, &[0; 3000][..], mark].concat()
}

fn two_versions(newer: &[u8]) -> (tempfile::TempDir, Arc<Attached>) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "key", b"the older value");
    set(&engine, "key", newer);
    set(&engine, "other", b"other");
    engine.flush().unwrap();
    (dir, engine)
}

#[test]
fn a_damaged_value_with_zeros_is_a_miss_after_a_kill() {
    let values = [with_zeros(b"newer"), vec![0; 4096], b"again".repeat(700)];
    for newer in &values {
        let (dir, _engine) = two_versions(newer);
        for at in [0, 5, 700, newer.len() - 1] {
            let killed = kill(dir.path());
            // The records are of 64 bytes, header and key of 43.
            let start = 64 + 64 + 43;
            change_log(killed.path(), |bytes| bytes[start + at] ^= 4);
            let after = open(killed.path(), &options());
            assert_eq!(get(&after, "key"), None, "{at}");
            assert_eq!(get(&after, "other").unwrap(), b"other");
            set(&after, "key", b"written again");
            assert_sound(&after);
            // The damaged record is not replayed any more.
            drop(after);
            after_power_cut(killed.path());
            assert_eq!(get(&open(killed.path(), &options()), "key").unwrap(), b"written again");
        }
    }
}

#[test]
fn no_damage_of_the_log_after_a_kill_brings_an_older_value_back() {
    let (dir, engine) = two_versions(&with_zeros(b"newer"));
    let older = kill(dir.path());
    set(&engine, "deleted", b"value");
    assert!(delete(&engine, "deleted"));
    set(&engine, "key", b"newest");
    let end = offset_of(dir.path(), b"newest") + 6;
    let check = |what: &str, damage: &dyn Fn(&Path)| {
        let killed = kill(dir.path());
        damage(killed.path());
        let after = open(killed.path(), &options());
        assert!(get(&after, "key").is_none_or(|value| value == b"newest"), "{what}");
        assert_eq!(get(&after, "deleted"), None, "{what}");
        assert!(get(&after, "other").is_none_or(|value| value == b"other"), "{what}");
        set(&after, "key", b"written after");
        assert_sound(&after);
        let again = open(kill(killed.path()).path(), &options());
        assert_eq!(get(&again, "key").unwrap(), b"written after", "{what}");
        assert_eq!(get(&again, "deleted"), None, "{what}");
    };
    for at in (64..end).filter(|at| (*at < 300 || at + 250 > end) && at % 5 == 0) {
        check(&format!("bit {at}"), &|dir| change_log(dir, |bytes| bytes[at] ^= 0x20));
    }
    for sector in 0..end.div_ceil(512) {
        let zero = |bytes: &mut Vec<u8>| bytes[sector * 512..(sector + 1) * 512].fill(0);
        check(&format!("sector {sector}"), &|dir| change_log(dir, zero));
    }
    for len in [0, 64, end - 100, end, end + 4096] {
        check(&format!("cut at {len}"), &|dir| change_log(dir, |bytes| bytes.truncate(len)));
    }
    check("removed", &|dir| std::fs::remove_file(&segment_paths(dir)[0]).unwrap());
    for name in ["segments/00000001.seg", "index", "state", "snapshot.a", "snapshot.b", "hints"] {
        check(&format!("an older {name}"), &|dir| {
            std::fs::copy(older.path().join(name), dir.join(name)).unwrap();
        });
        check(&format!("no {name}"), &|dir| std::fs::remove_file(dir.join(name)).unwrap());
    }
}

#[test]
fn a_segment_that_is_gone_after_a_kill_brings_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { max_bytes: 1 << 20, ..options() };
    let engine = open(dir.path(), &options());
    let keys: Vec<_> = (0..100).map(|i| format!("key {i}")).collect();
    for round in 0..8 {
        keys.iter().for_each(|key| set(&engine, key, &[round; 400]));
        if round == 4 {
            engine.checkpoint(&engine.space_role().unwrap()).unwrap();
        }
    }
    keys[..50].iter().for_each(|key| assert!(delete(&engine, key)));
    let count = segment_paths(dir.path()).len();
    assert!(count > 3, "{count}");
    for lost in 0..count {
        let killed = kill(dir.path());
        let Some(path) = segment_paths(killed.path()).get(lost).cloned() else { break };
        std::fs::remove_file(path).unwrap();
        let after = open(killed.path(), &options());
        for (i, key) in keys.iter().enumerate() {
            let found = get(&after, key);
            assert!(found.is_none() || (i >= 50 && found == Some(vec![7; 400])), "{lost}: {key}");
        }
        assert_sound(&after);
    }
}

#[test]
fn a_copy_of_a_directory_in_use_brings_no_deleted_key_back() {
    let names = ["index", "hints", "state", "snapshot.a", "snapshot.b", "meta"];
    for last in ["segments", "index", "state", "snapshots"] {
        let dir = tempfile::tempdir().unwrap();
        let options = || Options { max_bytes: 1 << 20, ..options() };
        let engine = open(dir.path(), &options());
        let keys: Vec<_> = (0..200).map(|i| format!("key {i}")).collect();
        for key in &keys {
            set(&engine, key, &[1; 30]);
            // Keeps the segment alive that the value is in.
            set(&engine, &format!("kept {key}"), &[3; 1200]);
        }
        let checkpoint = || engine.checkpoint(&engine.space_role().unwrap()).unwrap();
        checkpoint();
        keys.iter().for_each(|key| assert!(delete(&engine, key)));
        let copy = tempfile::tempdir().unwrap();
        let is_last = |name: &str| name[..4] == last[..4];
        let copy_files = |when: bool| {
            for name in names.iter().filter(|name| is_last(name) == when) {
                std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
            }
            if (last == "segments") == when {
                std::fs::create_dir(copy.path().join("segments")).unwrap();
                for path in segment_paths(dir.path()) {
                    let name = path.file_name().unwrap();
                    std::fs::copy(&path, copy.path().join("segments").join(name)).unwrap();
                }
            }
        };
        copy_files(false);
        // The tombstones are removed meanwhile.
        let buried = segment_paths(dir.path()).pop().unwrap();
        for i in 0.. {
            set(&engine, &format!("later {}", i % 50), &[2; 400]);
            if i % 100 == 0 {
                engine.maintain().unwrap();
                checkpoint();
            }
            if !buried.exists() {
                break;
            }
            assert!(i < 20_000, "the segment with the tombstones stays");
        }
        copy_files(true);
        let opened = open(copy.path(), &options());
        for key in &keys {
            assert_eq!(get(&opened, key), None, "{last}: {key}");
        }
        assert_sound(&opened);
    }
}

#[test]
fn a_quiet_copy_of_a_directory_in_use_has_everything() {
    let (dir, _engine) = two_versions(b"newer");
    let copy = kill(dir.path());
    let opened = open(copy.path(), &options());
    assert_eq!(get(&opened, "key").unwrap(), b"newer");
}

#[test]
fn after_a_power_cut_an_unsynced_torn_write_leaves_the_value_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &options());
    set(&engine, "key", b"the older value");
    engine.flush().unwrap();
    set(&engine, "key", &[7; 3000]);
    for lost in ["header", "body"] {
        let cut = kill(dir.path());
        after_power_cut(cut.path());
        let start = offset_of(cut.path(), b"the older value") / 512 * 512;
        let sector = if lost == "header" { start } else { start + 1024 };
        change_log(cut.path(), |bytes| {
            let from = if lost == "header" { offset_of(cut.path(), &[7; 50]) - 43 } else { sector };
            bytes[from..sector + 512].fill(0);
        });
        let after = open(cut.path(), &options());
        assert_eq!(get(&after, "key").unwrap(), b"the older value", "{lost}");
        assert_sound(&after);
        set(&after, "new", b"new");
        // The hole does not count as damage in the life after it.
        let killed = kill(cut.path());
        let again = open(killed.path(), &options());
        assert_eq!(get(&again, "key").unwrap(), b"the older value", "{lost}");
        assert_eq!(get(&again, "new").unwrap(), b"new", "{lost}");
    }
}

#[test]
fn after_a_power_cut_damage_of_what_was_synced_is_a_miss() {
    let (dir, engine) = two_versions(&with_zeros(b"newer"));
    // It notes that everything before it was synced.
    set(&engine, "later", b"later");
    for (at, is_cold) in [(20, false), (1000, false), (-30, true), (-43, true)] {
        let cut = kill(dir.path());
        after_power_cut(cut.path());
        let body = offset_of(cut.path(), b"newer") as i64;
        change_log(cut.path(), |bytes| bytes[(body + at) as usize] ^= 1);
        let after = open(cut.path(), &options());
        assert_eq!(get(&after, "key"), None, "{at}");
        assert_eq!(get(&after, "other").is_none(), is_cold, "{at}");
        assert_sound(&after);
    }
}
