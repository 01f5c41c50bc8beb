//! Planted faults: for each, the smallest scenario that must notice it. A scenario passes in a
//! process without the fault and fails in a process with it, so a check that finds nothing is
//! itself found.
//!
//! `planted!("NAME")` in the source asks for the fault; `KEEPWARM_PLANTED=NAME` in the environment
//! of a process plants it (feature `failpoints`).
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/home.rs"]
mod home;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Test, Verdict};
use keepwarm::faults::{Fault, Faults, Operation};
use keepwarm::observe::{self, Step};
use keepwarm::{Builder, Cache, Durability, ManualClock, Swap, Timeout};

/// The argument with which this program runs a scenario, and
const SCENARIO: &str = "--scenario";
/// the one with which it does the work of a scenario's process that is killed.
const VICTIM: &str = "--victim";
const PLANTED: &str = "KEEPWARM_PLANTED";

/// The name of a test, the fault that it plants, and the scenario that notices it.
type Case = (&'static str, &'static str, fn(&Path));

const CASES: &[Case] = &[
    ("the_check_of_a_body_is_skipped", "body check", a_damaged_value_is_a_miss),
    ("the_key_is_not_compared", "key", a_missing_key_is_a_miss),
    ("get_ignores_the_expiry", "expiry", an_expired_entry_is_a_miss),
    ("get_ignores_the_generation", "generation", a_cleared_entry_is_a_miss),
    ("a_delete_logs_no_tombstone", "tombstone", a_deleted_entry_stays_away_after_a_kill),
    ("an_insert_is_not_counted", "count", the_count_is_exact),
    ("max_entries_is_ignored", "max_entries", entries_are_bounded),
    ("max_bytes_is_ignored", "max_bytes", bytes_are_bounded),
    ("the_newest_is_evicted", "oldest", the_newest_entries_stay),
    ("an_eviction_is_not_marked_as_lost", "lost", a_delete_of_an_evicted_entry_lasts),
    ("a_replay_ignores_sequences", "highest sequence", the_newest_value_is_recovered),
    ("a_sequence_is_used_again", "sequence", tokens_are_unique),
    ("a_condition_is_ignored", "condition", a_swap_with_an_old_token_is_refused),
    ("a_write_is_not_synced", "sync of a write", a_durable_write_is_synced),
    ("the_names_are_not_synced", "sync of names", a_new_segment_has_a_durable_name),
    ("a_snapshot_syncs_no_segment", "sync of segments", nothing_is_removed_before_a_sync),
    ("the_check_of_a_blob_is_skipped", "check of a blob", a_damaged_large_value_is_a_miss),
    ("a_blob_in_use_is_removed", "names of a blob", a_large_value_survives_maintenance),
    ("a_death_is_not_recounted", "recount", the_count_is_right_after_a_death),
    ("an_error_of_a_listing_is_dropped", "error of a listing", a_failed_listing_loses_nothing),
    ("a_clear_is_not_logged", "record of a clear", a_cleared_entry_stays_away_after_a_kill),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [role, name, dir] if role == SCENARIO => {
            let (.., scenario) = CASES.iter().find(|(case, ..)| case == name).unwrap();
            scenario(Path::new(dir));
            return ExitCode::SUCCESS;
        }
        [role, work, dir] if role == VICTIM => {
            do_the_work(work, Path::new(dir));
        }
        _ => {}
    }
    // One function for each case, because a test has no arguments.
    macro_rules! tests {
        ($($at:literal)*) => { &[
            ("every_planted_fault_has_a_case", every_fault_has_a_case),
            $((CASES[$at].0, || is_noticed(&CASES[$at])),)*
        ] };
    }
    let tests: &[Test] = tests!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20);
    assert_eq!(tests.len(), CASES.len() + 1);
    harness::main(tests)
}

