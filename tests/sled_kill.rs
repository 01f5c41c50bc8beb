//! What a kill loses on sled: the latest acknowledged writes that were not flushed, and nothing
//! else. The cache then has its exact state of an earlier moment; with `Durability::Sync`, of the
//! last acknowledgement.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/rng.rs"]
mod rng;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use harness::Verdict;
use keepwarm::{Builder, Cache, Durability, Timeout};
use rng::Rng;

const MARK: &str = "--work-until-killed";
const KEYS: u64 = 300;
/// A flag in a report: all operations up to this one were flushed.
const FLUSHED: u64 = 1 << 63;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == MARK) {
        let number = |at: usize| arguments[at].parse().unwrap();
        work(Path::new(&arguments[1]), number(2), number(3));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("without_a_flush_only_the_last_writes_are_lost", without_a_flush),
        ("flushed_writes_survive_a_kill", flushed),
        ("with_sync_every_acknowledged_write_survives", with_sync),
    ])
}

fn open(dir: &Path, mode: u64) -> Cache {
    let durability = match mode {
        0 => Durability::Interval(Duration::from_millis(500)),
        1 => Durability::Buffered,
        _ => Durability::Sync,
    };
    Builder::sled(dir).durability(durability).default_timeout(Timeout::Never).open().unwrap()
}

fn value(operation: u64) -> Vec<u8> {
    let mut rng = Rng::new(operation);
    let len = rng.below(200) as usize;
    operation.to_le_bytes().into_iter().chain((0..len).map(|_| rng.next() as u8)).collect()
}

fn key(operation: u64) -> String {
    format!("key {}", Rng::new(!operation).below(KEYS))
}

/// Does the operations from 1 on: each sets a key and then increments a counter. Reports each
/// acknowledged operation.
fn work(dir: &Path, mode: u64, flush_every: u64) {
    let cache = open(dir, mode);
    // Not `stdout`, which would buffer the reports.
    let mut pipe = File::options().write(true).open("/proc/self/fd/1").unwrap();
    for operation in 1.. {
        cache.set_bytes(&key(operation), &value(operation), Timeout::Never).unwrap();
        let count = cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap();
        assert_eq!(count as u64, operation);
        pipe.write_all(&operation.to_le_bytes()).unwrap();
        if flush_every > 0 && operation % flush_every == 0 {
            cache.flush().unwrap();
            pipe.write_all(&(operation | FLUSHED).to_le_bytes()).unwrap();
        }
    }
}

/// The state after a kill.
struct Ended {
    acknowledged: u64,
    flushed: u64,
    /// How many operations are in effect.
    in_effect: u64,
}

/// Runs a child until `reports` operations are acknowledged, kills it, and checks the cache.
fn round(mode: u64, flush_every: u64, reports: u64, rng: &mut Rng) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(MARK)
        .arg(&dir)
        .args([mode, flush_every].map(|n| n.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let (mut acknowledged, mut flushed, mut killed) = (0, 0, false);
    let mut report = [0; 8];
    while pipe.read_exact(&mut report).is_ok() {
        let report = u64::from_le_bytes(report);
        match report & FLUSHED {
            0 => acknowledged = report,
            _ => flushed = report & !FLUSHED,
        }
        if acknowledged >= reports && !killed {
            (0..rng.below(100_000)).for_each(|_| std::hint::spin_loop());
            child.kill().unwrap();
            killed = true;
        }
    }
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the child failed without a kill");
    let cache = open(&dir, 0);
    let count = cache.get::<u64>("count").unwrap().unwrap_or(0);
    let mut last = vec![None; KEYS as usize];
    let number = |key: &str| key["key ".len()..].parse::<usize>().unwrap();
    (1..=count).for_each(|operation| last[number(&key(operation))] = Some(operation));
    // The operation after the last count may have set its key.
    let next = count + 1;
    for (n, last) in last.iter().enumerate() {
        let name = format!("key {n}");
        let found = cache.get_bytes(&name).unwrap();
        let may_be_next = key(next) == name && found.as_deref() == Some(&value(next)[..]);
        assert!(
            may_be_next || found.as_deref() == last.map(value).as_deref(),
            "{name} after {count}"
        );
    }
    assert!(cache.check().unwrap().is_sound());
    assert_eq!(cache.stats().corrupt, 0);
    assert!(count <= acknowledged + 1, "{count} of {acknowledged}");
    Ended { acknowledged, flushed, in_effect: count }
}

fn rounds(name: &str, rounds: u64, mode: u64, flush_every: u64, most: u64) -> Vec<Ended> {
    let mut rng = Rng::new(rng::seed());
    let ended: Vec<Ended> = (0..rounds)
        .map(|_| {
            let reports = 1 + rng.below(most);
            round(mode, flush_every, reports, &mut rng)
        })
        .collect();
    let mut lost: Vec<u64> =
        ended.iter().map(|e| e.acknowledged.saturating_sub(e.in_effect)).collect();
    lost.sort_unstable();
    let acknowledged: u64 = ended.iter().map(|e| e.acknowledged).sum();
    println!(
        "{name}: {rounds} kills, {acknowledged} acknowledged operations of two writes each; \
         lost in each kill: least {}, median {}, most {}",
        lost[0],
        lost[lost.len() / 2],
        lost[lost.len() - 1]
    );
    ended
}

fn without_a_flush() -> Verdict {
    rounds("Interval of 500 ms", 8, 0, 0, 20_000);
    rounds("Buffered", 4, 1, 0, 20_000);
    Ok(())
}

fn flushed() -> Verdict {
    for ended in rounds("Interval of 500 ms, a flush every 100", 8, 0, 100, 3000) {
        assert!(
            ended.in_effect >= ended.flushed,
            "{} operations are in effect, {} were flushed",
            ended.in_effect,
            ended.flushed
        );
    }
    Ok(())
}

fn with_sync() -> Verdict {
    for ended in rounds("Sync", 6, 2, 0, 300) {
        assert!(
            ended.in_effect >= ended.acknowledged,
            "{} of {}",
            ended.in_effect,
            ended.acknowledged
        );
    }
    Ok(())
}
