//! Single flight among processes that share a directory. When several miss a key at the same time,
//! one computes its value. When the value is stale, one refreshes it. A lease has one holder. When
//! the computing process or the holder is killed, another process takes over at once.
//!
//! `KEEPWARM_FLIGHT_ROUNDS` sets the number of rounds.
//!
//! Shows invariants I24 and I34.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use harness::Verdict;
use keepwarm::{Cache, Lifespan, ManualClock};
use tempfile::TempDir;

const MARK: &str = "--one-of-many";
const PROCESSES: usize = 8;
const THREADS: usize = 8;
/// Longer than anything here takes, and shorter than the time-out of a process that waits for a
/// stopped one.
const SOON: Duration = Duration::from_secs(25);
/// Long, as a busy machine starts programs slowly.
const START_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == MARK) {
        work(Path::new(&arguments[1]), arguments[2].parse().unwrap());
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("one_thread_of_all_processes_computes", one_computes),
        ("another_process_computes_after_a_kill", killed_while_computing),
        ("one_refreshes_while_others_get_the_stale_value", one_refreshes),
        ("a_lease_has_one_holder_and_ends_with_it", leases),
    ])
}

fn rounds(some: usize) -> usize {
    std::env::var("KEEPWARM_FLIGHT_ROUNDS").map_or(some, |n| n.parse().unwrap())
}

// --- the child process -------------------------------------------------------------------------

/// Fresh for ten seconds, then stale for an hour.
fn lifespan() -> Lifespan {
    Lifespan::new(Duration::from_secs(10)).stale_for(Duration::from_secs(3600))
}

/// Executes commands, line by line: `ask KEY` now, `ask_later KEY` with the clock ten seconds
/// later, `lease KEY`.
fn work(dir: &Path, number: usize) {
    let clock = ManualClock::new();
    let cache =
        Cache::builder(dir.join("cache")).max_bytes(32 << 20).clock(clock.clone()).open().unwrap();
    report("ready");
    let mut held = Vec::new();
    while let Some(line) = next_command() {
        let (command, key) = line.split_once(' ').unwrap();
        match command {
            "ask" => ask(&cache, dir, number, key),
            "ask_later" => {
                clock.advance(Duration::from_secs(10));
                ask(&cache, dir, number, key);
            }
            "lease" => held.push(lease(&cache, dir, key)),
            _ => panic!("{line}"),
        }
    }
}

fn report(line: &str) {
    // In one write, as several threads may report.
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn next_command() -> Option<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.pop().map(|_| line)
}

/// Records that this process computes, reports it, and returns its number when it is told to.
fn compute(dir: &Path, number: usize, key: &str) -> usize {
    record(dir, key);
    report("computing");
    assert_eq!(next_command().as_deref(), Some("go on"));
    number
}

/// Asks for `key` with all threads at once. Reports the values, and how long the slowest waited.
fn ask(cache: &Cache, dir: &Path, number: usize, key: &str) {
    let started = Instant::now();
    let values = if number.is_multiple_of(2) || cfg!(not(feature = "async")) {
        thread::scope(|scope| {
            let ask = || cache.get_or_set(key, lifespan(), || compute(dir, number, key)).unwrap();
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    } else {
        ask_async(cache, dir, number, key)
    };
    let values: Vec<String> = values.iter().map(usize::to_string).collect();
    report(&format!("given {} {}", started.elapsed().as_micros(), values.join(" ")));
}

#[cfg(feature = "async")]
fn ask_async(cache: &Cache, dir: &Path, number: usize, key: &str) -> Vec<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..THREADS {
            let (cache, dir, key) = (cache.clone().into_async(), dir.to_owned(), key.to_owned());
            tasks.spawn(async move {
                let compute = async || {
                    let (dir, key) = (dir.clone(), key.clone());
                    tokio::task::spawn_blocking(move || compute(&dir, number, &key)).await.unwrap()
                };
                cache.get_or_set(&key, lifespan(), compute).await.unwrap()
            });
        }
        tasks.join_all().await
    })
}

