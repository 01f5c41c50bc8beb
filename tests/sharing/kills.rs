//! Eight processes work in one directory. Every few milliseconds one is killed with SIGKILL and
//! replaced: at random moments, and (with the feature `failpoints`) exactly at the named steps. No
//! acknowledged operation is lost, no read is wrong, no call is delayed, and no space leaks.
//!
//! The duration of each call is measured, also of a call during which its process was killed from
//! outside. The longest is compared with the longest in control rounds, before and after, in which
//! processes attach and detach as often but none is killed. [`delays`](crate::delays) defines what
//! counts as a delay.
//!
//! Shows invariants I23 and I24.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepwarm::Cache;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::child_processes::{self, ChildProcess, RunQueueTime, arguments, number};
use crate::delays::{Delays, Processors, StarvedThreads};
use crate::harness::Verdict;
use crate::histories;
use crate::history::{History, Journal, Killed};
use crate::home::home;
use crate::load::{KEYS, Load, Worker};
use crate::locks::first_held;
use crate::rng::{self, Rng};

const PROCESSES: usize = 8;
/// Kills, unless the environment asks for more.
const KILLS: u64 = 1040;
/// Kills in a round, after which the history and the directory are checked.
const ROUND: u64 = 200;
/// Mean milliseconds from one kill at a random moment to the next.
const PAUSE: u64 = 8;
/// How long a process may take to reach the named step at which it must die.
const PATIENCE: Duration = Duration::from_millis(700);
/// How much deaths may add to the duration of a call.
const MAX_ADDED: Duration = Duration::from_millis(100);
/// Like `PATIENCE`, while a part of the engine still needs a death.
const PART_PATIENCE: Duration = Duration::from_secs(10);
/// The mean time in which a process must end, on a busy machine; and the time for the first one.
const MEAN_EXIT: Duration = Duration::from_secs(1);
const FIRST_EXIT: Duration = Duration::from_secs(120);

/// Role: works until it is told to exit or killed. Arguments: the directory, the directory of the
/// journals, the number of its thread, the step at which it kills itself (or `-`), how often it
/// must reach the step until then, the load.
pub(crate) fn live(arguments: &[String]) {
    let [dir, journals, thread, point, nth, load @ ..] = arguments else { panic!("{arguments:?}") };
    let (thread, load) = (number(thread) as u32, Load::from_arguments(load));
    if point != "-" {
        die_at(point, number(nth));
    }
    let exit_requested = child_processes::exit_requested();
    let cache = load.builder(Path::new(dir), thread).open().unwrap();
    let mut worker =
        Worker::new(&cache, load, thread, Journal::in_file(Path::new(journals), thread));
    while !exit_requested.load(std::sync::atomic::Ordering::Acquire) {
        worker.step().unwrap();
    }
}

#[cfg(not(feature = "failpoints"))]
fn die_at(_: &str, _: u64) {}

#[cfg(feature = "failpoints")]
fn die_at(point: &str, nth: u64) {
    use std::sync::atomic::{AtomicU64, Ordering};
    let left = AtomicU64::new(nth);
    let die = move || {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let me = nix::unistd::Pid::this();
            nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    };
    fail::cfg_callback(point, die).unwrap();
}

/// The named steps of the source that a process can reach while others have the directory open.
#[cfg(feature = "failpoints")]
pub(crate) fn points() -> Vec<String> {
    // Only a process that creates the directory, opens it first, or closes it last, reaches these.
    const ALONE: [&str; 5] = ["recovery::", "sys::", "attach::marked", "detach::", "replace::"];
    let alone = |name: &String| ALONE.iter().any(|prefix| name.starts_with(prefix));
    crate::points::all().into_iter().filter(|name| !alone(name)).collect()
}

#[cfg(not(feature = "failpoints"))]
fn points() -> Vec<String> {
    Vec::new()
}

/// Stands for a kill at a random moment.
const ANYWHERE: &str = "anywhere";
/// The parts of the engine; in each of them at least one process must die.
const PARTS: [&str; 7] =
    ["commit::", "clear::", "checkpoint::", "compact::", "log::", "blob::", "attach::"];
