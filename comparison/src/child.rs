//! Child processes, for measurements that need their own process: memory, idle activity, and kills.
//! The program starts itself again.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::contender::{Bounds, Contender, Which};
use crate::plan::{Plan, Workload};
use crate::processes::Share;
use crate::race::{set_all, set_one, version_of};
use crate::results::Results;
use crate::workload::{self, Size, Values};

/// The task of a child process.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
pub(crate) enum Task {
    /// Load everything and print the memory used.
    #[command(hide = true)]
    Memory(Stage),
    /// Load everything, then do nothing, and print the activity meanwhile.
    #[command(hide = true)]
    Idle(Stage),
    /// Write until killed, with a byte on standard output for each acknowledged write.
    #[command(hide = true)]
    Write {
        #[command(flatten)]
        stage: Stage,
        /// The version to write; with 1, load everything first.
        #[arg(long)]
        version: u64,
    },
    /// Be one of several concurrent processes.
    #[command(hide = true)]
    Share(Share),
}

/// The store of a child: the engine, the directory, and the size.
#[derive(Debug, Args)]
pub(crate) struct Stage {
    #[arg(long)]
    pub(crate) which: Which,
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) entries: u32,
    #[arg(long)]
    pub(crate) len: usize,
}

impl Stage {
    pub(crate) fn open(&self) -> Box<dyn Contender> {
        self.which.open(&self.dir, Bounds::roomy(self.entries))
    }

    fn load(&self, store: &dyn Contender) {
        set_all(store, &Values::new(self.len), &workload::shuffled(self.entries, 0), 1);
    }
}

impl Task {
    /// Runs the task, in the child.
    pub(crate) fn run(&self) {
        match self {
            Self::Memory(stage) => {
                let store = stage.open();
                stage.load(&*store);
                println!("{} {}", status_kilobytes("RssAnon"), status_kilobytes("RssFile"));
            }
            Self::Idle(stage) => idle(stage),
            Self::Write { stage, version } => write(stage, *version),
            Self::Share(share) => share.run(),
        }
    }
}

/// The ids that a child writes until it is killed, alternately new and existing ones.
fn writes(entries: u32, version: u64) -> impl Iterator<Item = u32> {
    let overwritten = workload::shuffled(entries, version);
    // The bounds leave a tenth for new entries: each of five children gets a fiftieth.
    let new = entries + entries / 50 * ((version - 1) as u32)..;
    let room = entries as usize / 50;
    new.take(room).zip(overwritten).flat_map(|(new, old)| [new, old])
}

fn write(stage: &Stage, version: u64) {
    let store = stage.open();
    if version == 1 {
        stage.load(&*store);
    }
    let (values, mut value) = (Values::new(stage.len), Vec::new());
    let mut out = std::io::stdout().lock();
    for id in writes(stage.entries, version) {
        set_one(&*store, &values, id, version + 1, &mut value);
        out.write_all(b".").and_then(|()| out.flush()).unwrap();
    }
    // All writes are done; the kill may come later.
    loop {
        std::thread::park();
    }
}

/// How long an idle child waits before the measurement.
const SETTLING: Duration = Duration::from_secs(3);
/// How long its activity is measured.
const IDLE: Duration = Duration::from_secs(5);

fn idle(stage: &Stage) {
    let store = stage.open();
    stage.load(&*store);
    std::thread::sleep(SETTLING);
    let (before, started) = (Activity::of_others(), Instant::now());
    std::thread::sleep(IDLE);
    let (after, seconds) = (Activity::of_others(), started.elapsed().as_secs_f64());
    let wakes = after.switches.saturating_sub(before.switches) as f64 / seconds;
    let busy = after.nanoseconds.saturating_sub(before.nanoseconds) as f64 * 1e-9 / seconds;
    println!("{wakes} {busy}");
    drop(store);
}

/// The activity so far of all threads of the process except the main thread.
#[derive(Debug, Default)]
struct Activity {
    /// Context switches: how often a thread waited or was interrupted, and so began to run again.
    switches: u64,
    nanoseconds: u64,
}

impl Activity {
    fn of_others() -> Self {
        let mut all = Self::default();
        let me = std::process::id().to_string();
        for task in std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap) {
            // A thread may end meanwhile; then its files are missing.
            let read =
                |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            if task.file_name() != *me {
                all.switches += switches_in(&read("status"));
                let first = read("schedstat").split(' ').next().and_then(|n| n.parse().ok());
                all.nanoseconds += first.unwrap_or(0u64);
            }
        }
        all
    }
}

fn switches_in(status: &str) -> u64 {
    let counts = status.lines().filter(|line| line.contains("ctxt_switches:"));
    counts.filter_map(|line| line.split(':').nth(1)?.trim().parse::<u64>().ok()).sum()
}

fn status_kilobytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A running child.
pub(crate) struct Started(Child);

impl Started {
    fn new(task: &str, which: Which, dir: &Path, size: Size, more: &[&str]) -> Self {
        Self::waiting(task, which, dir, size, more, Stdio::inherit())
    }

