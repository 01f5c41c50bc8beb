//! Acknowledged operations survive a kill at each step that persists anything. For each named point
//! in the source, a process is killed exactly there: the first time it reaches the point, the last
//! time, and once in between.
//!
//! The names are read from the source, so a new point is tested as soon as it exists.
//!
//! Shows invariants I2 and I20.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/harness.rs"]
mod harness;
#[path = "support/home.rs"]
mod home;
#[path = "support/points.rs"]
mod points;
#[path = "support/rng.rs"]
mod rng;
#[path = "support/survival.rs"]
mod survival;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::Verdict;
use home::home;
use rng::Rng;
use survival::{Operation, Plan, Witness};

fn main() -> ExitCode {
    if survival::work_if_child(prepare) {
        return ExitCode::SUCCESS;
    }
    harness::main(&[("a_kill_at_any_step_loses_nothing_acknowledged", kill_at_every_point)])
}

/// In the child, before it works: `POINT N` kills it when it reaches that point for the n-th time;
/// `count FILE` records how often it reaches each point.
fn prepare(arguments: &[String]) {
    match arguments {
        [] => {}
        [count, file] if count == "count" => {
            let file: &'static Path = Path::new(file.clone().leak());
            let counts: &'static Mutex<BTreeMap<String, u64>> = Box::leak(Box::default());
            for name in points::all() {
                let counted = name.clone();
                let count = move || {
                    let mut counts = counts.lock().unwrap();
                    *counts.entry(counted.clone()).or_default() += 1;
                    // Written each time, as the last time is not known in advance.
                    let lines: Vec<String> =
                        counts.iter().map(|(k, n)| format!("{k} {n}\n")).collect();
                    std::fs::write(file, lines.concat()).unwrap();
                };
                fail::cfg_callback(name, count).unwrap();
            }
        }
        [point, nth] => {
            let left = AtomicU64::new(nth.parse().unwrap());
            let die = move || {
                if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    let me = nix::unistd::Pid::this();
                    nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
                }
            };
            fail::cfg_callback(point, die).unwrap();
        }
        _ => panic!("{arguments:?}"),
    }
}

/// How often a step that depends on chance is tried.
const TRIES: usize = 4;

/// The state of the directory when the child starts.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    Closed,
    Killed,
    /// Left by a killed process, and open in a read-only process.
    Observed,
}

const BEFORE: [Before; 4] = [Before::Nothing, Before::Closed, Before::Killed, Before::Observed];

/// Locks the index as a read-only process does, until the returned file is dropped.
fn observe(witness: &Witness, before: Before) -> Option<std::fs::File> {
    matches!(before, Before::Observed).then(|| {
        let index = std::fs::File::open(witness.dir().join("index")).unwrap();
        let shared = nix::libc::flock {
            l_type: nix::libc::F_RDLCK as _,
            l_whence: nix::libc::SEEK_SET as _,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&index, nix::fcntl::FcntlArg::F_OFD_SETLK(&shared)).unwrap();
        index
    })
}

fn directory(before: Before, rng: &mut Rng, tight: bool) -> Witness {
    let mut witness = Witness::new(home());
    let plan =
        Plan { seed: rng.next(), threads: 1, operations: 300, waits: false, tight, durability: 3 };
    match before {
        Before::Nothing => {}
        Before::Closed => {
            let ended = witness.round(plan, &[], true, |_, _| ());
            assert!(ended.status.success(), "{plan:?}: the child failed without a kill");
        }
        Before::Killed | Before::Observed => {
            let plan = Plan { operations: u64::MAX, waits: true, ..plan };
            witness.round(plan, &[], true, |child, reports| {
                (0..300).for_each(|_| assert!(reports.next(), "the child ended before the kill"));
                child.kill().unwrap();
            });
        }
    }
    witness
}

/// The results of the kills so far.
#[derive(Default)]
struct Tally {
    /// The number of kills at each point.
    reached: BTreeMap<String, u64>,
    rounds: u64,
    not_reached: u64,
    acknowledged: u64,
    in_effect_unacknowledged: u64,
}

fn kill_at_every_point() -> Verdict {
    let mut rng = Rng::new(rng::seed());
    // This point needs a dead process and a live one; `tests/sharing` reaches it.
    let is_shared = |name: &String| name == "log::adopted";
    let names = points::all().into_iter().filter(|name| !is_shared(name));
    let reached = names.map(|name| (name, 0)).collect();
    let tally = Mutex::new(Tally { reached, ..Tally::default() });
    // Each thread waits for its child most of the time.
    std::thread::scope(|scope| {
        for before in BEFORE {
            let (rng, tally) = (Rng::new(rng.next()), &tally);
            scope.spawn(move || kill_from(before, rng, tally));
        }
    });
    kill_at_unreached_points(&mut rng, &tally);
    let Tally { reached, rounds, not_reached, acknowledged, in_effect_unacknowledged } =
        tally.into_inner().unwrap();
    let never: Vec<&String> =
        reached.iter().filter(|(_, n)| **n == 0).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "no process was killed at {never:?}");
    println!(
        "{} points, {} kills at them ({not_reached} more not reached): {acknowledged} operations \
         acknowledged, 0 lost; {in_effect_unacknowledged} in effect without acknowledgement",
        reached.len(),
        rounds - not_reached
    );
    Ok(())
}

