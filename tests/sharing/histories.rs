//! No read returns a value that was superseded before the read began. Many processes record what
//! they do and see, and the checker examines the histories afterwards.
//!
//! Shows invariants I8 and I14.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checker::{self, Violation};
use crate::child_processes::{self, arguments, number};
use crate::harness::Verdict;
use crate::history::{History, Journal};
use crate::home::home;
use crate::load::{KEYS, Load, Worker};
use crate::mount;
use crate::rng;

const PROCESSES: u32 = 4;
const THREADS: u32 = 2;

/// Operations in each of the two runs, at least, unless the environment asks for more.
const OPERATIONS: u64 = 100_000;

/// How long a read-only process tries to get a hit in its hot tier.
const PATIENCE: Duration = Duration::from_secs(60);

/// Role: does random operations. Arguments: the directory, the directory of the journals, the
/// number of its first thread, the operations of each thread, the load.
pub(crate) fn work(arguments: &[String]) {
    let [dir, journals, first, operations, load @ ..] = arguments else { panic!("{arguments:?}") };
    let (dir, journals, load) = (Path::new(dir), Path::new(journals), Load::from_arguments(load));
    let (first, operations) = (number(first) as u32, number(operations));
    let cache = load.builder(dir, 0).open().unwrap();
    child_processes::wait_for_start();
    std::thread::scope(|scope| {
        for thread in first..first + THREADS {
            let mut worker =
                Worker::new(&cache, load, thread, Journal::in_memory(journals, thread));
            scope.spawn(move || {
                for number in 0..operations {
                    worker.step().unwrap();
                    if number % 2_000 == 0 {
                        // The check finds no problem, although others change the cache meanwhile.
                        let report = worker.cache.check().unwrap();
                        assert!(report.is_sound(), "{report:?}");
                    }
                }
            });
        }
    });
    let stats = cache.stats();
    println!("{} {} {}", stats.evicted, stats.copied_bytes, stats.expired);
}

