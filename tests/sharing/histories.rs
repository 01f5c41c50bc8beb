//! No read returns what was superseded before it began: what many processes did and saw, checked afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checker::{self, Violation};
use crate::crew::{self, arguments, number};
use crate::harness::Verdict;
use crate::history::{History, Journal};
use crate::home::home;
use crate::load::{KEYS, Load, Worker};
use crate::mount;
use crate::rng;

const PROCESSES: u32 = 4;
const THREADS: u32 = 2;

/// In the test command; at least this many in each of the two runs.
const OPERATIONS: u64 = 100_000;

/// How long one who looks on tries to see something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process: the directory, where to write down what it did, the number of its first thread, how many operations
/// each thread does, and the load.
pub(crate) fn work(arguments: &[String]) {
    let [dir, journals, first, operations, load @ ..] = arguments else { panic!("{arguments:?}") };
    let (dir, journals, load) = (Path::new(dir), Path::new(journals), Load::from_arguments(load));
    let (first, operations) = (number(first) as u32, number(operations));
    let cache = load.builder(dir, 0).open().unwrap();
    crew::ready();
    std::thread::scope(|scope| {
        for thread in first..first + THREADS {
            let mut worker =
                Worker::new(&cache, load, thread, Journal::in_memory(journals, thread));
            scope.spawn(move || {
                for number in 0..operations {
                    worker.step().unwrap();
                    if number % 2_000 == 0 {
                        // Nothing is wrong, whatever others change meanwhile.
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

/// The same of a process that may only read, for as long as the others work: where to write down what it did, the number of
/// its first thread, the load, and the directory.
pub(crate) fn look_on(arguments: &[String]) {
    let [journals, first, load @ .., dir] = arguments else { panic!("{arguments:?}") };
    let (journals, load) = (Path::new(journals), Load::from_arguments(load));
    let first = number(first) as u32;
    let cache = &load.builder(Path::new(dir), 0).read_only(true).open().unwrap();
    crew::ready();
    let dismissed = &*crew::dismissed();
    std::thread::scope(|scope| {
        for thread in first..first + THREADS {
            let mut worker = Worker::new(cache, load, thread, Journal::in_memory(journals, thread));
            scope.spawn(move || {
                // On a busy machine, all others may be done before it has read anything twice.
                let started = Instant::now();
                let has_seen = || cache.stats().hot_hits > 0 || started.elapsed() > PATIENCE;
                while !dismissed.load(Ordering::Acquire) || !has_seen() {
                    worker.look().unwrap();
                    // Reads are far faster than writes, and all of them are written down.
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
    /// Over all processes: evicted, bytes copied by compaction, expired ones reaped.
    evicted: u64,
    copied: u64,
    expired: u64,
}

/// Processes at work on one directory; `stale` is how many of them read through a copy of their own.
fn run(tight: bool, operations: u64, stale: u32) -> Run {
    run_seen(tight, operations, stale, false).unwrap()
}

/// The same, and whether one more process `looks_on`, which has the directory mounted read-only.
fn run_seen(tight: bool, operations: u64, stale: u32, looks_on: bool) -> Result<Run, &'static str> {
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
    let mut commands: Vec<_> = lines.map(|line| crew::command("work", line)).collect();
    if looks_on {
        let dir = home.path().join("cache");
        let load = Load { seed, tight, closes: false, stale: false };
        drop(load.builder(&dir, 0).open().unwrap());
        let mut line = arguments![journals.path().display(), 1 + PROCESSES * THREADS];
        line.extend(load.to_arguments());
        let role = format!("--role look-on {}", line.join(" "));
        commands.push(mount::command(mount::READ_ONLY, &dir, &role)?);
    }
    // Seen to their ends in this order, so that who looks on is told last.
    let said = crew::all_together(commands);
    let sum = |column: usize| {
        said.iter().map(|line| number(line.split_whitespace().nth(column).unwrap())).sum()
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

/// What an operation was done how often, for people.
pub(crate) fn counts(history: &History) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (_, op) in history.ops() {
        let told = if op.end == 0 { ", never told" } else { "" };
        *counts.entry(format!("{:?}{told}", op.kind).to_lowercase()).or_default() += 1;
    }
    counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}

fn operations() -> u64 {
    std::env::var("KEEPWARM_HISTORY_OPERATIONS").map_or(OPERATIONS, |text| number(&text) / 2)
}

fn nobody_reads_what_was_superseded_in(run: &Run, evicts: bool) {
    if let Err((key, violation)) = check(&run.history, evicts) {
        panic!("key {key}: {violation:#?}");
    }
    println!(
        "{PROCESSES} processes of {THREADS} threads: {}; {} evicted, {} bytes copied by compaction, \
         {} expired ones reaped; no read of what was superseded, none of what nobody stored",
        counts(&run.history),
        run.evicted,
        run.copied,
        run.expired
    );
}

pub(crate) fn nobody_reads_what_was_superseded() -> Verdict {
    let run = run(false, operations(), 0);
    assert_eq!(run.evicted, 0, "the test stores more than its own bounds allow");
    nobody_reads_what_was_superseded_in(&run, false);
    Ok(())
}

pub(crate) fn while_entries_are_evicted() -> Verdict {
    // Whether compaction meets anything alive is a matter of chance in a history as short as this.
    for _ in 0..8 {
        let run = run(true, operations(), 0);
        assert!(run.evicted > 100, "{} evicted", run.evicted);
        nobody_reads_what_was_superseded_in(&run, true);
        if run.copied > 0 {
            return Ok(());
        }
    }
    panic!("nothing was copied by compaction");
}

/// Nor does a process that may not write, and that nobody knows of.
pub(crate) fn who_looks_on_reads_nothing_that_was_superseded() -> Verdict {
    for tight in [false, true] {
        nobody_reads_what_was_superseded_in(&run_seen(tight, OPERATIONS / 2, 0, true)?, tight);
    }
    Ok(())
}

/// That the checker finds what it is there for: one process answers reads from a copy that it does not keep up to
/// date.
pub(crate) fn a_stale_copy_is_found() -> Verdict {
    for tight in [false, true] {
        let run = run(tight, 20_000, 1);
        let (key, violation) = check(&run.history, tight).expect_err("stale reads are found");
        println!("found: key {key}: {:?}", violation.wrong);
    }
    Ok(())
}
