//! A process that works in the directory until the power is cut. It tells the parent when each call
//! begins and ends, through a pipe: 32 bytes a report, which the kernel writes at once.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use keepwarm::{Builder, Cache, Durability, Timeout};
use nix::time::{ClockId, clock_gettime};

use crate::rng::Rng;

const MARK: &str = "--work-until-cut";
/// Keys of one thread.
const KEYS: u64 = 40;
const THREADS: u64 = 2;

/// How a worker syncs, as a number on its command line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Sync,
    Interval,
    /// An interval that does not end before the power is cut.
    Seldom,
    #[default]
    Buffered,
}

const MODES: [Mode; 4] = [Mode::Sync, Mode::Interval, Mode::Seldom, Mode::Buffered];

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// This version of the key is about to be stored, or was stored.
    Begun,
    Acknowledged,
    /// All calls that had ended at the time `version` are on the disk.
    Synced,
    /// What dead processes left is on the disk.
    LeftSynced,
    /// Of the key `shared N`: a call reported that it is there, or not there; it is about to be
    /// deleted.
    Exists,
    Gone,
    Deleting,
    Ready,
}

const WHATS: [What; 8] = [
    What::Begun,
    What::Acknowledged,
    What::Synced,
    What::LeftSynced,
    What::Exists,
    What::Gone,
    What::Deleting,
    What::Ready,
];

#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    pub(crate) what: What,
    pub(crate) key: u64,
    pub(crate) version: u64,
    pub(crate) at: u64,
}

fn report(what: What, key: u64, version: u64) {
    static PIPE: OnceLock<File> = OnceLock::new();
    let mut pipe =
        PIPE.get_or_init(|| File::options().write(true).open("/proc/self/fd/1").unwrap());
    let words = [what as u64, key, version, now()];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    pipe.write_all(&bytes).unwrap();
}

pub(crate) fn name(key: u64) -> String {
    format!("key {key}")
}

pub(crate) fn shared(round: u64, number: u64) -> String {
    format!("shared {round} {number}")
}

/// The value of a version; `None` if the version is a deletion. Many have runs of zeros.
pub(crate) fn value(key: u64, version: u64) -> Option<Vec<u8>> {
    let mut rng = Rng::new(key << 40 ^ version);
    let kind = rng.below(8);
    if kind == 0 {
        return None;
    }
    let len = rng.below(if kind == 1 { 12_000 } else { 3000 });
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend((0..len).map(|_| if kind < 4 { 0 } else { rng.next() as u8 }));
    Some(bytes)
}

pub(crate) fn builder(dir: &Path) -> Builder {
    Cache::builder(dir.join("cache"))
        .max_bytes(64 << 20)
        .max_entries(5000)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
}

/// If this process was started as a worker: works, and does not return before it is killed.
pub(crate) fn work_if_worker() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mark, dir, numbers @ ..] = arguments.as_slice() else { return false };
    if mark != MARK {
        return false;
    }
    let numbers: Vec<u64> = numbers.iter().map(|text| text.parse().unwrap()).collect();
    let [mode, worker, round, seed, calls] = numbers[..] else { panic!("{numbers:?}") };
    work(Path::new(dir), MODES[mode as usize], worker, round, seed, calls);
    true
}

fn work(dir: &Path, mode: Mode, worker: u64, round: u64, seed: u64, calls: u64) {
    static WOKEN: AtomicU64 = AtomicU64::new(0);
    // After the cut a page fault may be SIGBUS, which must not dump the maps.
    nix::sys::prctl::set_dumpable(false).unwrap();
    fail::cfg_callback("maintenance::woken", || WOKEN.store(now(), Ordering::SeqCst)).unwrap();
    let synced = || report(What::Synced, 0, WOKEN.load(Ordering::SeqCst));
    fail::cfg_callback("maintenance::synced", synced).unwrap();
    fail::cfg_callback("log::left_synced", || report(What::LeftSynced, 0, 0)).unwrap();
    let durability = match mode {
        Mode::Sync => Durability::Sync,
        Mode::Interval => Durability::Interval(Duration::from_millis(30)),
        Mode::Seldom => Durability::Interval(Duration::from_secs(3600)),
        Mode::Buffered => Durability::Buffered,
    };
    let cache = builder(dir).durability(durability).open().unwrap();
    report(What::Ready, 0, 0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let cache = &cache;
            let first = worker * 1000 + thread * 100;
            scope.spawn(move || store(cache, first, round, calls, Rng::new(seed ^ first)));
        }
        scope.spawn(|| match worker {
            0 => change_shared(&cache, round),
            _ => report_shared(&cache, round),
        });
    });
    // After the cut each call fails; this process is still alive.
    loop {
        std::thread::park();
    }
}

