//! Processes that share a directory: several open a loaded store, start at the same moment, and
//! each run their share of the operations.

use std::io::{PipeReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

use crate::child::{Stage, Started};
use crate::contender::{Bounds, Which};
use crate::plan::{Plan, rotated};
use crate::race::{assert_right, get_one, set_all, set_one, settle};
use crate::results::Results;
use crate::workload::{self, Size, Values};

/// The group of these results.
pub(crate) const GROUP: &str = "one directory";

/// The numbers of concurrent processes.
pub(crate) const COUNTS: [u32; 4] = [1, 2, 4, 8];

/// The operations of all processes together.
const OPERATIONS: u32 = 2_000_000;

/// The operations of a process, on uniformly drawn keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Traffic {
    Reads,
    Mix,
}

impl Traffic {
    fn name(self) -> &'static str {
        match self {
            Self::Reads => "get",
            Self::Mix => "90 % get, 10 % set",
        }
    }

    /// The name of the rate with this number of processes.
    pub(crate) fn metric(self, processes: u32) -> String {
        let unit = if processes == 1 { "process" } else { "processes" };
        format!("{}, {processes} {unit}", self.name())
    }
}

/// The names of all rates.
pub(crate) fn metrics() -> Vec<String> {
    let of = |traffic: &Traffic| COUNTS.map(|processes| traffic.metric(processes));
    Traffic::value_variants().iter().flat_map(of).collect()
}

/// The number of operations of all processes together; a tenth for SQLite, which is much slower.
fn operations(plan: &Plan, which: Which) -> u32 {
    plan.scaled(if which == Which::Sqlite { OPERATIONS / 10 } else { OPERATIONS })
}

pub(crate) fn run(plan: &Plan, results: &mut Results) {
    let Some(size) = plan.smallest() else { return };
    let loaded: Vec<(Which, TempDir)> =
        plan.sharing.iter().map(|which| load(plan, *which, size)).collect();
    for round in 0..plan.rounds {
        eprintln!("processes: round {} of {}", round + 1, plan.rounds);
        for traffic in Traffic::value_variants() {
            for processes in COUNTS {
                settle(plan);
                for (which, dir) in rotated(&loaded, round) {
                    let share = operations(plan, *which) / processes;
                    let seconds =
                        run_together(*which, dir.path(), size, *traffic, processes, share);
                    let rate = f64::from(share * processes) / seconds;
                    results.add(GROUP, &traffic.metric(processes), *which, rate);
                }
            }
        }
    }
}

fn load(plan: &Plan, which: Which, size: Size) -> (Which, TempDir) {
    let dir = plan.fresh_dir();
    let store = which.open(dir.path(), Bounds::roomy(size.entries));
    set_all(&*store, &Values::new(size.len), &workload::shuffled(size.entries, 0), 1);
    store.close();
    (which, dir)
}

/// The time in which `processes` run `share` operations each: from the start to the end of the last
/// process.
fn run_together(
    which: Which,
    dir: &Path,
    size: Size,
    traffic: Traffic,
    processes: u32,
    share: u32,
) -> f64 {
    let (gun, starter) = std::io::pipe().unwrap();
    let start =
        |process: u32| start(which, dir, size, traffic, process, share, gun.try_clone().unwrap());
    let mut children: Vec<Started> = (0..processes).map(start).collect();
    children.iter_mut().for_each(Started::wait_until_ready);
    let started = now();
    // All children wait for the end of the same pipe.
    drop(starter);
    let ends = children.into_iter().map(|child| {
        let [end] = child.numbers();
        end
    });
    ends.fold(0.0, f64::max) - started
}

fn start(
    which: Which,
    dir: &Path,
    size: Size,
    traffic: Traffic,
    process: u32,
    share: u32,
    gun: PipeReader,
) -> Started {
    let traffic = traffic.to_possible_value().unwrap();
    let (process, share) = (process.to_string(), share.to_string());
    let args = ["--traffic", traffic.get_name(), "--process", &process, "--share", &share];
    Started::waiting("share", which, dir, size, &args, gun.into())
}

/// Seconds of a clock that all processes share.
fn now() -> f64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_secs_f64()
}

/// The task of one process.
#[derive(Debug, Args)]
pub(crate) struct Share {
    #[command(flatten)]
    stage: Stage,
    #[arg(long)]
    traffic: Traffic,
    /// The number of this process, from 0.
    #[arg(long)]
    process: u32,
    /// The number of operations.
    #[arg(long)]
    share: u32,
}

impl Share {
    /// Runs the task, in the child: prints a byte when it is ready, starts at the end of standard
    /// input.
    pub(crate) fn run(&self) {
        let store = self.stage.open();
        let (values, ids) = (Values::new(self.stage.len), self.ids());
        // Warm-up: a long-running process has its keys mapped and in its caches.
        let mut wrong = ids.iter().filter(|id| !get_one(&*store, &values, **id)).count() as u64;
        let (mut out, mut value) = (std::io::stdout().lock(), Vec::new());
        out.write_all(b".").and_then(|()| out.flush()).unwrap();
        std::io::stdin().lock().read_to_end(&mut Vec::new()).unwrap();
        for (n, id) in ids.iter().enumerate() {
            if self.traffic == Traffic::Mix && n % 10 == 9 {
                set_one(&*store, &values, *id, u64::from(2 + self.process), &mut value);
            } else {
                wrong += u64::from(!get_one(&*store, &values, *id));
            }
        }
        writeln!(out, "{}", now()).unwrap();
        assert_right(self.stage.which, wrong);
        store.close();
    }

    /// This process's part of the draws of all processes.
    fn ids(&self) -> Vec<u32> {
        let (process, share) = (self.process as usize, self.share as usize);
        workload::uniform(self.stage.entries, (process + 1) * share).split_off(process * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_together_are_the_draws_of_one_process() {
        let share = |process, share| {
            let stage = Stage { which: Which::Lmdb, dir: "".into(), entries: 1000, len: 100 };
            Share { stage, traffic: Traffic::Mix, process, share }.ids()
        };
        let four: Vec<u32> = (0..4).flat_map(|process| share(process, 25)).collect();
        assert_eq!(four, share(0, 100));
    }

    #[test]
    fn each_rate_has_a_distinct_name() {
        let mut names = metrics();
        assert_eq!(names[0], "get, 1 process");
        assert_eq!(names[5], Traffic::Mix.metric(2));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 8);
    }
}