#[cfg(not(feature = "async"))]
fn ask_async(_: &Cache, _: &Path, _: usize, _: &str) -> Vec<usize> {
    unreachable!()
}

/// Asks for the lease again and again until it is granted. Reports when it was refused 20 times,
/// and when it was granted.
fn lease(cache: &Cache, dir: &Path, key: &str) -> (keepwarm::Lease, File) {
    for refused in 0.. {
        if let Some(lease) = cache.lease(key, Duration::from_secs(3600)).unwrap() {
            // A lock on this file detects two holders.
            let proof =
                File::options().append(true).create(true).open(dir.join(format!("{key} held")));
            let proof = proof.unwrap();
            report(if proof.try_lock().is_ok() { "held" } else { "held by two" });
            return (lease, proof);
        }
        if refused == 20 {
            report("refused");
        }
        thread::sleep(Duration::from_micros(200));
    }
    unreachable!()
}

fn record(dir: &Path, key: &str) {
    let file = File::options().append(true).create(true).open(dir.join(key));
    file.unwrap().write_all(b"x").unwrap();
}

// --- the parent process ------------------------------------------------------------------------

struct ChildProcesses {
    dir: TempDir,
    processes: Vec<(Child, ChildStdin)>,
    reports: Receiver<(usize, String)>,
}

impl ChildProcesses {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, reports) = channel();
        let start = |number: usize| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([MARK, dir.path().to_str().unwrap(), &number.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    // At the end of the test, the receiver is dropped before the children exit.
                    let _ = sender.send((number, line.unwrap()));
                }
            });
            (child, stdin)
        };
        let processes = (0..PROCESSES).map(start).collect();
        let children = Self { dir, processes, reports };
        for _ in 0..PROCESSES {
            let report = children.reports.recv_timeout(START_TIMEOUT).expect("all processes start");
            assert_eq!(report.1, "ready");
        }
        children
    }

    fn send(&mut self, process: usize, line: &str) {
        self.processes[process].1.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn send_to_all(&mut self, processes: &[usize], line: &str) {
        processes.iter().for_each(|process| self.send(*process, line));
    }

    fn next_report(&self) -> (usize, String) {
        self.reports.recv_timeout(SOON).expect("a process reports")
    }

    /// The process that sends the next report, which must be `line`.
    fn expect_report(&self, line: &str) -> usize {
        let (process, report) = self.next_report();
        assert_eq!(report, line, "{process}");
        process
    }

    /// The next report, which must be of values: the process, how long its slowest thread waited in
    /// microseconds, and the values.
    fn expect_values(&self) -> (usize, u64, Vec<usize>) {
        let (process, report) = self.next_report();
        let mut words = report.split(' ');
        assert_eq!(words.next(), Some("given"), "{process}: {report}");
        let micros = words.next().unwrap().parse().unwrap();
        (process, micros, words.map(|word| word.parse().unwrap()).collect())
    }

    fn kill(&mut self, process: usize) {
        self.processes[process].0.kill().unwrap();
        self.processes[process].0.wait().unwrap();
    }

    /// How often the value of `key` was computed.
    fn computed(&self, key: &str) -> u64 {
        let path: PathBuf = self.dir.path().join(key);
        path.metadata().unwrap().len()
    }
}

