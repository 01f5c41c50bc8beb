//! The cost of the sled backend beside keepwarm's own file backend, in time and in space.
//!
//! `cargo bench --features sled --bench sled [-- DIR]` prints the table in `docs/operations.md`.
//! Values are incompressible, keys are visited in a shuffled order, and each read checks the length
//! of the value.

#![expect(clippy::print_stdout, reason = "the table is the output")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot continue should stop")]

use std::path::Path;
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Durability, Timeout};

const KEYS: u64 = 100_000;
const SYNCED: u64 = 500;

fn main() {
    let dir = std::env::args().nth(1).filter(|a| !a.starts_with('-'));
    let base = dir.map_or_else(std::env::temp_dir, Into::into);
    for len in [100, 1024] {
        println!("{KEYS} entries of {len} bytes");
        measure("keepwarm", &base, len, |dir| Builder::new(dir));
        measure("sled", &base, len, |dir| Builder::sled(dir));
    }
}

fn measure(name: &str, base: &Path, len: usize, builder: fn(&Path) -> Builder) {
    let home = tempfile::tempdir_in(base).unwrap();
    let dir = home.path().join("cache");
    let open = |durability| {
        let builder = builder(&dir).durability(durability).max_bytes(4 << 30).max_entries(KEYS * 2);
        builder.default_timeout(Timeout::Never).open().unwrap()
    };
    let cache = open(Durability::default());
    let mut value = Random(len as u64);
    let mut write = |cache: &Cache, from: u64, count: u64| {
        let value = value.bytes(len);
        each(count, |n| cache.set_bytes(&key(from + n), &value, Timeout::Never).unwrap())
    };
    println!("  {name}");
    let report = |what: &str, time: Duration, count: u64| {
        println!("    {what:28} {:8.2} us each", time.as_secs_f64() * 1e6 / count as f64);
    };
    let space = |what: &str, cache: &Cache| {
        cache.flush().unwrap();
        let bytes = disk_bytes(&dir);
        let stored = (KEYS * (len as u64 + key(0).len() as u64)) as f64;
        println!(
            "    {what:28} {:8.1} MB on disk, {:.2} x keys and values",
            bytes as f64 / 1e6,
            bytes as f64 / stored
        );
    };
    report("set, new keys", write(&cache, 0, KEYS), KEYS);
    space("after the load", &cache);
    report(
        "get",
        each(KEYS, |n| assert_eq!(cache.get_bytes(&key(n)).unwrap().unwrap().len(), len)),
        KEYS,
    );
    for _ in 0..2 {
        write(&cache, 0, KEYS);
    }
    report("set, overwriting", write(&cache, 0, KEYS), KEYS);
    space("after overwriting all thrice", &cache);
    let incremented =
        each(KEYS, |_| assert!(cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap() > 0));
    report("incr of one counter", incremented, KEYS);
    drop(cache);
    let started = Instant::now();
    let cache = open(Durability::default());
    report("open after a close", started.elapsed(), 1);
    let started = Instant::now();
    cache.clear().unwrap();
    report("clear", started.elapsed(), 1);
    cache.maintain().unwrap();
    drop(cache);
    let cache = open(Durability::Sync);
    space("cleared and opened again", &cache);
    report("set with Sync", write(&cache, 0, SYNCED), SYNCED);
}

fn key(n: u64) -> String {
    format!("a key of some length {n:09}")
}

/// Calls `work` with each number below `count`, in a shuffled order.
fn each(count: u64, work: impl Fn(u64)) -> Duration {
    let mut order: Vec<u64> = (0..count).collect();
    let mut random = Random(7);
    for at in (1..order.len()).rev() {
        order.swap(at, (random.next() % (at as u64 + 1)) as usize);
    }
    let started = Instant::now();
    order.into_iter().for_each(work);
    started.elapsed()
}

/// The total size of the blocks of all files below `dir`. A file deleted meanwhile counts 0.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let found = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| entry.and_then(|entry| entry.metadata()));
    let is_gone =
        |e: &walkdir::Error| e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    let there = found.filter(|found| !found.as_ref().is_err_and(is_gone)).map(Result::unwrap);
    there.filter(|m| m.is_file()).map(|m| m.blocks() * 512).sum()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
