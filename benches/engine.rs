//! The cost of each operation of a cache on disk, through the public API.
//!
//! `cargo bench --bench engine` runs all benchmarks; `cargo bench --bench engine -- get_bytes` runs
//! some. Values are incompressible, keys are visited in a shuffled order, and reads check the
//! length of the value. Every figure is for one operation, on one thread unless the name says
//! otherwise.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot continue should stop")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use keepwarm::{Cache, Durability, Timeout};

/// Pseudo-random numbers, the same in every run.
struct Shuffle(u64);

impl Shuffle {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

fn value(len: usize) -> Vec<u8> {
    let mut shuffle = Shuffle(len as u64);
    (0..len).map(|_| shuffle.next() as u8).collect()
}

struct Loaded {
    cache: Cache,
    keys: Vec<String>,
    value: Vec<u8>,
    dir: tempfile::TempDir,
}

fn open(dir: &std::path::Path) -> Cache {
    Cache::builder(dir)
        .max_bytes(4 << 30)
        .durability(Durability::Buffered)
        .max_entries(2_000_000)
        .open()
        .unwrap()
}

fn load(entries: usize, len: usize) -> Loaded {
    let loaded = Loaded::empty(entries, len);
    loaded.fill();
    loaded
}

impl Loaded {
    fn empty(entries: usize, len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = (0..entries).map(|i| format!("key:{i:012}")).collect();
        Self { cache: open(dir.path()), keys, value: value(len), dir }
    }

    fn fill(&self) {
        for key in &self.keys {
            self.cache.set_bytes(key, &self.value, Timeout::Never).unwrap();
        }
    }

    fn key(&self, shuffle: &mut Shuffle) -> &str {
        &self.keys[shuffle.next() as usize % self.keys.len()]
    }
}

const SIZES: [(&str, usize, usize); 3] =
    [("100B", 1_000_000, 100), ("1KiB", 300_000, 1 << 10), ("16KiB", 30_000, 16 << 10)];

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(1));
    group
}

/// Reads and overwrites of existing entries.
fn operations(c: &mut Criterion) {
    for (name, entries, len) in SIZES {
        let loaded = load(entries, len);
        let mut group = group(c, name);
        let mut shuffle = Shuffle(1);
        group.bench_function("get_bytes", |b| {
            b.iter(|| {
                let read = loaded.cache.get_bytes(loaded.key(&mut shuffle)).unwrap().unwrap();
                assert_eq!(read.len(), len);
            });
        });
        group.bench_function("get_bytes, 1 in 100 keys", |b| {
            b.iter(|| {
                let key = &loaded.keys[shuffle.next() as usize % (entries / 100)];
                let read = loaded.cache.get_bytes(key).unwrap().unwrap();
                assert_eq!(read.len(), len);
            });
        });
        group.bench_function("get_bytes, 2 threads", |b| {
            b.iter_custom(|iterations| two_threads(&loaded, iterations, len));
        });
        group.bench_function("set_bytes, overwriting", |b| {
            b.iter(|| {
                loaded
                    .cache
                    .set_bytes(loaded.key(&mut shuffle), &loaded.value, Timeout::Never)
                    .unwrap()
            });
        });
    }
}

/// The time of `iterations` reads, divided between two threads.
fn two_threads(loaded: &Loaded, iterations: u64, len: usize) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let mut shuffle = Shuffle(thread + 2);
                for _ in 0..iterations.div_ceil(2) {
                    let read = loaded.cache.get_bytes(loaded.key(&mut shuffle)).unwrap().unwrap();
                    assert_eq!(read.len(), len);
                }
            });
        }
    });
    started.elapsed()
}

