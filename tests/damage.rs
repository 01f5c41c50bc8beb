//! Damaged files: whatever happens to a file of a closed or killed cache, `open` returns a typed
//! error or a cache in which each entry is unchanged or missing. Never a wrong value, a panic or a
//! hang; and never an older value, unless the damage destroyed the newer record in the log of a
//! killed cache.
//!
//! `KEEPWARM_DAMAGE=all` flips every bit of every byte; the default is a selection.
//!
//! Shows invariants I1, I5 and I32 (the hints).
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/home.rs"]
mod home;
#[path = "support/rng.rs"]
mod rng;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dir::copy_as_killed;
use home::home;
use keepwarm::{Cache, ErrorKind, Timeout};
use rng::Rng;

fn open(dir: &Path) -> keepwarm::Result<Cache> {
    Cache::builder(dir)
        .max_bytes(1 << 20)
        .max_entries(60)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
        .open()
}

/// File contents by path within the directory. Directories have no entry.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A directory before the damage, and its contents.
struct Original {
    files: Files,
    /// The versions of each key, oldest first; `None` is a deletion.
    keys: BTreeMap<String, Vec<Option<String>>>,
    killed: bool,
}

fn read(dir: &Path, within: &Path, files: &mut Files) {
    for entry in fs::read_dir(dir).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), within.join(e.file_name()))).unwrap();
        if path.is_dir() {
            read(&path, &name, files);
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

impl Original {
    fn new(killed: bool) -> Self {
        let home = home();
        let cache = open(home.path()).unwrap();
        let mut keys: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        let mut set = |key: &str, len: usize| {
            let versions = keys.entry(key.to_owned()).or_default();
            let value = format!("{key} version {:5} {}", versions.len(), "x".repeat(len));
            cache.set_bytes(key, value.as_bytes(), Timeout::Never).unwrap();
            versions.push(Some(value));
        };
        // Consecutive records of 64 bytes: one flipped bit of an offset leads from one version to
        // another.
        for _ in 0..24 {
            set("a", 0);
        }
        for _ in 0..3 {
            for n in 0..8 {
                set(&format!("key {n}"), n);
            }
            set("large", 9000);
        }
        for n in 0..3 {
            let key = format!("key {n}");
            assert!(cache.delete(&key).unwrap());
            keys.get_mut(&key).unwrap().push(None);
        }
        let mut files = Files::new();
        if killed {
            let copy = tempfile::tempdir().unwrap();
            copy_as_killed(home.path(), copy.path());
            read(copy.path(), Path::new(""), &mut files);
        }
        drop(cache);
        if !killed {
            read(home.path(), Path::new(""), &mut files);
        }
        Self { files, keys, killed }
    }

    /// The length of the file up to its last byte that is not 0.
    fn used(&self, name: &Path) -> usize {
        self.files[name].iter().rposition(|b| *b != 0).map_or(0, |at| at + 1)
    }

    fn segments(&self) -> Vec<&PathBuf> {
        self.files.keys().filter(|name| name.starts_with("segments")).collect()
    }

    fn put(&self, dir: &Path) {
        for name in ["segments", "blobs"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// Whether a read of `key` may return `found`. `log_damaged` is whether the damage was to the
    /// log.
    fn allows(&self, key: &str, found: Option<&[u8]>, log_damaged: bool) -> bool {
        let Some(versions) = self.keys.get(key) else { return found.is_none() };
        let is = |version: &Option<String>| version.as_deref().map(str::as_bytes) == found;
        found.is_none()
            || versions.last().is_some_and(is)
            || self.killed && log_damaged && versions.iter().any(is)
    }
}

/// One damage to a directory.
#[derive(Debug, Clone)]
enum Damage {
    Flip { name: PathBuf, at: usize, mask: u8 },
    Cut { name: PathBuf, len: usize },
    Longer { name: PathBuf },
    Removed { name: PathBuf },
    Random { name: PathBuf, seed: u64 },
    Zeros { name: PathBuf },
    Directory { name: PathBuf },
    Pipe { name: PathBuf },
    Link { name: PathBuf },
    SecondName { name: PathBuf },
    OtherSegment { name: PathBuf, other: PathBuf },
    LinkedDirectory { name: PathBuf },
}

impl Damage {
    fn name(&self) -> &Path {
        match self {
            Self::Flip { name, .. }
            | Self::Cut { name, .. }
            | Self::Longer { name }
            | Self::Removed { name }
            | Self::Random { name, .. }
            | Self::Zeros { name }
            | Self::Directory { name }
            | Self::Pipe { name }
            | Self::Link { name }
            | Self::SecondName { name }
            | Self::OtherSegment { name, .. }
            | Self::LinkedDirectory { name } => name,
        }
    }

    /// Applies the damage. `elsewhere` is a directory that the cache must not change afterwards.
    fn inflict(&self, original: &Original, dir: &Path, elsewhere: &Path) -> io::Result<()> {
        let path = dir.join(self.name());
        let outside = elsewhere.join("outside");
        let bytes = |name: &Path| original.files[name].clone();
        match self {
            Self::Flip { name, at, mask } => {
                let mut bytes = bytes(name);
                bytes[*at] ^= mask;
                fs::write(path, bytes)
            }
            Self::Cut { name, len } => fs::write(path, &bytes(name)[..*len]),
            Self::Longer { name } => fs::write(path, [bytes(name), vec![7; 5000]].concat()),
            Self::Removed { .. } => fs::remove_file(path),
            Self::Random { name, seed } => {
                let mut rng = Rng::new(*seed);
                fs::write(
                    path,
                    bytes(name).iter().map(|_| rng.below(256) as u8).collect::<Vec<_>>(),
                )
            }
            Self::Zeros { name } => fs::write(path, vec![0; bytes(name).len()]),
            Self::Directory { .. } => fs::remove_file(&path).and_then(|()| fs::create_dir(path)),
            Self::Pipe { .. } => {
                fs::remove_file(&path)?;
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).map_err(io::Error::from)
            }
            Self::Link { .. } => {
                fs::rename(&path, &outside)?;
                symlink(&outside, path)
            }
            Self::SecondName { .. } => fs::hard_link(path, outside),
            Self::OtherSegment { other, .. } => fs::write(path, bytes(other)),
            Self::LinkedDirectory { .. } => {
                fs::rename(&path, &outside)?;
                symlink(&outside, path)
            }
        }
    }

    /// Whether the damage is to the log, so that it may have destroyed the newer of two records.
    fn is_of_log(&self) -> bool {
        self.name().starts_with("segments")
    }

    /// Whether a link leads out of the directory, where the cache must change nothing.
    fn leads_out(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::SecondName { .. } | Self::LinkedDirectory { .. })
    }
}

/// Counts of the outcomes.
#[derive(Debug, Default)]
struct Tally {
    cases: AtomicU64,
    refused: AtomicU64,
    missing: AtomicU64,
    present: AtomicU64,
}

/// Damages a copy of the original, opens it, reads everything, writes, and opens it again.
fn try_damage(original: &Original, damage: &Damage, rng: &mut Rng, tally: &Tally) {
    let (home, elsewhere) = (home(), home());
    original.put(home.path());
    damage.inflict(original, home.path(), elsewhere.path()).unwrap();
    let mut outside = Files::new();
    if damage.leads_out() {
        read(elsewhere.path(), Path::new(""), &mut outside);
    }
    tally.cases.fetch_add(1, Ordering::Relaxed);
    let cache = match open(home.path()) {
        Ok(cache) => cache,
        Err(e) => {
            use ErrorKind::{Corrupt, Io, NotACache, UnsupportedFormat};
            assert!(
                matches!(e.kind(), Corrupt | Io | NotACache | UnsupportedFormat),
                "{damage:?}: {e}"
            );
            tally.refused.fetch_add(1, Ordering::Relaxed);
            assert_untouched(damage, elsewhere.path(), &outside);
            return;
        }
    };
    let judge = |key: &str, found: Option<&[u8]>| {
        assert!(
            original.allows(key, found, damage.is_of_log()),
            "{damage:?}: {key:?} is {:?}",
            found.map(String::from_utf8_lossy)
        );
    };
    if rng.below(2) == 0 {
        for item in cache.iter::<serde_bytes::ByteBuf>() {
            let (key, value) = item.unwrap();
            judge(&key, Some(&value));
        }
    }
    let mut held = Vec::new();
    for key in original.keys.keys() {
        let found = cache.get_bytes(key).unwrap();
        judge(key, found.as_deref());
        let counter = if found.is_some() { &tally.present } else { &tally.missing };
        counter.fetch_add(1, Ordering::Relaxed);
        held.extend(found.map(|bytes| (key, bytes)));
    }
    cache.check().unwrap();
    // The cache still works: new writes are readable now and after the next open.
    for key in original.keys.keys() {
        match rng.below(3) {
            0 => cache.set(key, "new", Timeout::Never).unwrap(),
            1 => {
                let before = cache.contains_key(key).unwrap();
                assert_eq!(
                    cache.add(key, "new", Timeout::Never).unwrap(),
                    !before,
                    "{damage:?}: {key:?}"
                );
                cache.set(key, "new", Timeout::Never).unwrap();
            }
            _ => {
                cache.delete(key).unwrap();
                assert!(!cache.contains_key(key).unwrap(), "{damage:?}: {key:?}");
                assert!(cache.add(key, "new", Timeout::Never).unwrap(), "{damage:?}: {key:?}");
            }
        }
        assert_eq!(
            cache.get::<String>(key).unwrap().as_deref(),
            Some("new"),
            "{damage:?}: {key:?}"
        );
    }
    drop(cache);
    held.iter().for_each(|(key, bytes)| judge(key, Some(bytes)));
    let cache = open(home.path()).unwrap();
    for key in original.keys.keys() {
        let found = cache.get::<String>(key).unwrap();
        assert_eq!(found.as_deref(), Some("new"), "{damage:?}: {key:?}, after another open");
    }
    cache.clear().unwrap();
    assert_eq!(cache.len(), 0, "{damage:?}");
    drop(cache);
    assert_untouched(damage, elsewhere.path(), &outside);
}

fn assert_untouched(damage: &Damage, elsewhere: &Path, outside: &Files) {
    if damage.leads_out() {
        let mut found = Files::new();
        read(elsewhere, Path::new(""), &mut found);
        assert!(found == *outside, "{damage:?}: a file outside the directory was changed");
    }
}

/// The state of a worker thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Idle,
    On(usize, Instant),
    Done,
}

