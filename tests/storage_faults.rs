//! Each operation on a file fails, one after the other, in a scenario that comes by all of them: a
//! new directory, writes of all kinds, a clear, a checkpoint, a close, a reopening and a recovery.
//! Whatever fails, and with whatever error: each call returns a typed error and changes nothing, or
//! succeeds; all that was acknowledged is there after the faults have ended, but for what a full
//! disk, or one that syncs nothing any more, had evicted; the directory opens; the bounds hold.
//!
//! `KEEPWARM_FAULTS=all` tries every error at every position, which takes minutes;
//! `KEEPWARM_FAULTS=Sync` does so for one kind of operation. Without it a sample is tried, another
//! one for each `KEEPWARM_SEED`.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dir::copy_as_killed;
use keepwarm::faults::{Fault, Faults, Operation};
use keepwarm::{Builder, Cache, Durability, Error, ErrorKind, Timeout};
use tempfile::TempDir;

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// What each operation may come to: `Short`, the last, is for `Read` and `Write` only.
const FAULTS: [Fault; 6] = [
    Fault::Errno(EIO),
    Fault::Errno(ENOSPC),
    Fault::Errno(EMFILE),
    Fault::Errno(ENOMEM),
    Fault::Errno(EDQUOT),
    Fault::Short,
];

/// What this operation may come to.
fn faults_of(operation: Operation) -> &'static [Fault] {
    let can_be_short = matches!(operation, Operation::Read | Operation::Write);
    if can_be_short { &FAULTS } else { &FAULTS[..FAULTS.len() - 1] }
}

/// Room for all that the scenario writes: nothing has to be evicted where the disk refuses to sync
/// or to remove, without which no space is given back.
const MAX_BYTES: u64 = 4 << 20;
const MAX_ENTRIES: u64 = 500;

/// One run of the scenario: which operation fails, at which position, how, and whether those after
/// it fail too.
#[derive(Debug, Clone, Copy)]
struct Position {
    operation: Operation,
    nth: u64,
    fault: Fault,
    lasts: bool,
}

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir)
        .max_bytes(MAX_BYTES)
        .max_entries(MAX_ENTRIES)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
        .durability(Durability::Interval(Duration::from_secs(3600)))
}

/// A directory in memory if there is one: thousands of runs sync it.
fn scratch() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// What was acknowledged: the values that are there.
type Acknowledged = BTreeMap<String, Vec<u8>>;

/// A scenario under way.
struct Run {
    position: Option<Position>,
    acknowledged: Acknowledged,
    /// How many calls failed.
    refused: u64,
}

impl Run {
    fn assert_typed(&self, what: &str, error: &Error) {
        let is_typed = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace);
        assert!(is_typed, "{:?}: {what}: {:?}: {error}", self.position, error.kind());
    }

    /// Whether entries may be evicted: the disk is full for an operation that needs space or makes
    /// data durable, or it syncs nothing any more. Records in a segment that cannot be synced are
    /// copied to another; if that cannot be synced either, they are evicted. No other failure
    /// evicts anything, with whatever error number: a failed read, `stat` or map says nothing
    /// about space.
    fn may_evict(&self) -> bool {
        use Operation::{
            Allocate, Create, CreateDir, Rename, SetLen, Sync, SyncDir, SyncMap, Write,
        };
        let full = [Fault::Errno(ENOSPC), Fault::Errno(EDQUOT), Fault::Short];
        let needs_space =
            [Create, CreateDir, Write, SetLen, Allocate, Sync, SyncMap, SyncDir, Rename];
        self.position.is_some_and(|Position { operation, fault, lasts, .. }| {
            (full.contains(&fault) && needs_space.contains(&operation))
                || (lasts && [Sync, SyncMap].contains(&operation))
        })
    }

    /// Notes the effect of a call if it succeeded.
    fn call<T>(
        &mut self,
        what: &str,
        result: keepwarm::Result<T>,
        effect: impl FnOnce(&mut Acknowledged),
    ) {
        match result {
            Ok(_) => effect(&mut self.acknowledged),
            Err(error) => {
                self.refused += 1;
                self.assert_typed(what, &error);
            }
        }
    }

    fn set(&mut self, cache: &Cache, key: &str, value: &[u8]) {
        let result = cache.set_bytes(key, value, Timeout::Never);
        self.call(&format!("set {key}"), result, |there| {
            there.insert(key.to_owned(), value.to_owned());
        });
    }

    /// Reads everything: each key is as it was acknowledged. If `may_fail`, it may be unreadable
    /// now.
    fn read(&mut self, cache: &Cache, what: &str, may_fail: bool) {
        let mut evicted = 0;
        for key in KEYS {
            match cache.get_bytes(key) {
                Ok(value) => {
                    let expected = self.acknowledged.get(*key);
                    let len =
                        |value: Option<&Vec<u8>>| value.map(|v| (v.len(), v.first().copied()));
                    let is_evicted = value.is_none() && expected.is_some() && self.may_evict();
                    evicted += usize::from(is_evicted);
                    assert!(
                        is_evicted || value.as_deref() == expected.map(Vec::as_slice),
                        "{:?}: {key} {what} is {:?}, not {:?}",
                        self.position,
                        len(value.map(|v| v.to_vec()).as_ref()),
                        len(expected)
                    );
                }
                Err(error) => {
                    assert!(may_fail, "{:?}: {key} {what}: {error}", self.position);
                    self.refused += 1;
                    self.assert_typed("get", &error);
                }
            }
        }
        // One failure makes space by the eviction of some entries, never of all.
        let is_single = self.position.is_some_and(|position| !position.lasts);
        assert!(
            evicted == 0 || !is_single || evicted < self.acknowledged.len(),
            "{:?}: all {evicted} entries {what} are evicted",
            self.position
        );
    }
}

