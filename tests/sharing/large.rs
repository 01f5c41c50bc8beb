//! Large values that many processes write, move, read and remove. Each value is a file that one
//! process creates and another may unlink.
//!
//! Shows invariants I27 and I30.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use keepwarm::{Builder, Cache, Error, ErrorKind, Timeout};

use crate::child_processes::{self, arguments, number};
use crate::harness::Verdict;
use crate::rng::{self, Rng};

const PROCESSES: u64 = 4;
const CALLS: u64 = 600;
const KEYS: u64 = 12;
const VERSIONS: u64 = 3;
const MAX_BYTES: u64 = 8 << 20;
/// The size of the largest value.
const LARGEST: u64 = 300 << 10;

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(500).max_bytes(MAX_BYTES).hot_bytes(0)
}

/// A value whose first word is the seed of the rest, so that a reader can check all of it.
fn value(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let words = 12_500 + rng.below(25_000);
    seed.to_le_bytes()
        .into_iter()
        .chain((0..words).flat_map(|_| rng.next().to_le_bytes()))
        .collect()
}

fn assert_whole(found: &[u8]) {
    let seed = u64::from_le_bytes(*found.first_chunk().unwrap());
    assert!(value(seed) == found, "{} bytes that begin with {seed}", found.len());
}

/// `None` for the errors that other processes may cause: they removed the entry, or took the space.
fn unless_lost<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NoSpace) => None,
        Err(e) => panic!("{e}: {:?}", e.kind()),
    }
}

/// Role: calls random operations, and prints how many values it read. Arguments: the directory, a
/// seed.
pub(crate) fn churn(arguments: &[String]) {
    let [dir, seed] = arguments else { panic!("{arguments:?}") };
    let (cache, mut rng) = (builder(Path::new(dir)).open().unwrap(), Rng::new(number(seed)));
    child_processes::wait_for_start();
    let (mut read, mut kept) = (0, Vec::new());
    for _ in 0..CALLS {
        let view = cache.with_version(1 + rng.below(VERSIONS) as i64);
        let key = rng.below(KEYS).to_string();
        match rng.below(10) {
            0..=2 => drop(unless_lost(view.set_bytes(&key, &value(rng.next()), Timeout::Never))),
            3..=5 => {
                if let Some(found) = view.get_bytes(&key).unwrap() {
                    assert_whole(&found);
                    read += 1;
                    // Held until the next read, while other processes remove the value.
                    kept = vec![found];
                }
            }
            6 => {
                if let Some(mut reader) = view.reader(&key).unwrap() {
                    let mut found = Vec::new();
                    reader.read_to_end(&mut found).unwrap();
                    assert_whole(&found);
                    read += 1;
                }
            }
            7 => drop(unless_lost(view.touch(&key, Duration::from_secs(1000)))),
            8 => drop(unless_lost(view.incr_version(&key, 1))),
            _ => drop(unless_lost(view.delete(&key))),
        }
        // A value that a process is storing at this moment may be counted twice.
        assert!(cache.stats().bytes <= MAX_BYTES + PROCESSES * LARGEST);
    }
    kept.iter().for_each(|found| assert_whole(found));
    assert_eq!(cache.stats().corrupt, 0, "an entry lost its file");
    println!("{read}");
}

pub(crate) fn are_whole_and_leave_no_files() -> Verdict {
    let mut rng = Rng::new(rng::seed());
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    cache.set("small", "small", Timeout::Never).unwrap();
    let before = cache.stats().bytes;
    let seeds: Vec<u64> = (0..PROCESSES).map(|_| rng.next()).collect();
    let printed = child_processes::run_together(
        "churn",
        seeds.iter().map(|seed| arguments![dir.display(), seed]),
    );
    let read: u64 = printed.iter().map(|line| number(line.trim())).sum();
    assert!(read > CALLS / 4, "only {read} values were read");
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    let (entries, files) = (report.blobs, fs::read_dir(dir.join("blobs")).unwrap().count());
    // This process created none of the files, and must remove them all.
    cache.clear().unwrap();
    cache.maintain().unwrap();
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
    let after = cache.stats().bytes;
    assert!(after <= before + (1 << 20), "{after} bytes in use, {before} at first");
    println!(
        "{PROCESSES} processes × {CALLS} calls on large values: {read} read whole, \
         {entries} in {files} files at the end"
    );
    Ok(())
}
