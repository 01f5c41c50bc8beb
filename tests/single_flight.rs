//! Among processes that share a directory, of those that miss a key at the same time one computes, while it is stale one
//! does, and a lease has one holder; and when any of them is killed over it, another one takes its place at once.
//!
//! `KEEPWARM_FLIGHT_ROUNDS` makes it last longer.
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
/// Longer than anything here takes, and shorter than a process waits for another one that was stopped.
const SOON: Duration = Duration::from_secs(25);
/// Programs are started on machines that have no time.
const FOR_THE_BEGIN: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == MARK) {
        work(Path::new(&arguments[1]), arguments[2].parse().unwrap());
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("of_all_threads_of_all_processes_one_computes", one_computes),
        ("when_the_one_who_computes_is_killed_another_one_does", killed_while_computing),
        ("one_refreshes_while_the_others_are_given_what_is_stale", one_refreshes),
        ("a_lease_has_one_holder_and_outlives_none", leases),
    ])
}

fn rounds(some: usize) -> usize {
    std::env::var("KEEPWARM_FLIGHT_ROUNDS").map_or(some, |n| n.parse().unwrap())
}

// --- one of the processes ----------------------------------------------------------------------------------

/// Fresh for ten seconds, then stale for an hour.
fn lifespan() -> Lifespan {
    Lifespan::new(Duration::from_secs(10)).stale_for(Duration::from_secs(3600))
}

