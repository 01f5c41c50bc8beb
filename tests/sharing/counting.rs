//! Counters that many processes increment are exact, and one process wins each concurrent `add`.
//!
//! Shows invariant I10.

use std::path::Path;
use std::time::Instant;

use keepwarm::{Builder, Cache, Timeout};

use crate::child_processes::{self, arguments, number};
use crate::harness::Verdict;

const PROCESSES: u64 = 8;
const TIMES: u64 = 100_000;

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(2 * TIMES).max_bytes(256 << 20)
}

/// Role: increments counters in turn. Arguments: the directory, the number of counters.
pub(crate) fn count(arguments: &[String]) {
    let [dir, counters] = arguments else { panic!("{arguments:?}") };
    let cache = builder(Path::new(dir)).open().unwrap();
    let names: Vec<String> = (0..number(counters)).map(counter).collect();
    child_processes::wait_for_start();
    let mut last = vec![0; names.len()];
    for n in 0..TIMES as usize {
        let at = n % names.len();
        let count = cache.incr_or_init(&names[at], 1, 0, Timeout::Never).unwrap();
        assert!(count > last[at], "{}: {count} after {}", names[at], last[at]);
        last[at] = count;
    }
}

fn counter(number: u64) -> String {
    format!("counter {number}")
}

pub(crate) fn increments() -> Verdict {
    for counters in [1, 100] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let started = Instant::now();
        child_processes::run_together(
            "count",
            (0..PROCESSES).map(|_| arguments![dir.display(), counters]),
        );
        let took = started.elapsed();
        let cache = builder(&dir).open().unwrap();
        for n in 0..counters {
            let count = cache.get::<u64>(&counter(n)).unwrap();
            assert_eq!(count, Some(PROCESSES * TIMES / counters), "{} of {counters}", counter(n));
        }
        assert_eq!(cache.len(), counters);
        println!(
            "{PROCESSES} processes × {TIMES} increments of {counters} counters: \
             exact, in {took:.1?}"
        );
    }
    Ok(())
}

/// Role: adds all keys, and prints how many it won. Arguments: the directory, the process number.
pub(crate) fn add(arguments: &[String]) {
    let [dir, me] = arguments else { panic!("{arguments:?}") };
    let (cache, me) = (builder(Path::new(dir)).open().unwrap(), number(me));
    child_processes::wait_for_start();
    let mut won = 0;
    for n in 0..TIMES {
        won += u64::from(cache.add(&added(n), &me, Timeout::Never).unwrap());
    }
    println!("{won}");
}

fn added(number: u64) -> String {
    format!("added {number}")
}

pub(crate) fn additions() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let started = Instant::now();
    let printed = child_processes::run_together(
        "add",
        (0..PROCESSES).map(|me| arguments![dir.display(), me]),
    );
    let took = started.elapsed();
    let won: Vec<u64> = printed.iter().map(|line| number(line.trim())).collect();
    assert_eq!(won.iter().sum::<u64>(), TIMES, "each key has one winner: {won:?}");
    // Each key holds the value of its winner, so the counts of values equal the counts of wins.
    let cache = builder(&dir).open().unwrap();
    let mut found = vec![0; PROCESSES as usize];
    for n in 0..TIMES {
        let winner =
            cache.get::<u64>(&added(n)).unwrap().unwrap_or_else(|| panic!("{} is gone", added(n)));
        found[winner as usize] += 1;
    }
    assert_eq!(found, won, "the stored values, and the wins that the processes report");
    println!("{PROCESSES} processes added {TIMES} keys in {took:.1?}: one winner each, {won:?}");
    Ok(())
}