/// Sets `Work::Done` when its thread ends, also by a panic.
struct Done<'a>(&'a Mutex<Work>);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap() = Work::Done;
    }
}

/// Tries all damages, on as many threads as there are processors but at most four. Aborts if one
/// takes longer than `FOREVER`.
fn try_all(original: &Original, damages: &[Damage]) {
    /// Far more than one case takes, also on a busy machine.
    const FOREVER: Duration = Duration::from_secs(200);
    /// More threads would need more memory than some machines have in `/dev/shm`.
    const MOST_WORKERS: usize = 4;
    let (seed, tally, next) = (rng::seed(), Tally::default(), AtomicUsize::new(0));
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(MOST_WORKERS);
    let at_work: Vec<Mutex<Work>> = (0..workers).map(|_| Mutex::new(Work::Idle)).collect();
    std::thread::scope(|scope| {
        for mine in &at_work {
            let (tally, next) = (&tally, &next);
            scope.spawn(move || {
                let _done = Done(mine);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(damage) = damages.get(number) else { break };
                    *mine.lock().unwrap() = Work::On(number, Instant::now());
                    try_damage(original, damage, &mut Rng::new(seed ^ number as u64), tally);
                }
            });
        }
        scope.spawn(|| {
            while at_work.iter().any(|work| *work.lock().unwrap() != Work::Done) {
                std::thread::sleep(Duration::from_millis(20));
                for work in &at_work {
                    if let Work::On(number, since) = *work.lock().unwrap()
                        && since.elapsed() > FOREVER
                    {
                        // Not `eprintln!`: the test harness captures its output, and the abort
                        // would discard it.
                        let _ = writeln!(io::stderr(), "{:?} takes forever", damages[number]);
                        std::process::abort();
                    }
                }
            }
        });
    });
    println!("{tally:?}");
    assert_eq!(tally.cases.into_inner(), damages.len() as u64);
}