/// Does what it is told, line by line: `ask KEY` at the time it is, `ask_later KEY` ten seconds later, `lease KEY`.
fn work(dir: &Path, number: usize) {
    let clock = ManualClock::new();
    let cache =
        Cache::builder(dir.join("cache")).max_bytes(32 << 20).clock(clock.clone()).open().unwrap();
    say("ready");
    let mut held = Vec::new();
    while let Some(line) = told() {
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

fn say(line: &str) {
    // In one piece, as several threads may.
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn told() -> Option<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.pop().map(|_| line)
}

/// Writes down that it computes, says so, and brings its number when it is told to.
fn compute(dir: &Path, number: usize, key: &str) -> usize {
    write_down(dir, key);
    say("computing");
    assert_eq!(told().as_deref(), Some("go on"));
    number
}

/// Asks for `key` with all threads at once, says what they were given, and how long the slowest waited.
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
    say(&format!("given {} {}", started.elapsed().as_micros(), values.join(" ")));
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

/// Asks for the lease again and again until it has it. Says when it was refused a few times, and when it has it.
fn lease(cache: &Cache, dir: &Path, key: &str) -> (keepwarm::Lease, File) {
    for refused in 0.. {
        if let Some(lease) = cache.lease(key, Duration::from_secs(3600)).unwrap() {
            // What tells two holders.
            let proof =
                File::options().append(true).create(true).open(dir.join(format!("{key} held")));
            let proof = proof.unwrap();
            say(if proof.try_lock().is_ok() { "held" } else { "held by two" });
            return (lease, proof);
        }
        if refused == 20 {
            say("refused");
        }
        thread::sleep(Duration::from_micros(200));
    }
    unreachable!()
}

fn write_down(dir: &Path, key: &str) {
    let file = File::options().append(true).create(true).open(dir.join(key));
    file.unwrap().write_all(b"x").unwrap();
}

// --- who tells them ----------------------------------------------------------------------------------------

struct Crew {
    dir: TempDir,
    members: Vec<(Child, ChildStdin)>,
    heard: Receiver<(usize, String)>,
}

impl Crew {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tell, heard) = channel();
        let start = |number: usize| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([MARK, dir.path().to_str().unwrap(), &number.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let tell = tell.clone();
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    // Nobody hears it any more at the end.
                    let _ = tell.send((number, line.unwrap()));
                }
            });
            (child, stdin)
        };
        let members = (0..PROCESSES).map(start).collect();
        let crew = Self { dir, members, heard };
        for _ in 0..PROCESSES {
            let said = crew.heard.recv_timeout(FOR_THE_BEGIN).expect("all begin");
            assert_eq!(said.1, "ready");
        }
        crew
    }

    fn tell(&mut self, member: usize, line: &str) {
        self.members[member].1.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn tell_all(&mut self, members: &[usize], line: &str) {
        members.iter().for_each(|member| self.tell(*member, line));
    }

    fn hear(&self) -> (usize, String) {
        self.heard.recv_timeout(SOON).expect("somebody says something")
    }

    /// Who says `line`, as the next one who says anything.
    fn hear_of(&self, line: &str) -> usize {
        let (member, said) = self.hear();
        assert_eq!(said, line, "{member}");
        member
    }

    /// What the member was given, and how long its slowest thread waited, in microseconds.
    fn hear_given(&self) -> (usize, u64, Vec<usize>) {
        let (member, said) = self.hear();
        let mut words = said.split(' ');
        assert_eq!(words.next(), Some("given"), "{member}: {said}");
        let micros = words.next().unwrap().parse().unwrap();
        (member, micros, words.map(|word| word.parse().unwrap()).collect())
    }

    fn kill(&mut self, member: usize) {
        self.members[member].0.kill().unwrap();
        self.members[member].0.wait().unwrap();
    }

    /// How often `key` was computed.
    fn computed(&self, key: &str) -> u64 {
        let path: PathBuf = self.dir.path().join(key);
        path.metadata().unwrap().len()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for (child, _) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const ALL: [usize; PROCESSES] = [0, 1, 2, 3, 4, 5, 6, 7];

/// The median and the greatest.
fn shown(mut micros: Vec<u64>) -> String {
    micros.sort_unstable();
    format!("median {} µs, at most {} µs", micros[micros.len() / 2], micros[micros.len() - 1])
}

fn one_computes() -> Verdict {
    let rounds = rounds(50);
    let mut crew = Crew::new();
    let mut latencies = Vec::new();
    for round in 0..rounds {
        let key = format!("key {round}");
        crew.tell_all(&ALL, &format!("ask {key}"));
        let leader = crew.hear_of("computing");
        crew.tell(leader, "go on");
        let gone_on = Instant::now();
        for _ in ALL {
            let (member, _, values) = crew.hear_given();
            assert_eq!(values, [leader; THREADS], "{member} in round {round}");
        }
        latencies.push(gone_on.elapsed().as_micros() as u64);
        assert_eq!(crew.computed(&key), 1);
    }
    println!(
        "{rounds} keys, each missed by {PROCESSES} processes × {THREADS} threads at once: {rounds} computed. \
         From the end of the computation until all had the value: {}",
        shown(latencies)
    );
    Ok(())
}

fn killed_while_computing() -> Verdict {
    let rounds = rounds(3);
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let mut crew = Crew::new();
        crew.tell_all(&ALL, "ask key");
        let mut alive = ALL.to_vec();
        let mut leader = crew.hear_of("computing");
        for computed in 2..PROCESSES as u64 {
            alive.retain(|member| *member != leader);
            let killed = Instant::now();
            crew.kill(leader);
            leader = crew.hear_of("computing");
            latencies.push(killed.elapsed().as_micros() as u64);
            assert_eq!(crew.computed("key"), computed);
        }
        crew.tell(leader, "go on");
        for _ in &alive {
            assert_eq!(crew.hear_given().2, [leader; THREADS]);
        }
    }
    println!(
        "{} times the process that computes was killed. Until another one computed: {}",
        latencies.len(),
        shown(latencies)
    );
    Ok(())
}

fn one_refreshes() -> Verdict {
    let rounds = rounds(50);
    let mut crew = Crew::new();
    // The first time it is missed.
    crew.tell(0, "ask key");
    assert_eq!(crew.hear_of("computing"), 0);
    crew.tell(0, "go on");
    assert_eq!(crew.hear_given().2, [0; THREADS]);
    let (mut before, mut latencies) = (0, Vec::new());
    for round in 1..=rounds {
        crew.tell_all(&ALL, "ask_later key");
        let (mut refreshes, mut served) = (None, 0);
        while served < PROCESSES - 1 || refreshes.is_none() {
            let (member, said) = crew.hear();
            if said == "computing" {
                assert_eq!(refreshes.replace(member), None, "two refresh");
                continue;
            }
            let words: Vec<usize> =
                said.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
            // While another one computes.
            assert_eq!(words[1..], [before; THREADS], "{member} in round {round}: {said}");
            latencies.push(words[0] as u64);
            served += 1;
        }
        let leader = refreshes.unwrap();
        crew.tell(leader, "go on");
        let (member, _, values) = crew.hear_given();
        assert_eq!(member, leader);
        assert_eq!(
            values.iter().filter(|value| **value == before || **value == leader).count(),
            THREADS
        );
        assert!(values.contains(&leader));
        assert_eq!(crew.computed("key"), round as u64 + 1);
        before = leader;
    }
    println!(
        "{rounds} times stale, asked for by {PROCESSES} processes × {THREADS} threads at once: computed {rounds} times. \
         Given to all threads of another process, starting them included: {}",
        shown(latencies)
    );
    Ok(())
}

fn leases() -> Verdict {
    let rounds = rounds(3);
    let mut latencies = Vec::new();
    for _ in 0..rounds {
        let mut crew = Crew::new();
        crew.tell_all(&ALL, "lease key");
        let (mut holders, mut refused) = (Vec::new(), 0);
        while holders.is_empty() || refused < PROCESSES - 1 {
            match crew.hear() {
                (_, said) if said == "refused" => refused += 1,
                (member, said) => {
                    assert_eq!(said, "held");
                    holders.push(member);
                }
            }
        }
        assert_eq!(holders.len(), 1);
        while holders.len() < PROCESSES {
            let killed = Instant::now();
            crew.kill(holders[holders.len() - 1]);
            holders.push(crew.hear_of("held"));
            latencies.push(killed.elapsed().as_micros() as u64);
        }
    }
    println!(
        "{} times the holder of a lease of an hour was killed. Until another one had it, asking every 0.2 ms: {}",
        latencies.len(),
        shown(latencies)
    );
    Ok(())
}