/// The most extra small rounds, for parts in which no process has died by chance.
const MAX_EXTRA_ROUNDS: u64 = 20;

/// One of the working processes; the next process gets its slot.
struct WorkerSlot {
    child: ChildProcess,
    thread: u32,
    point: Option<String>,
    started: Instant,
    exit_requested: bool,
    /// When it was killed from outside, and the run-queue time of its thread.
    killed: Option<Killed>,
}

impl WorkerSlot {
    fn id(&self) -> u32 {
        self.child.process.id()
    }

    /// Whether the process has ended. It stays a zombie, so that the kernel still reports on it.
    fn is_dead(&self) -> bool {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(Pid::from_raw(self.id() as i32)), peek) != Ok(WaitStatus::StillAlive)
    }
}

/// How the processes of a round end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndBy {
    Kill,
    /// They exit when they are told.
    Request,
}

/// A directory that is used in several rounds.
struct Scenario {
    home: TempDir,
    load: Load,
    rng: Rng,
    next_thread: u32,
    /// Kills at each step.
    kills: BTreeMap<String, u64>,
    /// If set, processes that die at a named step die only in this part.
    part: Option<&'static str>,
}

/// A round while it runs. All its operations are recorded, and checked at the end.
struct RunningRound<'a> {
    scenario: &'a mut Scenario,
    ends: EndBy,
    journals: TempDir,
    slots: Vec<WorkerSlot>,
    /// By thread: when the kernel had removed each killed process, and the kills from outside.
    died: BTreeMap<u32, u64>,
    killed: BTreeMap<u32, Killed>,
    ended: u64,
    starved: StarvedThreads,
    processors: Processors,
    /// The slot whose run-queue times are sampled next.
    next_sampled: usize,
}

/// The result of a round.
struct RoundResult {
    kills: u64,
    delays: Delays,
}

impl<'a> RunningRound<'a> {
    fn new(scenario: &'a mut Scenario, ends: EndBy, journals: TempDir) -> Self {
        Self {
            scenario,
            ends,
            journals,
            slots: Vec::new(),
            died: BTreeMap::new(),
            killed: BTreeMap::new(),
            ended: 0,
            starved: StarvedThreads::default(),
            processors: Processors::watch(),
            next_sampled: 0,
        }
    }

    /// Starts a new process in a slot.
    fn start(&mut self, at: usize) {
        let scenario = &mut *self.scenario;
        let thread = scenario.thread();
        let point = if self.ends == EndBy::Kill && at % 2 == 1 { scenario.point() } else { None };
        // Most steps are reached all the time, some hardly ever.
        let nth = [1, 1, 2, 1 + scenario.rng.below(30)][scenario.rng.below(4) as usize];
        let (dir, named) = (scenario.dir(), point.as_deref().unwrap_or("-"));
        let mut line =
            arguments![dir.display(), self.journals.path().display(), thread, named, nth];
        line.extend(scenario.load.to_arguments());
        let slot = WorkerSlot {
            child: ChildProcess::start("live", line),
            thread,
            point,
            started: Instant::now(),
            exit_requested: false,
            killed: None,
        };
        match self.slots.get_mut(at) {
            Some(old) => *old = slot,
            None => self.slots.push(slot),
        }
    }

    /// Whether the process in a slot has ended. If so, records how.
    fn has_ended(&mut self, at: usize) -> bool {
        let slot = &mut self.slots[at];
        if !slot.is_dead() {
            return false;
        }
        self.starved.sample(slot.id(), slot.thread);
        let (gone, waited) =
            (child_processes::now(), RunQueueTime::of(slot.id(), slot.id()).unwrap_or(0));
        let status = slot.child.process.wait().unwrap();
        self.ended += 1;
        if status.success() && slot.exit_requested {
            return true;
        }
        let point = slot.point.as_deref().filter(|_| slot.killed.is_none());
        let point = point.or(slot.killed.is_some().then_some(ANYWHERE));
        match point.and_then(|point| self.scenario.kills.get_mut(point)) {
            Some(kills) if status.signal() == Some(9) => *kills += 1,
            _ => panic!("a process failed by itself: {status}"),
        }
        if let Some(killed) = &mut slot.killed {
            // A wait during the kill is counted only once the process gets a processor to die on.
            killed.waited = waited;
            self.killed.insert(slot.thread, *killed);
        }
        self.died.insert(slot.thread, gone);
        true
    }

