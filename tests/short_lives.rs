//! Short lives: processes that write a little and are killed, again and again, alone and in groups,
//! in a cache that is nearly empty. What the dead left must not take the space of what is alive: no
//! acknowledged entry is lost, and nothing is evicted.
//!
//! `KEEPWARM_SHORT_LIVES` sets the number of lives.
//!
//! Shows invariants I2 and I33.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/home.rs"]
mod home;
#[path = "support/rng.rs"]
mod rng;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use harness::Verdict;
use keepwarm::{Builder, Cache, Durability, Timeout};
use rng::Rng;

/// The argument with which this program is a writer.
const WRITER: &str = "--short-life";
/// Each writer has keys of its own, so many,
const KEYS: u64 = 24;
/// and writes values of at most this length. All of them together are a tenth of `MAX_BYTES`.
const LONGEST: u64 = 2_000;
/// The processes that write at the same time.
const WRITERS: u64 = 4;
const MAX_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == WRITER) {
        let number = |at: usize| arguments[at].parse().unwrap();
        write(Path::new(&arguments[1]), number(2), number(3), &arguments[4], number(5));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("the_dead_take_no_space_from_the_living", || lives(false)),
        ("a_group_that_dies_as_a_whole_takes_no_space", || lives(true)),
    ])
}

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir)
        .default_timeout(Timeout::Never)
        .durability(Durability::Buffered)
        .max_entries(1_000)
        .max_bytes(MAX_BYTES)
        .hot_bytes(0)
}

fn value(key: u64, version: u64) -> Vec<u8> {
    let mut rng = Rng::new(key << 32 ^ version);
    let len = 8 + rng.below(LONGEST - 8) as usize;
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.resize(len, key as u8);
    bytes
}

/// A life: reports what it finds, then writes and reports each write, until it is killed.
fn write(dir: &Path, writer: u64, seed: u64, point: &str, nth: u64) {
    die_at(point, nth);
    let cache = builder(dir).open().unwrap();
    let mut out = std::io::stdout().lock();
    let mut report = |numbers: &[u64]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        out.write_all(&bytes).and_then(|()| out.flush()).is_ok()
    };
    let mut versions: Vec<u64> = (0..KEYS)
        .map(|key| {
            let found = cache.get_bytes(&format!("{writer} {key}")).unwrap();
            let Some(bytes) = found else { return 0 };
            let version = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(*bytes, *value(key, version), "a value that was never stored");
            version
        })
        .collect();
    let mut rng = Rng::new(seed);
    report(&[cache.total_stats().unwrap().evicted]);
    report(&versions);
    let mut orders = std::io::stdin().lock();
    let mut order = [0];
    while orders.read_exact(&mut order).is_ok() {
        // Most writes replace a value of a moment ago. The others stay, between dead records.
        let key = if rng.below(4) > 0 { rng.below(2) } else { rng.below(KEYS) };
        versions[key as usize] += 1;
        let version = versions[key as usize];
        cache.set_bytes(&format!("{writer} {key}"), &value(key, version), Timeout::Never).unwrap();
        report(&[key, cache.total_stats().unwrap().evicted]);
    }
}

/// The steps at which a process that makes room dies, if it is not killed at a random moment.
const FATAL: [&str; 7] = [
    "segment::created",
    "log::emptied",
    "log::removed",
    "compact::copied",
    "compact::synced",
    "compact::redirected",
    "checkpoint::counted",
];

/// Has this process die when it reaches `point` for the n-th time.
#[cfg(feature = "failpoints")]
fn die_at(point: &str, nth: u64) {
    use nix::sys::signal::{Signal, kill};
    let left = std::sync::atomic::AtomicU64::new(nth);
    let die = move || {
        if left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            kill(nix::unistd::Pid::this(), Signal::SIGKILL).unwrap();
        }
    };
    fail::cfg_callback(point, die).unwrap();
}

#[cfg(not(feature = "failpoints"))]
fn die_at(_point: &str, _nth: u64) {}

/// A process that writes, as its parent sees it.
struct Life {
    child: Child,
    reports: ChildStdout,
}