/// Starts a scenario in a process of its own, with `fault` planted if there is one.
fn start((name, ..): &Case, fault: Option<&str>, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([SCENARIO, name]).arg(dir).env_remove(PLANTED).stderr(Stdio::null());
    if let Some(fault) = fault {
        command.env(PLANTED, fault);
    }
    command.spawn().unwrap()
}

/// Whether the scenario passed. A process that hangs is ended, and fails the test.
fn passed(mut child: Child, name: &str) -> bool {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let code = status.code();
            // 101 is a panic: an assertion of the scenario.
            assert!(matches!(code, Some(0 | 101)), "{name}: {status:?}");
            return code == Some(0);
        }
        if started.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{name}: the scenario hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_noticed(case: &Case) -> Verdict {
    let (name, fault, _) = case;
    let (without, with) = (home::home(), home::home());
    let children = [start(case, None, without.path()), start(case, Some(fault), with.path())];
    let [without, with] = children.map(|child| passed(child, name));
    assert!(without, "{name}: the scenario fails without a fault");
    assert!(!with, "{name}: the scenario does not notice the fault");
    Ok(())
}

/// The names in the source, and those of the cases.
fn every_fault_has_a_case() -> Verdict {
    fn collect(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, names);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let named = text.split("planted!(\"").skip(1).filter_map(|rest| rest.split_once('"'));
            names.extend(named.map(|(name, _)| name.to_owned()));
        }
    }
    let mut names = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    let cases: BTreeSet<String> = CASES.iter().map(|(_, fault, _)| (*fault).to_owned()).collect();
    assert_eq!(names, cases);
    println!("{} planted faults", cases.len());
    Ok(())
}

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir)
        .max_bytes(1 << 20)
        .max_entries(1000)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
        .durability(Durability::Buffered)
}

fn open(dir: &Path) -> Cache {
    builder(dir).open().unwrap()
}

fn set(cache: &Cache, key: &str, value: &[u8]) {
    cache.set_bytes(key, value, Timeout::Never).unwrap();
}

fn has(cache: &Cache, key: &str) -> bool {
    cache.get_bytes(key).unwrap().is_some()
}

/// Runs a process that does `work` and is killed.
fn killed(work: &str, dir: &Path) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.args([VICTIM, work]).arg(dir).status().unwrap();
    assert_eq!(status.signal(), Some(9), "{work}");
}