const KEYS: &[&str] =
    &["a", "b", "c", "large", "other large", "moved", "0", "1", "2", "3", "4", "5", "6", "7"];

/// The first life: what is asked of a new directory.
fn work(run: &mut Run, cache: &Cache) {
    for key in ["a", "b", "c"] {
        run.set(cache, key, b"first");
    }
    run.set(cache, "a", b"second");
    let deleted = cache.delete("b");
    run.call("delete", deleted, |there| drop(there.remove("b")));
    run.set(cache, "large", &[1; 100_000]);
    run.set(cache, "large", &[2; 70_000]);
    run.set(cache, "other large", &[3; 90_000]);
    let deleted = cache.delete("other large");
    run.call("delete a blob", deleted, |there| drop(there.remove("other large")));
    // Whole segments come to hold nothing that counts.
    for turn in 0..12u8 {
        for key in 0..8u8 {
            run.set(cache, &key.to_string(), &[turn * 8 + key; 3000]);
        }
    }
    let flushed = cache.flush();
    run.call("flush", flushed, |_| ());
    run.read(cache, "before the clear", true);
    let maintained = cache.maintain();
    run.call("maintain", maintained, |_| ());
    let cleared = cache.clear();
    run.call("clear", cleared, Acknowledged::clear);
    run.read(cache, "after the clear", true);
    let maintained = cache.maintain();
    run.call("maintain", maintained, |_| ());
    run.set(cache, "c", b"third");
    run.set(cache, "large", &[4; 80_000]);
    // A value of which two keys know.
    run.set(cache, "moved", &[5; 80_000]);
    let moved = cache.incr_version("moved", 1);
    match moved {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let is_there = run.acknowledged.contains_key("moved") && !run.may_evict();
            assert!(!is_there, "{:?}: incr_version: {error}", run.position);
        }
        moved => run.call("incr_version", moved, |there| drop(there.remove("moved"))),
    }
}

/// The whole scenario in two directories: one that is closed and opened again, and one that is as a
/// kill leaves it. Returns what was counted, and how many calls failed.
fn scenario(position: Option<Position>) -> (&'static Faults, u64) {
    let home = scratch();
    let (closed, killed) = (home.path().join("closed"), home.path().join("killed"));
    std::fs::create_dir(&killed).unwrap();
    let faults = Faults::new();
    let mut run = Run { position, acknowledged: Acknowledged::new(), refused: 0 };
    match position {
        Some(Position { operation, nth, fault, lasts: true }) => {
            faults.fail_from(operation, nth, fault)
        }
        Some(Position { operation, nth, fault, .. }) => faults.fail(operation, nth, fault),
        None => {}
    }
    let open = |dir: &Path| builder(dir).faults(faults).open();
    match open(&closed) {
        Ok(cache) => {
            work(&mut run, &cache);
            copy_as_killed(&closed, &killed);
            let result = cache.close();
            run.call("close", result, |_| ());
        }
        Err(error) => run.assert_typed("open a new directory", &error),
    }
    for dir in [&closed, &killed] {
        let before = run.acknowledged.clone();
        match open(dir) {
            Ok(cache) => {
                run.read(&cache, "after another opening", true);
                run.set(&cache, "a", b"last");
            }
            Err(error) => run.assert_typed("open", &error),
        }
        // From here on nothing fails: this is another opening, not behind the faults.
        let cache = builder(dir).open();
        let cache =
            cache.unwrap_or_else(|e| panic!("{position:?}: the directory does not open: {e}"));
        let what = format!("in {} after the faults", dir.file_name().unwrap().display());
        run.read(&cache, &what, false);
        assert!(cache.len() <= MAX_ENTRIES, "{position:?}: {} entries", cache.len());
        let bytes = cache.stats().bytes;
        assert!(bytes <= MAX_BYTES, "{position:?}: {bytes} bytes");
        let report = cache.check().unwrap();
        assert!(report.is_sound(), "{position:?}: {:?}", report.problems);
        cache.set_bytes("b", b"again", Timeout::Never).unwrap();
        assert_eq!(cache.get_bytes("b").unwrap().as_deref(), Some(&b"again"[..]));
        drop(cache);
        // The other directory is as it was before.
        run.acknowledged = before;
    }
    (faults, run.refused)
}