/// Role: reads with `read_only` while the others work. Arguments: the directory of the journals,
/// the number of its first thread, the load, the directory.
pub(crate) fn read(arguments: &[String]) {
    let [journals, first, load @ .., dir] = arguments else { panic!("{arguments:?}") };
    let (journals, load) = (Path::new(journals), Load::from_arguments(load));
    let first = number(first) as u32;
    let cache = &load.builder(Path::new(dir), 0).read_only(true).open().unwrap();
    child_processes::wait_for_start();
    let exit_requested = &*child_processes::exit_requested();
    std::thread::scope(|scope| {
        for thread in first..first + THREADS {
            let mut worker = Worker::new(cache, load, thread, Journal::in_memory(journals, thread));
            scope.spawn(move || {
                // On a busy machine, all others may finish before this thread has read a key twice.
                let started = Instant::now();
                let has_seen = || cache.stats().hot_hits > 0 || started.elapsed() > PATIENCE;
                while !exit_requested.load(Ordering::Acquire) || !has_seen() {
                    worker.read_step().unwrap();
                    // Reads are far faster than writes, and all of them are recorded.
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
        }
    });
    let stats = cache.stats();
    assert!(stats.hits > 0 && stats.hot_hits > 0 && stats.corrupt == 0, "{stats:?}");
    println!("0 0 0");
}

struct Run {
    history: History,
    /// Totals of all processes: entries evicted, bytes copied by compaction, expired entries
    /// reaped.
    evicted: u64,
    copied: u64,
    expired: u64,
}

/// Runs processes on one directory. `stale` of them answer reads from a stale copy.
fn run(tight: bool, operations: u64, stale: u32) -> Run {
    run_with_reader(tight, operations, stale, false).unwrap()
}

/// The same; with `with_reader`, another process reads, for which the directory is mounted
/// read-only.
fn run_with_reader(
    tight: bool,
    operations: u64,
    stale: u32,
    with_reader: bool,
) -> Result<Run, &'static str> {
    let seed = rng::seed();
    let (home, journals) = (home(), tempfile::tempdir().unwrap());
    let each = operations.div_ceil(u64::from(PROCESSES * THREADS));
    let lines = (0..PROCESSES).map(|process| {
        let load = Load { seed, tight, closes: false, stale: process < stale };
        let (dir, journals) = (home.path().join("cache"), journals.path());
        let first = 1 + process * THREADS;
        let mut line = arguments![dir.display(), journals.display(), first, each];
        line.extend(load.to_arguments());
        line
    });
    let mut commands: Vec<_> = lines.map(|line| child_processes::command("work", line)).collect();
    if with_reader {
        let dir = home.path().join("cache");
        let load = Load { seed, tight, closes: false, stale: false };
        drop(load.builder(&dir, 0).open().unwrap());
        let mut line = arguments![journals.path().display(), 1 + PROCESSES * THREADS];
        line.extend(load.to_arguments());
        let role = format!("--role read-only {}", line.join(" "));
        commands.push(mount::command(mount::READ_ONLY, &dir, &role)?);
    }
    // They are waited for in this order, so the read-only process is told last to exit.
    let printed = child_processes::run_commands_together(commands);
    let sum = |column: usize| {
        printed.iter().map(|line| number(line.split_whitespace().nth(column).unwrap())).sum()
    };
    let cache = Load { seed, tight, closes: false, stale: false }
        .builder(&home.path().join("cache"), 0)
        .open()
        .unwrap();
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    let history = History::read(journals.path());
    Ok(Run { history, evicted: sum(0), copied: sum(1), expired: sum(2) })
}

/// Checks each key.
pub(crate) fn check(history: &History, evicts: bool) -> Result<(), (u32, Violation)> {
    let events = history.events();
    assert!(events.len() as u32 <= KEYS);
    events.iter().try_for_each(|(key, events)| {
        checker::check(events, evicts).map_err(|violation| (*key, violation))
    })
}

/// The number of operations of each kind, as text.
pub(crate) fn counts(history: &History) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (_, op) in history.ops() {
        let suffix = if op.end == 0 { ", never acknowledged" } else { "" };
        *counts.entry(format!("{:?}{suffix}", op.kind).to_lowercase()).or_default() += 1;
    }
    counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}

fn operations() -> u64 {
    std::env::var("KEEPWARM_HISTORY_OPERATIONS").map_or(OPERATIONS, |text| number(&text) / 2)
}

fn assert_no_read_is_stale(run: &Run, evicts: bool) {
    if let Err((key, violation)) = check(&run.history, evicts) {
        panic!("key {key}: {violation:#?}");
    }
    println!(
        "{PROCESSES} processes of {THREADS} threads: {}; {} evicted, \
         {} bytes copied by compaction, {} expired entries reaped; \
         no read of a superseded value or of one that was never stored",
        counts(&run.history),
        run.evicted,
        run.copied,
        run.expired
    );
}

pub(crate) fn no_read_is_stale() -> Verdict {
    let run = run(false, operations(), 0);
    assert_eq!(run.evicted, 0, "the test stores more than its own bounds allow");
    assert_no_read_is_stale(&run, false);
    Ok(())
}

pub(crate) fn while_entries_are_evicted() -> Verdict {
    // In so short a history, it is a matter of chance whether compaction meets a live entry.
    for _ in 0..8 {
        let run = run(true, operations(), 0);
        assert!(run.evicted > 100, "{} evicted", run.evicted);
        assert_no_read_is_stale(&run, true);
        if run.copied > 0 {
            return Ok(());
        }
    }
    panic!("compaction copied nothing");
}

/// The same for a read-only process, of which the other processes do not know.
pub(crate) fn read_only_process() -> Verdict {
    for tight in [false, true] {
        assert_no_read_is_stale(&run_with_reader(tight, OPERATIONS / 2, 0, true)?, tight);
    }
    Ok(())
}

/// The checker finds the stale reads of a process that answers from a copy which it does not keep
/// up to date.
pub(crate) fn a_stale_copy_is_found() -> Verdict {
    for tight in [false, true] {
        let run = run(tight, 20_000, 1);
        let (key, violation) = check(&run.history, tight).expect_err("stale reads are found");
        println!("found: key {key}: {:?}", violation.anomaly);
    }
    Ok(())
}
