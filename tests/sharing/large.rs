//! Large values that many processes write, move, read and remove: each lies in a file, which one of them makes and
//! another unlinks.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use keepwarm::{Builder, Cache, Error, ErrorKind, Timeout};

use crate::crew::{self, arguments, number};
use crate::harness::Verdict;
use crate::rng::{self, Rng};

const PROCESSES: u64 = 4;
const CALLS: u64 = 600;
const KEYS: u64 = 12;
const VERSIONS: u64 = 3;
const MAX_BYTES: u64 = 8 << 20;
/// What the largest value takes.
const LARGEST: u64 = 300 << 10;

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(500).max_bytes(MAX_BYTES).hot_bytes(0)
}

/// A value that says itself how it goes on.
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

/// What others do to an entry meanwhile, or to the space that it needs.
fn unless_lost<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NoSpace) => None,
        Err(e) => panic!("{e}: {:?}", e.kind()),
    }
}

/// A process: the directory and a seed. Says how many values it read.
pub(crate) fn churn(arguments: &[String]) {
    let [dir, seed] = arguments else { panic!("{arguments:?}") };
    let (cache, mut rng) = (builder(Path::new(dir)).open().unwrap(), Rng::new(number(seed)));
    crew::ready();
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
                    // Others remove it meanwhile.
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
        // What each is just making may be counted twice.
        assert!(cache.stats().bytes <= MAX_BYTES + PROCESSES * LARGEST);
    }
    kept.iter().for_each(|found| assert_whole(found));
    assert_eq!(cache.stats().corrupt, 0, "an entry lost its file");
    println!("{read}");
}

pub(crate) fn values_are_whole_and_nothing_is_left() -> Verdict {
    let mut rng = Rng::new(rng::seed());
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    cache.set("small", "small", Timeout::Never).unwrap();
    let before = cache.stats().bytes;
    let seeds: Vec<u64> = (0..PROCESSES).map(|_| rng.next()).collect();
    let said = crew::together("churn", seeds.iter().map(|seed| arguments![dir.display(), seed]));
    let read: u64 = said.iter().map(|line| number(line.trim())).sum();
    assert!(read > CALLS / 4, "only {read} values were read");
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    let (entries, files) = (report.blobs, fs::read_dir(dir.join("blobs")).unwrap().count());
    // This process made none of them.
    cache.clear().unwrap();
    cache.maintain().unwrap();
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
    let after = cache.stats().bytes;
    assert!(after <= before + (1 << 20), "{after} bytes in use, {before} at first");
    println!(
        "{PROCESSES} processes × {CALLS} calls on large values: {read} read whole, {entries} in {files} files at the end"
    );
    Ok(())
}