fn everything() -> bool {
    std::env::var("KEEPWARM_DAMAGE").is_ok_and(|what| what == "all")
}

/// Flips of the byte at `at`: all eight single bits, or one of them.
fn flips(name: &Path, at: usize, each_bit: bool, rng: &mut Rng, damages: &mut Vec<Damage>) {
    let masks: Vec<u8> = if each_bit || everything() {
        (0..8).map(|bit| 1 << bit).collect()
    } else {
        vec![1 << rng.below(8)]
    };
    damages.extend(masks.into_iter().map(|mask| Damage::Flip { name: name.to_owned(), at, mask }));
}

/// The index: where its header ends, and where the segment table starts, with the buckets behind.
const INDEX_HEADER: usize = 64 * 8;
const SEGMENT_TABLE: usize = (512 + 4 * 1024) * 8;

fn flips_of(original: &Original, files: &[&str]) -> Vec<Damage> {
    let mut rng = Rng::new(1);
    let mut damages = Vec::new();
    for name in original.files.keys().filter(|name| files.iter().any(|f| name.starts_with(f))) {
        let bytes = &original.files[name];
        for at in 0..bytes.len() {
            let line = &bytes[at / 64 * 64..(at / 64 * 64 + 64).min(bytes.len())];
            let is_empty = line.iter().all(|b| *b == 0);
            let is_bucket = name == Path::new("index") && at >= SEGMENT_TABLE && !is_empty;
            let chosen = match name.to_str().unwrap() {
                "meta" | "CACHEDIR.TAG" | "locks" => true,
                "state" => at % 1024 < 620 || rng.below(50) == 0,
                // After a kill these are discarded whole.
                "index" | "hints" if original.killed => rng.below(400) == 0,
                "index" => at < INDEX_HEADER || is_bucket || rng.below(200) == 0,
                "hints" => !is_empty && rng.below(4) == 0 || rng.below(200) == 0,
                // The bytes of the long value are all alike.
                _ => {
                    at < original.used(name) + 64 && (!is_long(line) || rng.below(60) == 0)
                        || rng.below(2000) == 0
                }
            };
            if chosen || everything() {
                // The bits of a record's location or of a chain lock.
                let each_bit = is_bucket && !original.killed && at % 8 < 3;
                flips(name, at, each_bit, &mut rng, &mut damages);
            }
        }
    }
    assert!(damages.len() > 50, "{files:?}: {}", damages.len());
    damages
}