/// Ends this process.
fn die() {
    let me = nix::unistd::Pid::this();
    nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The work of the processes that are killed.
fn do_the_work(work: &str, dir: &Path) {
    let cache = match work {
        "evicts" => builder(dir).max_entries(20).open().unwrap(),
        _ => open(dir),
    };
    match work {
        "deletes" => {
            set(&cache, "a", b"v");
            assert!(cache.delete("a").unwrap());
        }
        "evicts" => {
            set(&cache, "a", b"v");
            (0..100).for_each(|i| set(&cache, &format!("{i}"), b"v"));
            assert!(!cache.delete("a").unwrap(), "it was evicted");
            for i in 0..100 {
                cache.delete(&format!("{i}")).unwrap();
            }
        }
        "replaces" => {
            set(&cache, "a", b"old");
            (0..100).for_each(|i| set(&cache, &format!("{i}"), &[7; 1000]));
            set(&cache, "a", b"new");
        }
        "inserts" => {
            fail::cfg_callback("commit::counted", die).unwrap();
            set(&cache, "counted, not published", b"v");
        }
        "fills" => (0..100).for_each(|i| set(&cache, &format!("{i}"), &[7; 1000])),
        "clears" => {
            set(&cache, "a", b"v");
            cache.clear().unwrap();
        }
        other => panic!("{other}"),
    }
    // Before `cache` is dropped, which closes the directory.
    die();
}

/// Changes a byte in the middle of `value`, which a file below `dir` has.
fn damage(dir: &Path, value: &[u8]) {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let found = files.filter_map(|path| {
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(value.len()).position(|window| window == value)?;
        Some((path, bytes, at))
    });
    let (path, mut bytes, at): (PathBuf, _, _) = found.last().expect("the value is in a file");
    bytes[at + value.len() / 2] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn a_damaged_value_is_a_miss(dir: &Path) {
    set(&open(dir), "a", &[b'x'; 1000]);
    damage(&dir.join("segments"), &[b'x'; 1000]);
    assert!(!has(&open(dir), "a"));
}

fn a_missing_key_is_a_miss(dir: &Path) {
    let cache = open(dir);
    (0..600).for_each(|i| set(&cache, &format!("{i}"), b"v"));
    // Some have the same tag in the same chain as a key that is there.
    assert!((0..8000).all(|i| !has(&cache, &format!("missing {i}"))));
}

fn an_expired_entry_is_a_miss(dir: &Path) {
    let clock = ManualClock::new();
    let cache = builder(dir).clock(clock.clone()).open().unwrap();
    // The background may reap an entry before it is read.
    for _ in 0..100 {
        cache.set_bytes("a", b"v", Duration::from_secs(10)).unwrap();
        clock.advance(Duration::from_secs(11));
        assert!(!has(&cache, "a"));
    }
}

fn a_cleared_entry_is_a_miss(dir: &Path) {
    let cache = open(dir);
    // The background may sweep an entry before it is read.
    for _ in 0..100 {
        (0..50).for_each(|i| set(&cache, &format!("{i}"), b"v"));
        cache.clear().unwrap();
        assert!((0..50).all(|i| !has(&cache, &format!("{i}"))));
    }
}

fn a_deleted_entry_stays_away_after_a_kill(dir: &Path) {
    killed("deletes", dir);
    assert!(!has(&open(dir), "a"));
}

fn the_count_is_exact(dir: &Path) {
    let cache = open(dir);
    (0..10).for_each(|i| set(&cache, &format!("{i}"), b"v"));
    assert_eq!(cache.len(), 10);
}

fn entries_are_bounded(dir: &Path) {
    let cache = builder(dir).max_entries(50).open().unwrap();
    for i in 0..200 {
        set(&cache, &format!("{i}"), b"v");
        assert!(cache.len() <= 50);
    }
}

fn bytes_are_bounded(dir: &Path) {
    let cache = open(dir);
    for i in 0..400 {
        set(&cache, &format!("{i}"), &[7; 8000]);
        assert!(cache.stats().bytes <= 1 << 20);
    }
}

fn the_newest_entries_stay(dir: &Path) {
    let cache = builder(dir).max_entries(100_000).open().unwrap();
    (0..3000).for_each(|i| set(&cache, &format!("{i}"), &[7; 1000]));
    assert!((2900..3000).all(|i| has(&cache, &format!("{i}"))));
}

fn a_delete_of_an_evicted_entry_lasts(dir: &Path) {
    killed("evicts", dir);
    // Other evicted ones would push the first out again.
    let cache = builder(dir).max_entries(20).open().unwrap();
    assert_eq!(cache.keys().count(), 0);
}

fn the_newest_value_is_recovered(dir: &Path) {
    killed("replaces", dir);
    assert_eq!(open(dir).get_bytes("a").unwrap().as_deref(), Some(&b"new"[..]));
}

fn tokens_are_unique(dir: &Path) {
    let cache = open(dir);
    let token = || {
        cache.set("a", &1, Timeout::Never).unwrap();
        cache.get_entry::<u32>("a").unwrap().unwrap().token
    };
    assert_ne!(token(), token());
}

fn a_swap_with_an_old_token_is_refused(dir: &Path) {
    let cache = open(dir);
    cache.set("a", &1, Timeout::Never).unwrap();
    let token = Some(cache.get_entry::<u32>("a").unwrap().unwrap().token);
    let swap = || cache.compare_and_swap("a", token, &2, Timeout::Never).unwrap();
    assert!(matches!(swap(), Swap::Stored(_)));
    assert!(!matches!(swap(), Swap::Stored(_)));
}

/// The inode numbers of the segments.
fn segments(dir: &Path) -> BTreeSet<u64> {
    let files = fs::read_dir(dir.join("segments")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().ino()).collect()
}

/// The files that were synced since the last call.
fn watch_syncs() -> impl Fn() -> BTreeSet<u64> {
    let synced = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = synced.clone();
    observe::observe(Some(Arc::new(move |step| {
        if let Step::Synced(inode) = step {
            seen.lock().unwrap().insert(inode);
        }
    })));
    move || std::mem::take(&mut *synced.lock().unwrap())
}

fn a_durable_write_is_synced(dir: &Path) {
    let cache = builder(dir).durability(Durability::Sync).open().unwrap();
    set(&cache, "a", b"v");
    let synced = watch_syncs();
    set(&cache, "a", b"v");
    assert!(!synced().is_disjoint(&segments(dir)));
}

fn a_new_segment_has_a_durable_name(dir: &Path) {
    let unsynced = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = unsynced.clone();
    observe::observe(Some(Arc::new(move |step| match step {
        Step::Created(path) => drop(seen.lock().unwrap().insert(path.to_owned())),
        Step::SyncedNames(dir) => seen.lock().unwrap().retain(|path| path.parent() != Some(dir)),
        _ => {}
    })));
    let cache = builder(dir).durability(Durability::Sync).open().unwrap();
    set(&cache, "a", b"v");
    let id = "00000001.seg";
    assert!(dir.join("segments").join(id).exists(), "it has the value");
    let unsynced = unsynced.lock().unwrap();
    assert!(unsynced.iter().all(|path: &PathBuf| !path.ends_with(id)), "{unsynced:?}");
}

fn nothing_is_removed_before_a_sync(dir: &Path) {
    let cache = open(dir);
    (0..100).for_each(|i| set(&cache, &format!("{i}"), &[7; 1000]));
    (0..100).for_each(|i| assert!(cache.delete(&format!("{i}")).unwrap()));
    let before = segments(dir);
    let synced = watch_syncs();
    cache.maintain().unwrap();
    assert!(segments(dir).len() < before.len(), "some are removed");
    assert!(!synced().is_disjoint(&before));
}

fn with_a_large_value(dir: &Path) -> (Cache, Vec<u8>) {
    let cache = open(dir);
    let large: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    set(&cache, "large", &large);
    (cache, large)
}

fn a_damaged_large_value_is_a_miss(dir: &Path) {
    let (cache, large) = with_a_large_value(dir);
    drop(cache);
    damage(&dir.join("blobs"), &large[1000..3000]);
    assert!(!has(&open(dir), "large"));
}

fn a_large_value_survives_maintenance(dir: &Path) {
    let (cache, large) = with_a_large_value(dir);
    cache.maintain().unwrap();
    assert!(cache.get_bytes("large").unwrap().is_some_and(|value| value == large));
}

fn the_count_is_right_after_a_death(dir: &Path) {
    let cache = open(dir);
    set(&cache, "a", b"v");
    killed("inserts", dir);
    (0..2).for_each(|_| cache.maintain().unwrap());
    assert_eq!(cache.len(), 1);
}

fn a_failed_listing_loses_nothing(dir: &Path) {
    const EIO: i32 = 5;
    killed("fills", dir);
    // Opened with a fault at the first name of a listing, at the second, and so on.
    for nth in 1.. {
        let faults = Faults::new();
        faults.fail(Operation::ListEntry, nth, Fault::Errno(EIO));
        let opened = builder(dir).faults(faults).open();
        let has_failed = faults.injected() > 0;
        faults.clear();
        if let Ok(cache) = opened {
            assert!((0..100).all(|i| has(&cache, &format!("{i}"))), "listing {nth}");
        }
        if !has_failed {
            return;
        }
    }
}

fn a_cleared_entry_stays_away_after_a_kill(dir: &Path) {
    killed("clears", dir);
    assert!(!has(&open(dir), "a"));
}