impl Life {
    fn start(dir: &Path, writer: u64, rng: &mut Rng) -> Self {
        let seed = rng.next();
        let point = FATAL[rng.below(FATAL.len() as u64) as usize];
        let nth = 1 + rng.below(4);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(WRITER)
            .arg(dir)
            .args([writer.to_string(), seed.to_string(), point.to_owned(), nth.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reports = child.stdout.take().unwrap();
        Self { child, reports }
    }

    /// Tells it to write so often.
    fn order(&mut self, writes: u64) {
        let orders = vec![0; writes as usize];
        // It may be dead.
        let _ = self.child.stdin.as_mut().unwrap().write_all(&orders);
    }

    /// The next number that it reports; `None` once it is dead and all was read.
    fn next(&mut self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.reports.read_exact(&mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

/// What a writer's keys must hold, and how much was found to be evicted.
#[derive(Default)]
struct Known {
    versions: [u64; KEYS as usize],
    evicted: u64,
}

impl Known {
    /// Compares what a new life finds with what the lives before it were told.
    fn compare(&mut self, life: &mut Life, writer: u64, number: u64) {
        let Some(evicted) = life.next() else { return };
        assert_eq!(evicted, 0, "life {number}: evicted, although most of the space is dead");
        for (key, known) in self.versions.iter_mut().enumerate() {
            let Some(found) = life.next() else { return };
            // The last write of the life before may have had no time for its report.
            assert!(
                found == *known || found == *known + 1,
                "life {number}, writer {writer}: key {key} holds version {found}, {known} was \
                 acknowledged"
            );
            *known = found;
        }
    }

    fn note_write(&mut self, key: u64, life: &mut Life) -> bool {
        let Some(evicted) = life.next() else { return false };
        self.versions[key as usize] += 1;
        self.evicted = evicted;
        true
    }
}

/// Many lives. `together`: all writers are killed before the next ones start.
fn lives(together: bool) -> Verdict {
    const LIVES: u64 = 400;
    let lives = std::env::var("KEEPWARM_SHORT_LIVES").map_or(LIVES, |n| n.parse().unwrap()) / 2;
    let mut rng = Rng::new(rng::seed());
    let home = home::home();
    let mut known: [Known; WRITERS as usize] = std::array::from_fn(|_| Known::default());
    let mut alive: [Option<Life>; WRITERS as usize] = [const { None }; WRITERS as usize];
    let (mut number, mut writes) = (0, 0);
    while number < lives {
        let mut born = Vec::new();
        for (writer, place) in alive.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
            *place = Some(Life::start(home.path(), writer as u64, &mut rng));
            born.push(writer);
        }
        for writer in born {
            let Some(life) = &mut alive[writer] else { continue };
            known[writer].compare(life, writer as u64, number);
            number += 1;
        }
        let orders: Vec<u64> = alive.iter().map(|_| rng.below(30)).collect();
        for (life, orders) in alive.iter_mut().flatten().zip(&orders) {
            life.order(*orders);
        }
        for ((life, known), orders) in alive.iter_mut().flatten().zip(&mut known).zip(orders) {
            for _ in 0..rng.below(orders + 1) {
                let Some(key) = life.next() else { break };
                writes += u64::from(known.note_write(key, life));
            }
            assert_eq!(known.evicted, 0, "life {number}: evicted, and most of the space is dead");
        }
        let first = if together { 0 } else { rng.below(WRITERS) };
        for (writer, (place, known)) in (0..).zip(alive.iter_mut().zip(&mut known)) {
            // Some died at a step of their own.
            let is_over =
                |life: &mut Life| writer >= first || life.child.try_wait().unwrap().is_some();
            let Some(mut life) = place.take_if(is_over) else { continue };
            life.child.kill().unwrap();
            life.child.wait().unwrap();
            while let Some(key) = life.next() {
                writes += u64::from(known.note_write(key, &mut life));
            }
        }
    }
    for mut life in alive.into_iter().flatten() {
        life.child.kill().unwrap();
        life.child.wait().unwrap();
    }
    let cache = builder(home.path()).open().unwrap();
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    println!("{number} lives ended by SIGKILL, {writes} writes: 0 lost, 0 evicted");
    Ok(())
}