fn is_long(line: &[u8]) -> bool {
    line.iter().filter(|b| **b == b'x').count() > 50
}

const SMALL: [&str; 4] = ["meta", "state", "locks", "CACHEDIR.TAG"];

#[test]
fn flipped_bits_of_small_files_give_no_wrong_value() {
    for killed in [false, true] {
        let original = Original::new(killed);
        try_all(&original, &flips_of(&original, &SMALL));
    }
}

#[test]
fn flipped_bits_of_index_and_hints_give_no_wrong_value() {
    for killed in [false, true] {
        let original = Original::new(killed);
        try_all(&original, &flips_of(&original, &["index", "hints"]));
    }
}

#[test]
fn flipped_bits_of_a_closed_log_give_no_wrong_value() {
    let original = Original::new(false);
    try_all(&original, &flips_of(&original, &["segments"]));
}

#[test]
fn flipped_bits_of_a_killed_log_give_no_wrong_value() {
    let original = Original::new(true);
    try_all(&original, &flips_of(&original, &["segments"]));
}

#[test]
fn cut_removed_or_replaced_files_give_no_wrong_value() {
    for killed in [false, true] {
        let original = Original::new(killed);
        let mut rng = Rng::new(2);
        let mut damages = Vec::new();
        for (name, bytes) in &original.files {
            let name = || name.clone();
            let used = original.used(&name());
            let mut lens = vec![
                0,
                1,
                7,
                39,
                63,
                64,
                65,
                100,
                1024,
                4096,
                used / 2,
                used,
                used + 1,
                bytes.len() / 2,
            ];
            lens.extend([bytes.len().saturating_sub(4096), bytes.len().saturating_sub(1)]);
            lens.retain(|len| *len < bytes.len());
            lens.sort_unstable();
            lens.dedup();
            damages.extend(lens.into_iter().map(|len| Damage::Cut { name: name(), len }));
            damages.extend([
                Damage::Longer { name: name() },
                Damage::Removed { name: name() },
                Damage::Zeros { name: name() },
                Damage::Directory { name: name() },
                Damage::Pipe { name: name() },
                Damage::Link { name: name() },
                Damage::SecondName { name: name() },
            ]);
            damages.extend((0..5).map(|_| Damage::Random { name: name(), seed: rng.next() }));
        }
        for name in original.segments() {
            for other in original.segments().into_iter().filter(|other| *other != name) {
                damages.push(Damage::OtherSegment { name: name.clone(), other: other.clone() });
            }
        }
        damages.push(Damage::LinkedDirectory { name: "segments".into() });
        try_all(&original, &damages);
    }
}