/// Stores one version after the other, until a call fails.
fn store(cache: &Cache, first: u64, round: u64, calls: u64, mut rng: Rng) {
    for number in 0..calls {
        let (key, version) = (first + rng.below(KEYS), round << 32 | number);
        report(What::Begun, key, version);
        let done = match value(key, version) {
            Some(value) => cache.set_bytes(&name(key), &value, Timeout::Never),
            None => cache.delete(&name(key)).map(drop),
        };
        if done.is_err() {
            return;
        }
        report(What::Acknowledged, key, version);
    }
}

/// Waits until `is_so`; `false` if a call fails.
fn wait(mut is_so: impl FnMut() -> keepwarm::Result<bool>) -> bool {
    loop {
        match is_so() {
            Ok(true) => return true,
            Ok(false) => std::thread::yield_now(),
            Err(_) => return false,
        }
    }
}

/// Stores and deletes keys, each once. The other worker reports what it finds.
fn change_shared(cache: &Cache, round: u64) {
    for number in 0.. {
        let (key, answer) = (shared(round, number), shared(round, u64::MAX));
        let answered =
            |least: u64| wait(|| Ok(cache.get::<u64>(&answer)?.is_some_and(|n| n >= least)));
        if cache.set(&key, &number, Timeout::Never).is_err() || !answered(2 * number + 1) {
            return;
        }
        report(What::Deleting, number, 0);
        if cache.delete(&key).is_err() || !answered(2 * number + 2) {
            return;
        }
    }
}

fn report_shared(cache: &Cache, round: u64) {
    for number in 0.. {
        let (key, answer) = (shared(round, number), shared(round, u64::MAX));
        let is_there = |there: bool| wait(|| Ok(cache.get::<u64>(&key)?.is_some() == there));
        if !is_there(true) || !matches!(cache.add(&key, &u64::MAX, Timeout::Never), Ok(false)) {
            return;
        }
        report(What::Exists, number, 0);
        if cache.set(&answer, &(2 * number + 1), Timeout::Never).is_err() || !is_there(false) {
            return;
        }
        if !matches!(cache.delete(&key), Ok(false)) {
            return;
        }
        report(What::Gone, number, 0);
        if cache.set(&answer, &(2 * number + 2), Timeout::Never).is_err() {
            return;
        }
    }
}

/// A worker, seen from the parent. Dropping it kills it.
pub(crate) struct Worker {
    process: Child,
    reports: Option<JoinHandle<Vec<Report>>>,
    acknowledged: std::sync::Arc<AtomicU64>,
    left_synced: std::sync::Arc<AtomicU64>,
}

impl Worker {
    /// Each of its threads stops after so many `calls`.
    pub(crate) fn start(
        dir: &Path,
        mode: Mode,
        worker: u64,
        round: u64,
        seed: u64,
        calls: u64,
    ) -> Self {
        let numbers = [mode as u64, worker, round, seed, calls].map(|number| number.to_string());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(MARK)
            .arg(dir)
            .args(numbers)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = process.stdout.take().unwrap();
        let [acknowledged, left_synced] = std::array::from_fn(|_| std::sync::Arc::default());
        let counts: [std::sync::Arc<AtomicU64>; 2] =
            [std::sync::Arc::clone(&acknowledged), std::sync::Arc::clone(&left_synced)];
        let reports = std::thread::spawn(move || {
            let (mut reports, mut bytes) = (Vec::new(), [0; 32]);
            while pipe.read_exact(&mut bytes).is_ok() {
                let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
                let what = WHATS[word(0) as usize];
                reports.push(Report { what, key: word(8), version: word(16), at: word(24) });
                match what {
                    What::Acknowledged => drop(counts[0].fetch_add(1, Ordering::SeqCst)),
                    What::LeftSynced => drop(counts[1].fetch_add(1, Ordering::SeqCst)),
                    _ => {}
                }
            }
            reports
        });
        Self { process, reports: Some(reports), acknowledged, left_synced }
    }

    /// How many calls it acknowledged until now.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// How often it synced until now what dead processes left.
    pub(crate) fn left_synced(&self) -> u64 {
        self.left_synced.load(Ordering::SeqCst)
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Ends it now: it writes nothing any more when this returns.
    pub(crate) fn end(&mut self) {
        drop(self.process.kill());
        self.process.wait().unwrap();
    }

    /// Kills it, and returns all that it reported.
    pub(crate) fn kill(mut self) -> Vec<Report> {
        self.end();
        self.reports.take().unwrap().join().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