impl Drop for ChildProcesses {
    fn drop(&mut self) {
        for (child, _) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const ALL: [usize; PROCESSES] = [0, 1, 2, 3, 4, 5, 6, 7];

/// The median and the maximum, as text.
fn summary(mut micros: Vec<u64>) -> String {
    micros.sort_unstable();
    format!("median {} µs, at most {} µs", micros[micros.len() / 2], micros[micros.len() - 1])
}

fn one_computes() -> Verdict {
    let rounds = rounds(50);
    let mut children = ChildProcesses::new();
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let key = format!("key {round}");
        children.send_to_all(&ALL, &format!("ask {key}"));
        let leader = children.expect_report("computing");
        children.send(leader, "go on");
        let resumed = Instant::now();
        for _ in ALL {
            let (process, _, values) = children.expect_values();
            assert_eq!(values, [leader; THREADS], "{process} in round {round}");
        }
        latencies.push(resumed.elapsed().as_micros() as u64);
        assert_eq!(children.computed(&key), 1);
    }
    println!(
        "{rounds} keys, each missed by {PROCESSES} processes × {THREADS} threads at once: \
         {rounds} computed. From the end of the computation until all had the value: {}",
        summary(latencies)
    );
    Ok(())
}

fn killed_while_computing() -> Verdict {
    let rounds = rounds(3);
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let mut children = ChildProcesses::new();
        children.send_to_all(&ALL, "ask key");
        let mut alive = ALL.to_vec();
        let mut leader = children.expect_report("computing");
        for computed in 2..PROCESSES as u64 {
            alive.retain(|process| *process != leader);
            let killed = Instant::now();
            children.kill(leader);
            leader = children.expect_report("computing");
            latencies.push(killed.elapsed().as_micros() as u64);
            assert_eq!(children.computed("key"), computed);
        }
        children.send(leader, "go on");
        for _ in &alive {
            assert_eq!(children.expect_values().2, [leader; THREADS]);
        }
    }
    println!(
        "the computing process was killed {} times. Time until another one computed: {}",
        latencies.len(),
        summary(latencies)
    );
    Ok(())
}

fn one_refreshes() -> Verdict {
    let rounds = rounds(50);
    let mut children = ChildProcesses::new();
    // The first read is a miss.
    children.send(0, "ask key");
    assert_eq!(children.expect_report("computing"), 0);
    children.send(0, "go on");
    assert_eq!(children.expect_values().2, [0; THREADS]);
    let (mut before, mut latencies) = (0, Vec::new());
    for round in 1..=rounds {
        children.send_to_all(&ALL, "ask_later key");
        let (mut refreshes, mut served) = (None, 0);
        while served < PROCESSES - 1 || refreshes.is_none() {
            let (process, report) = children.next_report();
            if report == "computing" {
                assert_eq!(refreshes.replace(process), None, "two refresh");
                continue;
            }
            let words: Vec<usize> =
                report.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
            // The others get the stale value while one computes.
            assert_eq!(words[1..], [before; THREADS], "{process} in round {round}: {report}");
            latencies.push(words[0] as u64);
            served += 1;
        }
        let leader = refreshes.unwrap();
        children.send(leader, "go on");
        let (process, _, values) = children.expect_values();
        assert_eq!(process, leader);
        assert_eq!(
            values.iter().filter(|value| **value == before || **value == leader).count(),
            THREADS
        );
        assert!(values.contains(&leader));
        assert_eq!(children.computed("key"), round as u64 + 1);
        before = leader;
    }
    println!(
        "{rounds} times stale, read by {PROCESSES} processes × {THREADS} threads at once: \
         computed {rounds} times. Time until all threads of another process had the stale value, \
         with their start: {}",
        summary(latencies)
    );
    Ok(())
}

fn leases() -> Verdict {
    let rounds = rounds(3);
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let mut children = ChildProcesses::new();
        children.send_to_all(&ALL, "lease key");
        let (mut holders, mut refused) = (Vec::new(), 0);
        while holders.is_empty() || refused < PROCESSES - 1 {
            match children.next_report() {
                (_, report) if report == "refused" => refused += 1,
                (process, report) => {
                    assert_eq!(report, "held");
                    holders.push(process);
                }
            }
        }
        assert_eq!(holders.len(), 1);
        while holders.len() < PROCESSES {
            let killed = Instant::now();
            children.kill(holders[holders.len() - 1]);
            holders.push(children.expect_report("held"));
            latencies.push(killed.elapsed().as_micros() as u64);
        }
    }
    println!(
        "the holder of a lease of an hour was killed {} times. Time until another process had it, \
         asking every 0.2 ms: {}",
        latencies.len(),
        summary(latencies)
    );
    Ok(())
}
