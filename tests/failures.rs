//! Refusals of the operating system: the call fails with a typed error and changes nothing, and
//! once the refusals end, everything works. The tests inject them at named fail points of the
//! source.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dir::copy_as_killed;
use keepwarm::{Builder, Cache, Durability, ErrorKind, ManualClock, Swap, Timeout, Timestamp, Ttl};
use serde_json::Value;

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

/// Fail points are shared by all threads of the process, so this lets one test run at a time.
struct Faults(#[expect(dead_code, reason = "held until the test is over")] MutexGuard<'static, ()>);

impl Faults {
    fn begin() -> Self {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        Self(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, point: &str, action: &str) {
        fail::cfg(point, action).unwrap();
    }

    fn clear(&self, point: &str) {
        fail::remove(point);
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        for (point, _) in fail::list() {
            fail::remove(point);
        }
    }
}

fn builder(dir: &Path, durability: Durability, clock: &ManualClock) -> Builder {
    Cache::builder(dir)
        .max_bytes(1 << 20)
        .max_entries(500)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
        .durability(durability)
        .clock(clock.clone())
}

/// The values and expiries of all entries under versions 1 and 2.
type Contents = BTreeMap<String, (Value, Option<Timestamp>)>;

fn contents(cache: &Cache) -> Contents {
    let mut contents = Contents::new();
    for (version, cache) in [(1, cache.clone()), (2, cache.with_version(2))] {
        for key in cache.keys().map(Result::unwrap) {
            if key == "filler" {
                continue;
            }
            let (value, expires_at) = match cache.get_entry::<Value>(&key) {
                Ok(entry) => entry.map(|e| (e.value, e.expires_at)).unwrap(),
                Err(_) => {
                    let entry = cache.get_entry::<serde_bytes::ByteBuf>(&key).unwrap().unwrap();
                    (format!("{:?}", entry.value).into(), entry.expires_at)
                }
            };
            contents.insert(format!("{version}:{key}"), (value, expires_at));
        }
    }
    contents
}

fn contents_after_kill(dir: &Path, clock: &ManualClock) -> Contents {
    let copy = tempfile::tempdir().unwrap();
    copy_as_killed(dir, copy.path());
    let cache = builder(copy.path(), Durability::default(), clock).open().unwrap();
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    contents(&cache)
}

/// The result of a call.
type Done = keepwarm::Result<()>;

/// A name and a call.
type Call = (&'static str, fn(&Cache) -> Done);

/// Calls that write. Each changes the contents.
const CALLS: &[Call] = &[
    ("set", |c| c.set("text", "new", Timeout::Never)),
    ("set a new key", |c| c.set("absent", "new", Timeout::Never)),
    ("set to expire", |c| c.set("text", "new", Duration::from_secs(9))),
    ("set with a timeout of zero", |c| c.set("text", "new", Duration::ZERO)),
    ("set a large value", |c| c.set("text", &"new".repeat(40_000), Timeout::Never)),
    ("writer", |c| {
        let mut writer = c.writer("text", Timeout::Never)?;
        let written = (0..60).try_for_each(|n| writer.write_all(&[n; 2000]));
        written.map_err(|e| *e.into_inner().unwrap().downcast::<keepwarm::Error>().unwrap())?;
        writer.commit()
    }),
    ("set_bytes", |c| c.set_bytes("text", b"new", Timeout::Never)),
    ("set_many", |c| match c.set_many([("text", "new")], Timeout::Never).pop() {
        Some((_, e)) => Err(e),
        None => Ok(()),
    }),
    ("warm", |c| c.warm([("text", "new")], Timeout::Never).map(drop)),
    ("add", |c| c.add("absent", "new", Timeout::Never).map(drop)),
    ("touch", |c| c.touch("text", Duration::from_secs(9)).map(drop)),
    ("touch with a timeout of zero", |c| c.touch("text", Duration::ZERO).map(drop)),
    ("persist", |c| c.persist("number").map(drop)),
    ("incr", |c| c.incr("number", 1).map(drop)),
    ("decr", |c| c.decr("number", 1).map(drop)),
    ("incr_or_init", |c| c.incr_or_init("absent", 1, 1, Timeout::Never).map(drop)),
    ("delete", |c| c.delete("text").map(drop)),
    ("delete_many", |c| c.delete_many(&["text"]).into_iter().try_for_each(|r| r.map(drop))),
    ("incr_version", |c| c.incr_version("text", 1).map(drop)),
    ("compare_and_swap", |c| {
        let token = c.get_entry::<String>("text")?.map(|entry| entry.token);
        let swap = c.compare_and_swap("text", token, "new", Timeout::Never)?;
        assert!(matches!(swap, Swap::Stored(_)));
        Ok(())
    }),
    ("lease", |c| {
        c.lease("absent", Duration::from_secs(9)).map(|lease| std::mem::forget(lease.unwrap()))
    }),
    ("clear", |c| c.clear()),
];

/// Stores some entries, closes the cache and opens it again.
fn fill(cache: &Cache) {
    cache.set("text", "oldest", Timeout::Never).unwrap();
    cache.set("text", "old", Timeout::Never).unwrap();
    cache.set("number", &7, Duration::from_secs(60)).unwrap();
    for n in 0..20 {
        cache.set(&format!("other {n}"), &n, Timeout::Never).unwrap();
    }
    cache.close().unwrap();
    assert_eq!(contents(cache).len(), 22);
}

/// Fills the active segment to its last byte, so that the next write needs a new segment. Calls
/// `refuse` before the background thread can allocate that segment ahead of time.
fn use_up_segment(cache: &Cache, dir: &Path, refuse: impl FnOnce()) {
    const RECORD_HEADER: usize = 40;
    let key = "filler";
    cache.set_bytes(key, b"", Timeout::Never).unwrap();
    let newest =
        std::fs::read_dir(dir.join("segments")).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let end = (bytes.iter().rposition(|b| *b != 0).unwrap() + 1).next_multiple_of(8);
    refuse();
    let mut left = bytes.len() - end;
    while left > 0 {
        // A larger value would become a blob and not go into the segment.
        let record = if left > 8000 { 4000 } else { left };
        let value = vec![1; record - RECORD_HEADER - ":1:".len() - key.len()];
        cache.set_bytes(key, &value, Timeout::Never).unwrap();
        left -= record;
    }
}

/// Makes each call fail at `point` with `errno`, and checks that the contents did not change.
fn fail_each_call(faults: &Faults, point: &str, errno: i32, durability: Durability) {
    for (name, call) in CALLS {
        let what = format!("{name} with {errno} at {point}");
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let cache = builder(dir.path(), durability, &clock).open().unwrap();
        fill(&cache);
        let refuse = || faults.set(point, &format!("return({errno})"));
        if point == "sys::sync" {
            refuse()
        } else {
            use_up_segment(&cache, dir.path(), refuse)
        }
        let before = contents(&cache);
        let result = call(&cache);
        faults.clear(point);
        let error = result.expect_err(&format!("{what} succeeded"));
        let expected = if errno == ENOSPC { ErrorKind::NoSpace } else { ErrorKind::Io };
        assert_eq!(error.kind(), expected, "{what}: {error}");
        assert_eq!(contents(&cache), before, "{what}: {error}");
        assert_eq!(contents_after_kill(dir.path(), &clock), before, "{what}, and a kill");
        call(&cache).unwrap_or_else(|e| panic!("{what}, and again without the failure: {e}"));
        assert_ne!(contents(&cache), before, "{what}, and again without the failure");
        let report = cache.check().unwrap();
        assert!(report.is_sound(), "{what}: {:?}", report.problems);
    }
}

#[test]
fn a_call_that_cannot_get_a_segment_changes_nothing() {
    let faults = Faults::begin();
    for (point, errno) in [
        ("sys::create", EMFILE),
        ("sys::allocate", EIO),
        ("sys::allocate", ENOSPC),
        ("sys::write", EIO),
        ("sys::map", ENOMEM),
        ("sys::sync_dir", EIO),
    ] {
        fail_each_call(&faults, point, errno, Durability::default());
    }
}

// Shows invariant I17.
#[test]
fn a_call_that_cannot_be_synced_changes_nothing() {
    let faults = Faults::begin();
    fail_each_call(&faults, "sys::sync", EIO, Durability::Sync);
}

/// Stores values of 1000 bytes until the cache evicts.
fn fill_until_it_evicts(cache: &Cache) {
    for n in 0..1000 {
        cache.set(&n.to_string(), &"x".repeat(1000), Timeout::Never).unwrap();
    }
    assert!(cache.stats().evicted > 0);
}

#[test]
fn a_full_disk_evicts_less_than_a_quarter() {
    let faults = Faults::begin();
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let cache =
        builder(dir.path(), Durability::default(), &clock).max_entries(5000).open().unwrap();
    fill_until_it_evicts(&cache);
    let before = cache.len();
    faults.set("sys::allocate", &format!("return({ENOSPC})"));
    // More than the room left in the active segment and in the one allocated ahead of time.
    let failed = (0..100).any(|_| cache.set("new", &"x".repeat(1000), Timeout::Never).is_err());
    let gone = before - cache.len();
    println!("{gone} of {before} entries were evicted before the first call that failed");
    assert!(failed && gone < before / 4, "{gone} of {before} were evicted");
    faults.clear("sys::allocate");
    cache.set("new", "value", Timeout::Never).unwrap();
}

#[test]
fn a_segment_that_cannot_be_deleted_brings_back_no_entry() {
    let faults = Faults::begin();
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let cache = builder(dir.path(), Durability::default(), &clock).open().unwrap();
    cache.set("deleted", "old", Timeout::Never).unwrap();
    cache.set("changed", "old", Timeout::Never).unwrap();
    for n in 0..40 {
        cache.set(&n.to_string(), &"x".repeat(1000), Timeout::Never).unwrap();
    }
    cache.delete("deleted").unwrap();
    cache.set("changed", "new", Timeout::Never).unwrap();
    // The file of a segment with old values cannot be deleted, so it stays in the directory.
    faults.set("sys::remove", &format!("1*return({EIO})->off"));
    for n in 0..3000 {
        // Some of these may fail while the file cannot be deleted.
        let _ = cache.set(&(n % 100).to_string(), &"x".repeat(1000), Timeout::Never);
    }
    assert_eq!(cache.get::<String>("deleted").unwrap(), None);
    assert_ne!(cache.get::<String>("changed").unwrap().as_deref(), Some("old"));
    let after = contents_after_kill(dir.path(), &clock);
    assert!(!after.contains_key("1:deleted"), "a deleted entry is back");
    assert!(
        !after.get("1:changed").is_some_and(|(value, _)| *value == *"old"),
        "an old value is back"
    );
    assert!(cache.stats().bytes <= 1 << 20);
}

#[test]
fn a_slow_sync_evicts_no_extra_entries() {
    let faults = Faults::begin();
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let durability = Durability::Interval(Duration::from_secs(3600));
    let cache = builder(dir.path(), durability, &clock).max_entries(5000).open().unwrap();
    fill_until_it_evicts(&cache);
    let before = cache.len();
    // A writer that needs space waits for the disk. It does not evict more than it needs.
    faults.set("sys::sync", "delay(20)");
    for n in 0..300 {
        cache.set(&format!("more {n}"), &"x".repeat(1000), Timeout::Never).unwrap();
        assert!(cache.len() + 100 > before, "{} of {before} entries are left", cache.len());
    }
}

/// `incr_version` of a blob that is touched or deleted meanwhile moves the current entry, or fails
/// with `NotFound`.
#[test]
fn a_move_of_a_large_value_sees_a_concurrent_change() {
    let _faults = Faults::begin();
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let cache = builder(dir.path(), Durability::default(), &clock).open().unwrap();
    let value = vec![7; 100_000];
    let moved = cache.with_version(2);
    type Change = fn(&Cache);
    let deleted: Change = |cache| assert!(cache.delete("a").unwrap());
    let touched: Change = |cache| assert!(cache.touch("a", Duration::from_secs(100)).unwrap());
    for (change, is_there) in [(deleted, false), (touched, true)] {
        cache.set_bytes("a", &value, Timeout::Never).unwrap();
        let other = cache.clone();
        // The blob was found and its file is locked; no record under the new key names it yet.
        fail::cfg_callback("blob::pinned", move || {
            fail::remove("blob::pinned");
            change(&other);
        })
        .unwrap();
        let result = cache.incr_version("a", 1);
        cache.maintain().unwrap();
        assert_eq!(cache.get_bytes("a").unwrap(), None);
        if is_there {
            assert_eq!(result.unwrap(), 2);
            assert!(moved.get_bytes("a").unwrap().unwrap() == value);
            assert_eq!(moved.ttl("a").unwrap(), Some(Ttl::Remaining(Duration::from_secs(100))));
        } else {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(moved.get_bytes("a").unwrap(), None);
            assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
        }
    }
}

/// The fail points that an open or a close may pass.
const POINTS: [&str; 12] = [
    "sys::open",
    "sys::create",
    "sys::create_dir",
    "sys::allocate",
    "sys::write",
    "sys::sync",
    "sys::sync_dir",
    "sys::remove",
    "sys::rename",
    "sys::lock",
    "sys::map",
    "sys::msync",
];

/// How often each fail point is passed by an open of `dir`, and by the open and the close.
fn points_passed(
    dir: &Path,
    clock: &ManualClock,
) -> (BTreeMap<&'static str, u64>, BTreeMap<&'static str, u64>) {
    static COUNTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());
    *COUNTS.lock().unwrap() = POINTS.map(|point| (point, 0)).into();
    for point in POINTS {
        fail::cfg_callback(point, move || *COUNTS.lock().unwrap().entry(point).or_default() += 1)
            .unwrap();
    }
    let cache = builder(dir, Durability::default(), clock).open().unwrap();
    let by_open = COUNTS.lock().unwrap().clone();
    drop(cache);
    POINTS.into_iter().for_each(fail::remove);
    (by_open, COUNTS.lock().unwrap().clone())
}

#[test]
fn a_failed_open_or_close_loses_nothing() {
    let faults = Faults::begin();
    let clock = ManualClock::new();
    let home = tempfile::tempdir().unwrap();
    let (new, killed, closed) =
        (home.path().join("new"), home.path().join("killed"), home.path().join("closed"));
    std::fs::create_dir(&new).unwrap();
    std::fs::create_dir(&killed).unwrap();
    let cache = builder(&closed, Durability::default(), &clock).open().unwrap();
    fill(&cache);
    cache.set("text", "newest", Timeout::Never).unwrap();
    copy_as_killed(&closed, &killed);
    // The kill also left a file that was not renamed yet. The next open removes it.
    std::fs::write(killed.join(".keepwarm-0123456789abcdef"), b"unfinished").unwrap();
    let filled = contents(&cache);
    drop(cache);
    let (mut failed, mut passed) = (BTreeMap::<_, u64>::new(), BTreeMap::<_, u64>::new());
    for (from, expected) in [(&new, &Contents::new()), (&killed, &filled), (&closed, &filled)] {
        let copy = || {
            let copy = tempfile::tempdir().unwrap();
            copy_as_killed(from, copy.path());
            copy
        };
        let (by_open, by_both) = points_passed(copy().path(), &clock);
        by_both.iter().for_each(|(point, times)| *passed.entry(*point).or_default() += times);
        for (point, times) in by_open {
            for nth in 1..=times + 3 {
                let what = format!("{} with failure {nth} at {point}", from.display());
                let dir = copy();
                // Beyond `times`, the close fails.
                faults.set(point, &format!("{}*off->1*return({EIO})->off", nth - 1));
                match builder(dir.path(), Durability::default(), &clock).open() {
                    Ok(cache) => {
                        if nth <= times {
                            assert_eq!(contents(&cache), *expected, "{what}, at once");
                        }
                    }
                    Err(e) => {
                        *failed.entry(point).or_default() += 1;
                        assert!(matches!(e.kind(), ErrorKind::Io), "{what}: {e}");
                    }
                }
                faults.clear(point);
                let cache = builder(dir.path(), Durability::default(), &clock).open().unwrap();
                assert_eq!(contents(&cache), *expected, "{what}");
                let report = cache.check().unwrap();
                assert!(report.is_sound(), "{what}: {:?}", report.problems);
                cache.set("text", "again", Timeout::Never).unwrap();
            }
        }
    }
    println!("failed opens: {failed:?}");
    println!("points passed: {passed:?}");
    assert!(failed.values().sum::<u64>() > 20);
    assert!(failed.contains_key("sys::rename"), "no rename of a new directory failed");
    let never: Vec<_> = passed.iter().filter(|(_, times)| **times == 0).collect();
    assert!(never.is_empty(), "no open or close passes these points: {never:?}");
}

#[test]
fn a_network_file_system_is_refused_unless_it_is_allowed() {
    let faults = Faults::begin();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let builders: &[fn(&Path) -> Builder] = &[
        |dir| Builder::new(dir),
        #[cfg(feature = "sled")]
        |dir| Builder::sled(dir),
    ];
    for builder in builders {
        // NFS, SMB 2, 9p.
        for number in [0x6969_u32, 0xfe53_4d42, 0x0102_1997] {
            faults.set("sys::file_system", &format!("return({number})"));
            let error = builder(&dir).open().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NetworkFileSystem);
            assert_eq!(error.path(), Some(&*dir));
            assert!(error.to_string().contains("allow_network_file_system"), "{error}");
            assert!(!dir.exists(), "nothing was created");
        }
        builder(&dir).allow_network_file_system(true).open().unwrap().close().unwrap();
        assert_eq!(builder(&dir).open().unwrap_err().kind(), ErrorKind::NetworkFileSystem);
        // ext4, tmpfs, and FUSE. Nothing is mounted here, so FUSE is not known to be a network
        // file system.
        for number in [0xef53, 0x0102_1994, 0x6573_5546_u32] {
            faults.set("sys::file_system", &format!("return({number})"));
            builder(&dir).open().unwrap().set("a", &1, Timeout::Never).unwrap();
        }
        faults.set("sys::file_system", "return(x)");
        assert_eq!(builder(&dir).open().unwrap_err().kind(), ErrorKind::Io);
        faults.clear("sys::file_system");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