    /// A child that waits for the end of its standard input.
    pub(crate) fn waiting(
        task: &str,
        which: Which,
        dir: &Path,
        size: Size,
        more: &[&str],
        input: Stdio,
    ) -> Self {
        let (entries, len) = (size.entries.to_string(), size.len.to_string());
        let name = serde_json::to_value(which).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([task, "--which", name.as_str().unwrap(), "--dir"]).arg(dir);
        command.args(["--entries", &entries, "--len", &len]).args(more);
        Self(command.stdin(input).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits for the byte by which the child reports that it is ready.
    pub(crate) fn wait_until_ready(&mut self) {
        let out = self.0.stdout.as_mut().unwrap();
        out.read_exact(&mut [0]).expect("a child ended before it was ready");
    }

    /// Waits for the end of the child and returns the numbers that it printed.
    pub(crate) fn numbers<const N: usize>(mut self) -> [f64; N] {
        let mut printed = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert!(self.0.wait().unwrap().success(), "a child failed");
        let numbers: Vec<f64> = printed.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    /// Kills the child when it has acknowledged `count` writes. Returns how many it had
    /// acknowledged in total.
    fn kill_after(mut self, count: usize) -> usize {
        let mut out = self.0.stdout.take().unwrap();
        let (mut acknowledged, mut buffer) = (0, [0; 4096]);
        while acknowledged < count {
            match out.read(&mut buffer).unwrap() {
                0 => panic!("a child ended before it was killed"),
                read => acknowledged += read,
            }
        }
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill(pid, Signal::SIGKILL).unwrap();
        loop {
            match out.read(&mut buffer).unwrap() {
                0 => break,
                read => acknowledged += read,
            }
        }
        self.0.wait().unwrap();
        acknowledged
    }
}

/// The group of the results that do not belong to one size.
pub(crate) const GROUP: &str = "process";

/// Everything that needs children: memory at every size, the rest at the smallest.
pub(crate) fn run(plan: &Plan, results: &mut Results) {
    let Some(size) = plan.smallest() else { return };
    if plan.wants(Workload::Memory) {
        for size in &plan.sizes {
            memory(plan, *size, results);
        }
    }
    if plan.wants(Workload::Idle) {
        idleness(plan, size, results);
    }
    if plan.wants(Workload::Kill) {
        for which in plan.contenders.iter().filter(|which| which.is_persistent()) {
            kills(plan, size, *which, results);
        }
    }
}

fn memory(plan: &Plan, size: Size, results: &mut Results) {
    for which in &plan.contenders {
        let dir = plan.fresh_dir();
        let [anonymous, files] = Started::new("memory", *which, dir.path(), size, &[]).numbers();
        results.add(size.name, "memory of its own", *which, anonymous * 1024.0);
        results.add(size.name, "mapped files in memory", *which, files * 1024.0);
    }
}

fn idleness(plan: &Plan, size: Size, results: &mut Results) {
    eprintln!("idle processes");
    let size = Size { entries: size.entries / 10, ..size };
    // All at the same time: idle processes do not disturb each other.
    let children: Vec<_> = plan
        .contenders
        .iter()
        .map(|which| {
            let dir = plan.fresh_dir();
            (*which, Started::new("idle", *which, dir.path(), size, &[]), dir)
        })
        .collect();
    for (which, child, _dir) in children {
        let [wakes, busy] = child.numbers();
        results.add(GROUP, "wake-ups a second", which, wakes);
        results.add(GROUP, "idle processor time", which, busy);
    }
}

fn kills(plan: &Plan, size: Size, which: Which, results: &mut Results) {
    let (dir, values) = (plan.fresh_dir(), Values::new(size.len));
    let writes_each = size.entries as usize / 50;
    for version in 1..=plan.rounds as u64 {
        eprintln!("{}: kill {version} of {}", which.name(), plan.rounds);
        let args = ["--version", &version.to_string()];
        let acknowledged =
            Started::new("write", which, dir.path(), size, &args).kill_after(writes_each.max(1));
        let started = Instant::now();
        let store = which.open(dir.path(), Bounds::roomy(size.entries));
        let right = version_of(&*store, &values, 0).is_some();
        let elapsed = started.elapsed();
        // A child writes each id at most once, so each acknowledged write must be readable.
        let lost = writes(size.entries, version)
            .take(acknowledged)
            .filter(|id| version_of(&*store, &values, *id) != Some(version + 1))
            .count();
        results.add(GROUP, "reopen after a kill", which, elapsed.as_secs_f64());
        results.add(GROUP, "acknowledged", which, acknowledged as f64);
        results.add(GROUP, "lost", which, lost as f64);
        if !right {
            eprintln!("{}: an entry of the load is lost", which.name());
        }
        store.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_writes_each_id_once_and_within_the_bounds() {
        let entries = 1000;
        let bounds = Bounds::roomy(entries);
        let mut all_new = Vec::new();
        for version in 1..=5 {
            let ids: Vec<u32> = writes(entries, version).collect();
            assert_eq!(ids.len(), 40);
            let mut once = ids.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), ids.len());
            all_new.extend(ids.into_iter().filter(|id| *id >= entries));
        }
        all_new.sort_unstable();
        all_new.dedup();
        assert_eq!(all_new.len(), 100, "no two children write the same new id");
        assert!(u64::from(entries) + 100 < bounds.entries);
    }

    #[test]
    fn both_kinds_of_context_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(switches_in(status), 15);
    }
}
