//! Each operation on a file fails while a directory is opened, once or from then on, with each of
//! the usual errors: after a clean close, after a kill, and beside a process that has the directory
//! open. The opening is refused with a typed error, or the cache has every entry and no other; and
//! the next opening, without faults, has them too.
//!
//! Without a variable each position is tried with one error, another one for each `KEEPWARM_SEED`;
//! `KEEPWARM_FAULTS=all` tries every error at every position.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/harness.rs"]
mod harness;
#[path = "support/home.rs"]
mod home;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use dir::copy_as_killed;
use harness::Verdict;
use home::home;
use keepwarm::faults::{Fault, Faults, Operation};
use keepwarm::{Builder, Cache, Durability, ErrorKind, Timeout};
use tempfile::TempDir;

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const ERRORS: [i32; 4] = [EIO, ENOSPC, EMFILE, ENOMEM];

/// The role in which this program has a directory open, until its input ends.
const ATTACHED: &str = "--attached";

const KEYS: u32 = 160;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, dir] = arguments.as_slice()
        && role == ATTACHED
    {
        stay_attached(Path::new(dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("an_opening_after_a_close_is_refused_or_complete", after_a_close),
        ("an_opening_after_a_kill_is_refused_or_complete", after_a_kill),
        ("an_opening_beside_a_process_is_refused_or_complete", beside_a_process),
    ])
}

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir)
        .max_bytes(4 << 20)
        .max_entries(1000)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
        .durability(Durability::Interval(Duration::from_secs(3600)))
}

fn key(number: u32) -> String {
    format!("key {number}")
}

/// The value of a key; `None` for those that were deleted.
fn value(number: u32) -> Option<Vec<u8>> {
    match number {
        7 => Some(vec![7; 70_000]),
        _ if number.is_multiple_of(5) => None,
        _ => Some(vec![number as u8; 2000]),
    }
}

/// Entries in many segments and in a file of their own, before a checkpoint and after it; others
/// that were replaced, deleted, and cleared.
fn fill(cache: &Cache) {
    cache.set_bytes("cleared", b"cleared", Timeout::Never).unwrap();
    cache.clear().unwrap();
    for number in 0..KEYS {
        cache.set_bytes(&key(number), b"older", Timeout::Never).unwrap();
        if number == KEYS / 2 {
            cache.maintain().unwrap();
        }
        match value(number) {
            Some(value) => cache.set_bytes(&key(number), &value, Timeout::Never).unwrap(),
            None => assert!(cache.delete(&key(number)).unwrap()),
        }
    }
    assert_eq!(cache.stats().evicted, 0);
}

/// Fails unless the cache has every entry and no other, and is sound.
fn assert_complete(cache: &Cache, what: &str) {
    for number in 0..KEYS {
        let found = cache.get_bytes(&key(number)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found.as_deref() == value(number).as_deref(), "{what}: {} is wrong", key(number));
    }
    let there = (0..KEYS).filter(|number| value(*number).is_some()).count();
    assert_eq!(cache.keys().count(), there, "{what}");
    assert_eq!(cache.len(), there as u64, "{what}");
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.problems);
}

/// A directory to open, and what removes it.
type Place = (PathBuf, Option<TempDir>);

/// One opening after the other, of which each has one operation fail. `place` gives a directory as
/// it was.
fn refused_or_complete(what: &str, place: impl Fn() -> Place) -> Verdict {
    let seed = std::env::var("KEEPWARM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("KEEPWARM_SEED={seed}");
    let all = std::env::var("KEEPWARM_FAULTS").is_ok_and(|which| which == "all");
    let counted = Faults::new();
    let (dir, _held) = place();
    let cache = builder(&dir).faults(counted).open().unwrap();
    let counts = Operation::ALL.map(|operation| (operation, counted.count(operation)));
    assert_complete(&cache, what);
    drop(cache);
    let (mut openings, mut refused, mut next) = (0, 0, seed);
    for (operation, count) in counts {
        for (nth, lasts) in (1..=count).flat_map(|nth| [(nth, false), (nth, true)]) {
            next += 1;
            let one = [ERRORS[next % ERRORS.len()]];
            for errno in if all { &ERRORS[..] } else { &one[..] } {
                let position = format!("{what}: {operation:?} {nth}, {errno}, lasts: {lasts}");
                let (dir, _held) = place();
                openings += 1;
                refused += u64::from(!open_once(&dir, operation, nth, *errno, lasts, &position));
            }
        }
    }
    println!("{what}: {openings} openings, {refused} refused, the others complete");
    assert!(refused > openings / 2, "{refused} of {openings} are refused");
    Ok(())
}

/// Opens the directory with a fault. Returns whether it opened.
fn open_once(
    dir: &Path,
    operation: Operation,
    nth: u64,
    errno: i32,
    lasts: bool,
    position: &str,
) -> bool {
    let (faults, fault) = (Faults::new(), Fault::Errno(errno));
    if lasts {
        faults.fail_from(operation, nth, fault);
    } else {
        faults.fail(operation, nth, fault);
    }
    let opened = builder(dir).faults(faults).open();
    faults.clear();
    let is_open = match opened {
        Ok(cache) => {
            assert_complete(&cache, &format!("{position}, at once"));
            true
        }
        Err(error) => {
            let is_typed = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace);
            assert!(is_typed, "{position}: {:?}: {error}", error.kind());
            false
        }
    };
    let cache = builder(dir).open().unwrap_or_else(|e| panic!("{position}, without faults: {e}"));
    assert_complete(&cache, &format!("{position}, then without faults"));
    is_open
}

/// Opens copies of the directory `from`.
fn copies_of(from: &Path, what: &str) -> Verdict {
    refused_or_complete(what, || {
        let copy = home();
        copy_as_killed(from, copy.path());
        (copy.path().to_owned(), Some(copy))
    })
}

fn after_a_close() -> Verdict {
    let closed = home();
    let cache = builder(closed.path()).open().unwrap();
    fill(&cache);
    cache.close().unwrap();
    copies_of(closed.path(), "after a close")
}

fn after_a_kill() -> Verdict {
    let (open, killed) = (home(), home());
    let cache = builder(open.path()).open().unwrap();
    fill(&cache);
    copy_as_killed(open.path(), killed.path());
    drop(cache);
    copies_of(killed.path(), "after a kill")
}

fn beside_a_process() -> Verdict {
    let shared = home();
    let mut child = attach(shared.path());
    let verdict = refused_or_complete("beside a process", || (shared.path().to_owned(), None));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "the attached process");
    verdict
}

/// Starts a process that has the directory open.
fn attach(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(ATTACHED)
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n", "the attached process");
    child
}

fn stay_attached(dir: &Path) {
    let cache = builder(dir).open().unwrap();
    fill(&cache);
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert_complete(&cache, "in the attached process");
}