/// Writes of new entries into a new cache.
fn loading(c: &mut Criterion) {
    for (name, entries, len) in SIZES {
        let mut group = group(c, name);
        group.bench_function("set_bytes, new keys", |b| {
            // A fixed number of entries, so that a short run does not measure the allocation of the
            // first segment.
            b.iter_custom(|iterations| {
                let loaded = Loaded::empty(entries, len);
                let started = Instant::now();
                loaded.fill();
                started.elapsed().mul_f64(iterations as f64 / entries as f64)
            });
        });
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Profile {
    id: u64,
    name: String,
    scores: Vec<u32>,
}

/// A struct of twenty fields, like a row of a table that a program caches.
#[derive(serde::Serialize, serde::Deserialize)]
struct Row {
    id: u64,
    account: u64,
    name: String,
    email: String,
    street: String,
    city: String,
    country: String,
    language: String,
    created: i64,
    changed: i64,
    visits: u32,
    score: f64,
    balance: i64,
    is_active: bool,
    is_verified: bool,
    role: Option<String>,
    referrer: Option<u64>,
    latitude: f32,
    longitude: f32,
    tags: Vec<String>,
}

fn row(id: u64) -> Row {
    Row {
        id,
        account: 40_000 + id,
        name: format!("Customer Number {id}"),
        email: format!("customer.{id}@example.org"),
        street: "12 Long Lane".to_owned(),
        city: "Springfield".to_owned(),
        country: "NZ".to_owned(),
        language: "en".to_owned(),
        created: 1_600_000_000,
        changed: 1_700_000_000,
        visits: 1234,
        score: 0.75,
        balance: -1250,
        is_active: true,
        is_verified: false,
        role: Some("editor".to_owned()),
        referrer: None,
        latitude: -36.85,
        longitude: 174.76,
        tags: ["new", "beta", "weekly"].map(str::to_owned).to_vec(),
    }
}

/// `get` beside `get_shared`, which does not decode again: one row, and a thousand rows in a
/// shuffled order.
fn shared(c: &mut Criterion) {
    let loaded = Loaded::empty(1000, 0);
    let cache = &loaded.cache;
    for (id, key) in (0..).zip(&loaded.keys) {
        cache.set(key, &row(id), Timeout::Never).unwrap();
    }
    let mut group = group(c, "20 fields");
    for (name, keys) in [("one", &loaded.keys[..1]), ("1,000", &loaded.keys[..])] {
        let mut shuffle = Shuffle(1);
        group.bench_function(format!("get, {name}"), |b| {
            b.iter(|| {
                let n = shuffle.next() as usize % keys.len();
                let read: Row = cache.get(&keys[n]).unwrap().unwrap();
                assert_eq!(read.id, n as u64);
                read
            });
        });
        group.bench_function(format!("get_shared, {name}"), |b| {
            b.iter(|| {
                let n = shuffle.next() as usize % keys.len();
                let read = cache.get_shared::<Row>(&keys[n]).unwrap().unwrap();
                assert_eq!(read.id, n as u64);
                read
            });
        });
    }
}

/// Typed values, counters, and reads of many keys in one call.
fn typed(c: &mut Criterion) {
    let loaded = load(100_000, 100);
    let cache = &loaded.cache;
    let mut group = group(c, "typed");
    let profile =
        Profile { id: 7, name: "customer".to_owned(), scores: vec![1, 2, 3, 500, 70_000] };
    cache.set("profile", &profile, Timeout::Never).unwrap();
    group.bench_function("get, a struct", |b| {
        b.iter(|| cache.get::<Profile>("profile").unwrap().unwrap().id)
    });
    group.bench_function("set, a struct", |b| {
        b.iter(|| cache.set("profile", &profile, Timeout::Never).unwrap())
    });
    cache.set("counter", &0, Timeout::Never).unwrap();
    group.bench_function("incr, one counter", |b| b.iter(|| cache.incr("counter", 1).unwrap()));
    let keys: Vec<&String> = loaded.keys.iter().step_by(997).take(100).collect();
    keys.iter().for_each(|key| cache.set(key, &7u64, Timeout::Never).unwrap());
    group.throughput(Throughput::Elements(keys.len() as u64));
    group.bench_function("get_many, 100 keys", |b| {
        b.iter(|| black_box(cache.get_many::<u64, _>(&keys)).len());
    });
}

/// Opening a directory with a million entries.
fn reopening(c: &mut Criterion) {
    let Loaded { cache, dir, .. } = load(1_000_000, 100);
    let mut group = group(c, "reopen");
    // A killed process leaves the files as they are while the cache is open.
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    group.bench_function("1M x 100B, after a kill", |b| {
        b.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let again = tempfile::tempdir().unwrap();
                copy(killed.path(), again.path());
                let started = Instant::now();
                let cache = open(again.path());
                elapsed += started.elapsed();
                assert_eq!(cache.len(), 1_000_000);
            }
            elapsed
        });
    });
    drop(cache);
    group.bench_function("1M x 100B, after close", |b| {
        b.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let started = Instant::now();
                let cache = open(dir.path());
                elapsed += started.elapsed();
                assert_eq!(cache.len(), 1_000_000);
            }
            elapsed
        });
    });
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

criterion_group!(benches, operations, loading, typed, shared, reopening);
criterion_main!(benches);