    /// Tells or forces the process in a slot to end. The kernel may take some time over it.
    fn end(&mut self, at: usize, ends: EndBy) {
        let slot = &mut self.slots[at];
        if ends == EndBy::Request {
            slot.exit_requested = true;
            slot.child.request_exit();
        } else if slot.killed.is_none() && !slot.is_dead() {
            slot.killed = Some(Killed { at: child_processes::now(), waited: 0 });
            slot.child.process.kill().unwrap();
        }
    }

    /// Whether the process in a slot still has time to reach the step at which it kills itself.
    fn is_waited_for(&self, at: usize) -> bool {
        let slot = &self.slots[at];
        let patience = if self.scenario.needs_part() { PART_PATIENCE } else { PATIENCE };
        slot.point.is_some() && slot.started.elapsed() < patience
    }

    /// Whether the process in a slot may be killed. With tight limits, another process must stay
    /// that does not kill itself: if all were dead, recovery could bring evicted entries back.
    fn may_be_killed(&self, at: usize) -> bool {
        let journal = |slot: &WorkerSlot| self.journals.path().join(slot.thread.to_string());
        let is_at_work = |slot: &WorkerSlot| slot.killed.is_none() && journal(slot).exists();
        let mut others = self.slots.iter().enumerate().filter(|(other, _)| *other != at);
        !self.scenario.load.tight
            || others.any(|(_, slot)| slot.point.is_none() && is_at_work(slot))
    }

    /// Ends `count` processes, one after the other, and replaces each. If a part is set, continues
    /// until a process has died in it.
    fn run(&mut self, count: u64) {
        let started = Instant::now();
        let mut next = started;
        while self.ended < count || (self.scenario.needs_part() && started.elapsed() < FIRST_EXIT) {
            let is_busy = started.elapsed() < FIRST_EXIT + MEAN_EXIT * count as u32;
            assert!(is_busy, "only {} of {count} ended", self.ended);
            std::thread::sleep(Duration::from_millis(1));
            if Instant::now() >= next {
                next += Duration::from_millis(self.scenario.rng.below(2 * PAUSE + 1));
                let at = self.scenario.rng.below(PROCESSES as u64) as usize;
                let is_spared =
                    self.ends == EndBy::Kill && (!self.may_be_killed(at) || self.is_waited_for(at));
                if !is_spared {
                    self.end(at, self.ends);
                }
            }
            for at in 0..self.slots.len() {
                if self.has_ended(at) {
                    self.start(at);
                }
            }
            // Two slots at a time, as a sample has a cost.
            for _ in 0..2 {
                self.next_sampled = (self.next_sampled + 1) % PROCESSES;
                let slot = &self.slots[self.next_sampled];
                self.starved.sample(slot.id(), slot.thread);
            }
        }
    }

