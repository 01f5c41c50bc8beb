//! Directories that lost files, or whose files were damaged, while no process used them: the next
//! process opens them without manual work.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use keepwarm::{Cache, ErrorKind, Timeout};

use crate::foreign_locks::{KEYS, assert_right, filled_and_killed};
use crate::harness::Verdict;
use crate::worker::builder;

/// Removes the file, empties it, or fills it with bytes that mean nothing.
const SPOILS: [fn(&Path); 3] = [
    |path| fs::remove_file(path).unwrap(),
    |path| fs::write(path, "").unwrap(),
    |path| fs::write(path, [0x55; 3000]).unwrap(),
];

/// A killed or a closed directory.
fn filled(dir: &Path, is_killed: bool) {
    filled_and_killed(dir);
    if !is_killed {
        assert_right(dir);
    }
}

pub(crate) fn need_no_work() -> Verdict {
    // Without these, nothing is lost.
    for name in ["meta", "meta.copy", "index", "hints", "locks", "stats", "state"] {
        for (spoil, is_killed) in SPOILS.iter().flat_map(|s| [(s, true), (s, false)]) {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("cache");
            filled(&dir, is_killed);
            spoil(&dir.join(name));
            println!("{name}, killed: {is_killed}");
            assert_right(&dir);
            assert_right(&dir);
        }
    }
    // Of what these held, some may be missing.
    for name in ["segments", "blobs", "snapshot.a", "snapshot.b", "CACHEDIR.TAG"] {
        for is_killed in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("cache");
            filled(&dir, is_killed);
            let path = dir.join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap();
            } else if path.exists() {
                fs::remove_file(&path).unwrap();
            }
            let cache = builder(&dir).open().unwrap();
            for key in 0..KEYS {
                let found = cache.get::<u64>(&key.to_string()).unwrap();
                assert!(found.is_none_or(|value| value == 1 && key % 3 != 0), "{name}: {key}");
            }
            cache.set("new", &1, Timeout::Never).unwrap();
            drop(cache);
            assert_eq!(builder(&dir).open().unwrap().get("new").unwrap(), Some(1), "{name}");
        }
    }
    Ok(())
}

/// `meta` and its copy are both lost or damaged.
pub(crate) fn identity() -> Verdict {
    for (spoil, is_killed) in SPOILS.iter().flat_map(|s| [(s, true), (s, false)]) {
        let home = tempfile::tempdir().unwrap();
        let (dir, other) = (home.path().join("cache"), home.path().join("other"));
        filled(&dir, is_killed);
        let had_meta = |dir: &Path| dir.join("meta").exists();
        ["meta", "meta.copy"].iter().for_each(|name| spoil(&dir.join(name)));
        let is_damaged = had_meta(&dir);
        let copied = std::process::Command::new("cp").arg("-a").args([&dir, &other]).status();
        assert!(copied.unwrap().success());
        let cache = builder(&dir).open().unwrap();
        assert!(cache.is_empty(), "it starts cold");
        assert_eq!(dir.join("meta.damaged").exists(), is_damaged, "what was damaged is kept aside");
        cache.set("new", &1, Timeout::Never).unwrap();
        drop(cache);
        let cache = builder(&dir).open().unwrap();
        assert_eq!((cache.get("new").unwrap(), cache.len()), (Some(1), 1));
        assert!(cache.check().unwrap().is_sound());
        // Keys and values are in the log; a salvage reads them.
        let cache = builder(&other).salvage(true).open().unwrap();
        let found = (0..KEYS).filter(|key| cache.get::<u64>(&key.to_string()).unwrap() == Some(1));
        assert!(found.count() as u64 >= KEYS / 3 * 2);
    }
    Ok(())
}

pub(crate) fn foreign() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    for name in ["meta", "notes.txt"] {
        fs::write(home.path().join(name), "foreign").unwrap();
    }
    let error = Cache::open(home.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let mut names: Vec<_> =
        fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["meta", "notes.txt"]);
    assert_eq!(fs::read(home.path().join("meta")).unwrap(), b"foreign");
    Ok(())
}

pub(crate) fn times() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    filled(&dir, false);
    let old = SystemTime::now() - Duration::from_secs(9 * 24 * 60 * 60);
    let each = || walkdir::WalkDir::new(&dir).into_iter().map(|found| found.unwrap());
    for found in each() {
        let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
        fs::File::open(found.path()).unwrap().set_times(times).unwrap();
    }
    let cache = builder(&dir).open().unwrap();
    let recent = SystemTime::now() - Duration::from_secs(60 * 60);
    let is_fresh = || {
        each().all(|found| {
            // A file may be removed meanwhile.
            found.metadata().is_ok_and(|found| {
                found.modified().unwrap() > recent && found.accessed().unwrap() > recent
            })
        })
    };
    let started = std::time::Instant::now();
    while !is_fresh() {
        assert!(started.elapsed() < Duration::from_secs(60), "files in use have old times");
        std::thread::yield_now();
    }
    drop(cache);
    Ok(())
}