/// Numbers below `below`, the same for the same seed.
struct Sample(u64);

impl Sample {
    fn below(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The first positions, which are those of an opening, and others up to `count`.
fn sampled(count: u64, sample: &mut Sample) -> Vec<u64> {
    const FIRST: u64 = 4;
    const OTHERS: u64 = 6;
    let others = (FIRST + 1..=count).collect::<Vec<_>>();
    let mut positions: Vec<u64> = (1..=FIRST.min(count)).collect();
    if others.len() as u64 <= OTHERS {
        positions.extend(others);
    } else {
        positions.extend((0..OTHERS).map(|_| others[sample.below(others.len() as u64) as usize]));
    }
    positions
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost() {
    let seed = std::env::var("KEEPWARM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let all_of = std::env::var("KEEPWARM_FAULTS").unwrap_or_default();
    println!("KEEPWARM_SEED={seed}");
    let mut sample = Sample(seed);
    static CHECKPOINTS: AtomicU64 = AtomicU64::new(0);
    let count = || {
        CHECKPOINTS.fetch_add(1, Ordering::Relaxed);
    };
    fail::cfg_callback("checkpoint::counted", count).unwrap();
    let (without, refused) = scenario(None);
    fail::remove("checkpoint::counted");
    assert!(CHECKPOINTS.load(Ordering::Relaxed) > 0, "the scenario has no checkpoint");
    assert_eq!((without.injected(), refused), (0, 0));
    let (mut runs, mut injected, mut refused) = (0, 0, 0);
    let mut run = |operation, nth, fault, lasts| {
        let (faults, failed) = scenario(Some(Position { operation, nth, fault, lasts }));
        runs += 1;
        injected += faults.injected();
        refused += failed;
        faults.injected() > 0
    };
    for operation in Operation::ALL {
        let count = without.count(operation);
        assert!(count > 0, "the scenario has no {operation:?}");
        let faults = faults_of(operation);
        if all_of == "all" || all_of == format!("{operation:?}") {
            // Until a whole scenario passes.
            for (fault, lasts) in faults.iter().flat_map(|f| [(*f, false), (*f, true)]) {
                let all = (1..).take_while(|nth| run(operation, *nth, fault, lasts)).count();
                println!("{operation:?}, {fault:?}, lasts: {lasts}: {all} positions");
            }
            continue;
        }
        if !all_of.is_empty() {
            continue;
        }
        for nth in sampled(count, &mut sample) {
            let fault = faults[sample.below(faults.len() as u64) as usize];
            run(operation, nth, fault, sample.below(2) == 0);
        }
    }
    assert!(runs > 0, "KEEPWARM_FAULTS={all_of} is no kind of operation");
    println!("{runs} runs, {injected} faults, {refused} calls failed");
    assert!(!all_of.is_empty() || (injected > 50 && refused > 20));
}

/// The scenario itself checks that nothing is evicted. The file that cannot be mapped has its
/// blocks already.
#[test]
fn a_map_that_fails_as_on_a_full_disk_evicts_nothing() {
    for lasts in [false, true] {
        let fails = |nth: &u64| {
            let (operation, fault) = (Operation::Map, Fault::Errno(ENOSPC));
            let position = Position { operation, nth: *nth, fault, lasts };
            scenario(Some(position)).0.injected() > 0
        };
        let positions = (1..).take_while(fails).count();
        assert!(positions > 10, "{positions} maps, lasts: {lasts}");
    }
}

/// A failed read of what is known about a file is no damage: for damage an entry would be removed.
#[test]
fn a_large_value_stays_if_its_file_cannot_be_examined() {
    let dir = scratch();
    let faults = Faults::new();
    let cache = builder(dir.path()).faults(faults).open().unwrap();
    let value = vec![7; 100_000];
    cache.set_bytes("large", &value, Timeout::Never).unwrap();
    let mut refused = 0;
    for operation in [Operation::Open, Operation::Stat, Operation::Read, Operation::Map] {
        for nth in 1..=4 {
            faults.fail(operation, nth, Fault::Errno(EIO));
            match cache.get_bytes("large") {
                Ok(found) => assert!(found.as_deref() == Some(&value), "{operation:?} {nth}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{operation:?} {nth}: {error}");
                    refused += 1;
                }
            }
            faults.clear();
        }
    }
    assert!(refused >= 4, "{refused} calls failed");
}