    /// Ends all remaining processes.
    fn end_all(&mut self, ends: EndBy) {
        (0..PROCESSES).for_each(|at| self.end(at, ends));
        let deadline = Instant::now() + FIRST_EXIT;
        for at in 0..PROCESSES {
            while !self.has_ended(at) {
                assert!(Instant::now() < deadline, "a process does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Scenario {
    fn new(load: Load) -> Self {
        let kills =
            points().into_iter().chain([ANYWHERE.to_owned()]).map(|point| (point, 0)).collect();
        Self { home: home(), load, rng: Rng::new(load.seed), next_thread: 1, kills, part: None }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    fn open(&self) -> Cache {
        self.load.builder(&self.dir(), 0).open().unwrap()
    }

    fn thread(&mut self) -> u32 {
        self.next_thread += 1;
        self.next_thread - 1
    }

    /// Whether a part is set in which no process has died yet.
    fn needs_part(&self) -> bool {
        let died_in = |part| self.kills.iter().any(|(point, n)| point.starts_with(part) && *n > 0);
        self.part.is_some_and(|part| !died_in(part))
    }

    /// A step for a process to die at: one without a death so far, or one that had deaths already.
    /// If `self.part` is set, a step of that part.
    fn point(&mut self) -> Option<String> {
        let unknown = self.rng.below(2) == 0 && self.kills.values().any(|n| *n == 0);
        let part = self.part;
        let named = |(point, n): &(&String, &u64)| match part {
            Some(part) => point.starts_with(part),
            None => *point != ANYWHERE && (**n == 0) == unknown,
        };
        let points: Vec<&String> =
            self.kills.iter().filter(named).map(|(point, _)| point).collect();
        (!points.is_empty()).then(|| points[self.rng.below(points.len() as u64) as usize].clone())
    }

    /// A worker in this process, which records its operations.
    fn recorder<'a>(&mut self, cache: &'a Cache, journals: &Path) -> Worker<'a> {
        let thread = self.thread();
        Worker::new(cache, self.load, thread, Journal::in_file(journals, thread))
    }

    /// Runs eight processes until `count` of them have ended and been replaced, and checks all
    /// operations and the directory.
    fn round(&mut self, ends: EndBy, count: u64) -> RoundResult {
        let journals = home();
        // The history begins with an empty cache.
        let cache = self.open();
        self.recorder(&cache, journals.path()).clear().unwrap();
        drop(cache);
        let tight = self.load.tight;
        let mut running = RunningRound::new(self, ends, journals);
        (0..PROCESSES).for_each(|at| running.start(at));
        running.run(count);
        let mut recoveries = Vec::new();
        let cache = if tight {
            let cache = running.scenario.open();
            running.end_all(EndBy::Request);
            cache
        } else if ends == EndBy::Request {
            running.end_all(ends);
            running.scenario.open()
        } else {
            // All processes are dead, so this open must recover the directory.
            running.end_all(ends);
            let alone = child_processes::now();
            let cache = running.scenario.open();
            recoveries.push((alone, child_processes::now()));
            cache
        };
        let RunningRound { journals, died, killed, mut starved, processors, .. } = running;
        starved.add(processors);
        let mut reader = self.recorder(&cache, journals.path());
        (0..KEYS).for_each(|key| reader.get(key).unwrap());
        drop(reader);
        let history = History { died, killed, recoveries, ..History::read(journals.path()) };
        self.check_history(&history);
        is_sound(&cache);
        cache.maintain().unwrap();
        is_sound(&cache);
        assert!(
            tight || cache.stats().evicted == 0,
            "the test stores more than its own bounds allow"
        );
        RoundResult { kills: history.died.len() as u64, delays: Delays::of(&history, &starved) }
    }

    fn check_history(&self, history: &History) {
        if let Err((key, violation)) = histories::check(history, self.load.tight) {
            panic!("key {key}: {violation:#?}\n{:?}", self.load);
        }
    }

    /// The size of the directory after a clear, when no process has it open.
    fn footprint(&self) -> Footprint {
        let cache = self.open();
        cache.clear().unwrap();
        // An emptied segment is removed by a checkpoint that began later.
        for _ in 0..4 {
            cache.maintain().unwrap();
        }
        is_sound(&cache);
        cache.close().unwrap();
        drop(cache);
        let mut footprint = Footprint::default();
        for entry in walkdir::WalkDir::new(self.dir()) {
            let entry = entry.unwrap();
            footprint.bytes += entry.metadata().unwrap().blocks() * 512;
            match entry.path().extension() {
                Some(segment) if segment == "seg" => footprint.segments += 1,
                _ => footprint.others += 1,
            }
        }
        footprint.is_locked = first_held(&self.dir().join("locks")).is_some();
        footprint
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Footprint {
    segments: u64,
    /// Other files, and directories.
    others: u64,
    bytes: u64,
    /// Whether a lock is still held.
    is_locked: bool,
}

impl Footprint {
    /// Whether no more is left than `before`. The number of spare segments may differ: those
    /// created ahead, and those that dead processes left for the next writer.
    fn is_back_at(&self, before: &Self) -> bool {
        const AHEAD: u64 = 5;
        let may = AHEAD * before.bytes / before.segments;
        self.segments <= before.segments + AHEAD
            && self.others == before.others
            && self.bytes <= before.bytes + may
            && !self.is_locked
            && !before.is_locked
    }
}

fn is_sound(cache: &Cache) {
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

fn report<'a>(what: &str, round: &'a RoundResult) -> &'a Delays {
    println!("{what}: {}", round.delays.summary());
    &round.delays
}

pub(crate) fn harm_no_other_process() -> Verdict {
    let target = std::env::var("KEEPWARM_SHARED_KILLS").map_or(KILLS, |text| number(&text));
    let seed = rng::seed();
    let (mut kills, mut operations, mut pending) = (0, 0, 0);
    let mut at_points: BTreeMap<String, u64> = BTreeMap::new();
    let has_died_at = |part: &str, kills: [&BTreeMap<String, u64>; 2]| {
        let mut points =
            kills.into_iter().flatten().filter(|(point, _)| point.starts_with(part)).peekable();
        points.peek().is_none() || points.any(|(_, n)| *n > 0)
    };
    for tight in [false, true] {
        // A quarter of the kills happen with tight limits, so that entries are evicted.
        let target = if tight { target / 4 } else { target - target / 4 };
        let load = Load { seed, tight, closes: !tight, stale: false };
        let mut scenario = Scenario::new(load);
        let control = |scenario: &mut Scenario| {
            report("without kills", &scenario.round(EndBy::Request, ROUND / 2)).longest
        };
        let before = control(&mut scenario);
        let baseline = scenario.footprint();
        let (mut longest, mut done) = (Duration::ZERO, 0);
        let mut more = MAX_EXTRA_ROUNDS;
        loop {
            let left = target.saturating_sub(done);
            // It is a matter of chance which steps are reached, and `kill_points` goes through them
            // one by one. But no part may be left out.
            let has_no_death = |part: &&&str| !has_died_at(part, [&at_points, &scenario.kills]);
            scenario.part =
                PARTS.iter().find(has_no_death).filter(|_| left == 0 && tight && more > 0).copied();
            if left == 0 && scenario.part.is_none() {
                break;
            }
            more -= u64::from(left == 0);
            let round =
                scenario.round(EndBy::Kill, if left == 0 { ROUND / 10 } else { ROUND.min(left) });
            let delays = report(&format!("{} kills", round.kills), &round);
            longest = longest.max(delays.longest);
            done += round.kills;
            operations += delays.operations;
            pending += delays.pending;
            let footprint = scenario.footprint();
            assert!(
                footprint.is_back_at(&baseline),
                "the directory has {footprint:?}, and had {baseline:?} before"
            );
        }
        let without = before.max(control(&mut scenario));
        assert!(
            longest <= without + MAX_ADDED,
            "a call took {longest:?}, without kills at most {without:?}"
        );
        println!(
            "longest call {longest:.1?}, without kills {without:.1?}; empty directory {baseline:?}"
        );
        kills += done;
        scenario.kills.into_iter().for_each(|(point, n)| *at_points.entry(point).or_default() += n);
    }
    assert!(kills >= target, "{kills} kills");
    let never: Vec<&String> =
        at_points.iter().filter(|(_, n)| **n == 0).map(|(point, _)| point).collect();
    println!(
        "{kills} kills among {PROCESSES} processes: {operations} operations acknowledged, 0 lost, \
         0 wrong, {pending} never acknowledged; kills at {at_points:?}"
    );
    println!("no kills at {never:?}");
    for part in PARTS {
        assert!(
            has_died_at(part, [&at_points, &BTreeMap::new()]),
            "no process died at any step of {part}"
        );
    }
    Ok(())
}