/// Kills a child at each point that a child reaches which starts from this state.
fn kill_from(before: Before, mut rng: Rng, tally: &Mutex<Tally>) {
    let plan = plan_for_all(&mut rng);
    for (point, times) in count_points(before, plan, &mut rng) {
        let mut moments = vec![1, 1 + rng.below(times), times];
        moments.sort_unstable();
        moments.dedup();
        for nth in moments {
            // Evictions, a close just before the kill and the work of the background differ from
            // run to run. So a moment that was not reached is tried again, unless another moment of
            // the same point was reached.
            for again in 0..TRIES {
                let is_known =
                    || tally.lock().unwrap().reached.get(&point).is_some_and(|times| *times > 0);
                if (again > 0 && is_known()) || kill_at(before, &point, nth, plan, &mut rng, tally)
                {
                    break;
                }
            }
        }
    }
}

/// Tries other plans for the points without a kill, until a child reaches them.
fn kill_at_unreached_points(rng: &mut Rng, tally: &Mutex<Tally>) {
    const ROUNDS: usize = 40;
    for _ in 0..ROUNDS {
        let reached = tally.lock().unwrap().reached.clone();
        for point in reached.into_iter().filter(|(_, n)| *n == 0).map(|(point, _)| point) {
            for before in BEFORE {
                if kill_at(before, &point, 1, plan_for_all(rng), rng, tally) {
                    break;
                }
            }
        }
    }
}

/// Kills a child when it reaches a point for the n-th time, and checks the directory. Returns
/// whether the child reached it.
fn kill_at(
    before: Before,
    point: &str,
    nth: u64,
    plan: Plan,
    rng: &mut Rng,
    tally: &Mutex<Tally>,
) -> bool {
    let mut witness = directory(before, rng, plan.tight);
    let observer = observe(&witness, before);
    let on_a_copy = rng.below(2) == 0;
    let ended = witness.round(plan, &[point.to_owned(), nth.to_string()], on_a_copy, |_, _| ());
    drop(observer);
    let is_killed = ended.status.signal() == Some(9);
    let failed = !is_killed && !ended.status.success();
    assert!(!failed, "{before:?} {point} {nth}: the child ended with {:?}", ended.status);
    let mut tally = tally.lock().unwrap();
    if is_killed {
        *tally.reached.entry(point.to_owned()).or_default() += 1;
    }
    tally.rounds += 1;
    tally.not_reached += u64::from(!is_killed);
    tally.acknowledged += ended.acknowledged;
    tally.in_effect_unacknowledged += ended.unacknowledged_in_effect;
    is_killed
}

/// A plan that has all the rare operations that reach points of their own.
fn plan_for_all(rng: &mut Rng) -> Plan {
    use Operation::{Clear, Close, Configure, Move};
    let rare: [fn(&Operation) -> bool; 4] = [
        |operation| matches!(operation, Clear),
        |operation| matches!(operation, Configure(_)),
        |operation| matches!(operation, Move(..)),
        |operation| matches!(operation, Close),
    ];
    let durability = rng.below(4);
    loop {
        let seed = rng.next();
        let plan =
            Plan { seed, threads: 1, operations: 300, waits: false, tight: true, durability };
        let operations: Vec<_> =
            (0..plan.operations).map(|index| plan.operation(0, index)).collect();
        if rare.iter().all(|is| operations.iter().any(is)) {
            return plan;
        }
    }
}

/// How often a child reaches each point: the maximum of several runs.
fn count_points(before: Before, plan: Plan, rng: &mut Rng) -> BTreeMap<String, u64> {
    let mut most = BTreeMap::new();
    for (point, times) in (0..TRIES).flat_map(|_| count_points_once(before, plan, rng)) {
        let known = most.entry(point).or_insert(times);
        *known = times.max(*known);
    }
    most
}

fn count_points_once(before: Before, plan: Plan, rng: &mut Rng) -> Vec<(String, u64)> {
    let counts = tempfile::NamedTempFile::new().unwrap();
    let extra = ["count".to_owned(), counts.path().to_str().unwrap().to_owned()];
    let mut witness = directory(before, rng, plan.tight);
    let _observer = observe(&witness, before);
    let ended = witness.round(plan, &extra, true, |_, _| ());
    assert!(ended.status.success(), "{plan:?}: the child failed without a kill");
    let text = std::fs::read_to_string(counts.path()).unwrap();
    let line =
        |line: &str| line.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse().unwrap()));
    text.lines().filter_map(line).collect()
}
