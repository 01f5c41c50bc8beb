//! Eight processes at work in one directory, one killed with SIGKILL every few milliseconds and replaced: at random
//! moments, and (with the feature `failpoints`) exactly at the named steps. Nothing that was acknowledged is lost,
//! nobody reads anything wrong, nobody waits, and nothing is left behind.
//!
//! Of each call, also of one over which its process was killed from outside, it is measured how much longer it took than
//! any does where processes come and go as often and nobody is killed, before and after; [`delays`](crate::delays) says
//! what counts.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepwarm::Cache;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::crew::{self, Member, Waits, arguments, number};
use crate::delays::{Delays, Processors, Starved};
use crate::harness::Verdict;
use crate::histories;
use crate::history::{History, Journal, Killed};
use crate::home::home;
use crate::load::{KEYS, Load, Worker};
use crate::locks::first_held;
use crate::rng::{self, Rng};

const PROCESSES: usize = 8;
/// In the test command.
const KILLS: u64 = 1040;
/// Kills, and then a look at everything.
const ROUND: u64 = 200;
/// Mean milliseconds from one kill at a random moment to the next.
const PAUSE: u64 = 8;
/// How long one that is to die at a named step may take to come by it.
const PATIENCE: Duration = Duration::from_millis(700);
/// What deaths may add to the time of a call.
const MOST_ADDED: Duration = Duration::from_millis(100);
/// The same where somebody must, in the end.
const LONGER: Duration = Duration::from_secs(10);
/// How long it may take in the mean until a process has ended, on a busy machine; and until the first has.
const MOST: Duration = Duration::from_secs(1);
const AT_FIRST: Duration = Duration::from_secs(120);

/// A process that works until it is dismissed or killed: the directory, where to write down what it does, the number of
/// its thread, the step at which it kills itself (or `-`), at which time of coming by, and the load.
pub(crate) fn live(arguments: &[String]) {
    let [dir, journals, thread, point, nth, load @ ..] = arguments else { panic!("{arguments:?}") };
    let (thread, load) = (number(thread) as u32, Load::from_arguments(load));
    if point != "-" {
        die_at(point, number(nth));
    }
    let dismissed = crew::dismissed();
    let cache = load.builder(Path::new(dir), thread).open().unwrap();
    let mut worker =
        Worker::new(&cache, load, thread, Journal::in_file(Path::new(journals), thread));
    while !dismissed.load(std::sync::atomic::Ordering::Acquire) {
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

/// The named steps of the source at which a process can be killed that shares its directory with others.
#[cfg(feature = "failpoints")]
pub(crate) fn points() -> Vec<String> {
    // Only whoever makes a directory, is the first to open it, or the last to leave, comes by these.
    const ALONE: [&str; 5] = ["recovery::", "sys::", "attach::marked", "detach::", "replace::"];
    let alone = |name: &String| ALONE.iter().any(|prefix| name.starts_with(prefix));
    crate::points::all().into_iter().filter(|name| !alone(name)).collect()
}

#[cfg(not(feature = "failpoints"))]
fn points() -> Vec<String> {
    Vec::new()
}

/// At random moments.
const ANYWHERE: &str = "anywhere";
/// The parts of the engine, each of which somebody dies in.
const PARTS: [&str; 7] =
    ["commit::", "clear::", "checkpoint::", "compact::", "log::", "blob::", "attach::"];
/// Small rounds in which processes die in a part that chance has passed by, at most.
const MORE_ROUNDS: u64 = 20;

/// One of the processes at work; the next takes its place.
struct Place {
    member: Member,
    thread: u32,
    point: Option<String>,
    started: Instant,
    dismissed: bool,
    /// When it was killed from outside, and how long its thread had waited for a processor.
    killed: Option<Killed>,
}

impl Place {
    fn id(&self) -> u32 {
        self.member.child.id()
    }

    /// Whether the process has ended. As long as nobody waits for it, the kernel still tells of it.
    fn is_gone(&self) -> bool {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(Pid::from_raw(self.id() as i32)), peek) != Ok(WaitStatus::StillAlive)
    }
}

/// How the processes of a round end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Killed,
    /// By themselves, when they are told.
    Dismissed,
}

/// A directory, and what becomes of it.
struct Scene {
    home: TempDir,
    load: Load,
    rng: Rng,
    next_thread: u32,
    /// Kills at each step.
    kills: BTreeMap<String, u64>,
    /// Where alone processes are to die, if they are to at a named step.
    part: Option<&'static str>,
}

/// Some time of it, all of which is written down and checked.
struct Act<'a> {
    scene: &'a mut Scene,
    ends: Ends,
    journals: TempDir,
    places: Vec<Place>,
    /// When the processes were gone that were killed, by thread, and when the kills came that came from outside.
    died: BTreeMap<u32, u64>,
    killed: BTreeMap<u32, Killed>,
    ended: u64,
    starved: Starved,
    processors: Processors,
    /// At which place it is looked next who has no processor.
    looks_at: usize,
}

/// What a round came to.
struct Round {
    kills: u64,
    delays: Delays,
}

impl<'a> Act<'a> {
    fn new(scene: &'a mut Scene, ends: Ends, journals: TempDir) -> Self {
        Self {
            scene,
            ends,
            journals,
            places: Vec::new(),
            died: BTreeMap::new(),
            killed: BTreeMap::new(),
            ended: 0,
            starved: Starved::default(),
            processors: Processors::watch(),
            looks_at: 0,
        }
    }

    /// Puts a new process in a place.
    fn start(&mut self, at: usize) {
        let scene = &mut *self.scene;
        let thread = scene.thread();
        let point = if self.ends == Ends::Killed && at % 2 == 1 { scene.point() } else { None };
        // Most steps are passed by all the time, some hardly ever.
        let nth = [1, 1, 2, 1 + scene.rng.below(30)][scene.rng.below(4) as usize];
        let (dir, named) = (scene.dir(), point.as_deref().unwrap_or("-"));
        let mut line =
            arguments![dir.display(), self.journals.path().display(), thread, named, nth];
        line.extend(scene.load.to_arguments());
        let place = Place {
            member: Member::start("live", line),
            thread,
            point,
            started: Instant::now(),
            dismissed: false,
            killed: None,
        };
        match self.places.get_mut(at) {
            Some(old) => *old = place,
            None => self.places.push(place),
        }
    }

    /// If the process in a place is gone: notes how it ended.
    fn has_ended(&mut self, at: usize) -> bool {
        let place = &mut self.places[at];
        if !place.is_gone() {
            return false;
        }
        self.starved.look(place.id(), place.thread);
        let (gone, waited) = (crew::now(), Waits::of(place.id(), place.id()).unwrap_or(0));
        let status = place.member.child.wait().unwrap();
        self.ended += 1;
        if status.success() && place.dismissed {
            return true;
        }
        let point = place.point.as_deref().filter(|_| place.killed.is_none());
        let point = point.or(place.killed.is_some().then_some(ANYWHERE));
        match point.and_then(|point| self.scene.kills.get_mut(point)) {
            Some(kills) if status.signal() == Some(9) => *kills += 1,
            _ => panic!("a process failed by itself: {status}"),
        }
        if let Some(killed) = &mut place.killed {
            // It may have waited when it was killed, which is counted only when it gets a processor to die on.
            killed.waited = waited;
            self.killed.insert(place.thread, *killed);
        }
        self.died.insert(place.thread, gone);
        true
    }

    /// Has the process in a place end. The kernel takes its time over it.
    fn end(&mut self, at: usize, ends: Ends) {
        let place = &mut self.places[at];
        if ends == Ends::Dismissed {
            place.dismissed = true;
            place.member.dismiss();
        } else if place.killed.is_none() && !place.is_gone() {
            place.killed = Some(Killed { at: crew::now(), waited: 0 });
            place.member.child.kill().unwrap();
        }
    }

    /// One that dies by itself, if it comes by its step before long.
    fn is_left_alone(&self, at: usize) -> bool {
        let place = &self.places[at];
        let patience = if self.scene.lacks_part() { LONGER } else { PATIENCE };
        place.point.is_some() && place.started.elapsed() < patience
    }

    /// Whether another process is at work that nobody but this one ends. Where entries are evicted, there must always be
    /// one: whoever opened the directory after the last of all was killed could find some again.
    fn may_be_killed(&self, at: usize) -> bool {
        let journal = |place: &Place| self.journals.path().join(place.thread.to_string());
        let is_at_work = |place: &Place| place.killed.is_none() && journal(place).exists();
        let mut others = self.places.iter().enumerate().filter(|(other, _)| *other != at);
        !self.scene.load.tight
            || others.any(|(_, place)| place.point.is_none() && is_at_work(place))
    }

    /// Has `count` processes end, and one of those in the part that is asked for, one after the other, and others take
    /// their places.
    fn go_on(&mut self, count: u64) {
        let started = Instant::now();
        let mut next = started;
        while self.ended < count || (self.scene.lacks_part() && started.elapsed() < AT_FIRST) {
            let is_busy = started.elapsed() < AT_FIRST + MOST * count as u32;
            assert!(is_busy, "only {} of {count} ended", self.ended);
            std::thread::sleep(Duration::from_millis(1));
            if Instant::now() >= next {
                next += Duration::from_millis(self.scene.rng.below(2 * PAUSE + 1));
                let at = self.scene.rng.below(PROCESSES as u64) as usize;
                let is_left = self.ends == Ends::Killed
                    && (!self.may_be_killed(at) || self.is_left_alone(at));
                if !is_left {
                    self.end(at, self.ends);
                }
            }
            for at in 0..self.places.len() {
                if self.has_ended(at) {
                    self.start(at);
                }
            }
            // In turn, as it costs some.
            for _ in 0..2 {
                self.looks_at = (self.looks_at + 1) % PROCESSES;
                let place = &self.places[self.looks_at];
                self.starved.look(place.id(), place.thread);
            }
        }
    }

    /// Has all that are left end.
    fn end_all(&mut self, ends: Ends) {
        (0..PROCESSES).for_each(|at| self.end(at, ends));
        let deadline = Instant::now() + AT_FIRST;
        for at in 0..PROCESSES {
            while !self.has_ended(at) {
                assert!(Instant::now() < deadline, "a process does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Scene {
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

    /// Whether nobody has died in the part that is asked for.
    fn lacks_part(&self) -> bool {
        let died_in = |part| self.kills.iter().any(|(point, n)| point.starts_with(part) && *n > 0);
        self.part.is_some_and(|part| !died_in(part))
    }

    /// A step for a process to die at: one at which nobody has died so far, or one that is come by often; one of
    /// `self.part`, if there is such a part.
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

    /// Someone who writes down what he does himself.
    fn witness<'a>(&mut self, cache: &'a Cache, journals: &Path) -> Worker<'a> {
        let thread = self.thread();
        Worker::new(cache, self.load, thread, Journal::in_file(journals, thread))
    }

    /// Has eight processes work, `count` of them end and be replaced, and looks at all that was done and seen.
    fn round(&mut self, ends: Ends, count: u64) -> Round {
        let journals = home();
        // All begins with nothing there.
        let cache = self.open();
        self.witness(&cache, journals.path()).clear().unwrap();
        drop(cache);
        let tight = self.load.tight;
        let mut act = Act::new(self, ends, journals);
        (0..PROCESSES).for_each(|at| act.start(at));
        act.go_on(count);
        let mut recoveries = Vec::new();
        let cache = if tight {
            let cache = act.scene.open();
            act.end_all(Ends::Dismissed);
            cache
        } else if ends == Ends::Dismissed {
            act.end_all(ends);
            act.scene.open()
        } else {
            // Nobody is left, so what they left has to be recovered.
            act.end_all(ends);
            let alone = crew::now();
            let cache = act.scene.open();
            recoveries.push((alone, crew::now()));
            cache
        };
        let Act { journals, died, killed, mut starved, processors, .. } = act;
        starved.add(processors);
        let mut reader = self.witness(&cache, journals.path());
        (0..KEYS).for_each(|key| reader.get(key).unwrap());
        drop(reader);
        let history = History { died, killed, recoveries, ..History::read(journals.path()) };
        self.judge(&history);
        is_sound(&cache);
        cache.maintain().unwrap();
        is_sound(&cache);
        assert!(
            tight || cache.stats().evicted == 0,
            "the test stores more than its own bounds allow"
        );
        Round { kills: history.died.len() as u64, delays: Delays::of(&history, &starved) }
    }

    fn judge(&self, history: &History) {
        if let Err((key, violation)) = histories::check(history, self.load.tight) {
            panic!("key {key}: {violation:#?}\n{:?}", self.load);
        }
    }

    /// What the directory comes to when all is cleared and nobody has it open.
    fn footprint(&self) -> Footprint {
        let cache = self.open();
        cache.clear().unwrap();
        // What is emptied goes with a checkpoint that began later.
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
    /// Whether anybody still holds a lock.
    is_locked: bool,
}

impl Footprint {
    /// Whether no more is left than `before`. Some segments that are made ahead, or that the dead left to who needs one next, may be there or not.
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

fn report<'a>(what: &str, round: &'a Round) -> &'a Delays {
    println!("{what}: {}", round.delays.told());
    &round.delays
}

pub(crate) fn the_death_of_any_harms_nobody() -> Verdict {
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
        // One in four kills where entries are evicted.
        let target = if tight { target / 4 } else { target - target / 4 };
        let load = Load { seed, tight, closes: !tight, stale: false };
        let mut scene = Scene::new(load);
        let control = |scene: &mut Scene| {
            report("without kills", &scene.round(Ends::Dismissed, ROUND / 2)).longest
        };
        let before = control(&mut scene);
        let baseline = scene.footprint();
        let (mut longest, mut done) = (Duration::ZERO, 0);
        let mut more = MORE_ROUNDS;
        loop {
            let left = target.saturating_sub(done);
            // Which steps are reached takes chance, and `kill_points` goes through them one by one; but no part may be left out.
            let is_left = |part: &&&str| !has_died_at(part, [&at_points, &scene.kills]);
            scene.part =
                PARTS.iter().find(is_left).filter(|_| left == 0 && tight && more > 0).copied();
            if left == 0 && scene.part.is_none() {
                break;
            }
            more -= u64::from(left == 0);
            let round =
                scene.round(Ends::Killed, if left == 0 { ROUND / 10 } else { ROUND.min(left) });
            let delays = report(&format!("{} kills", round.kills), &round);
            longest = longest.max(delays.longest);
            done += round.kills;
            operations += delays.operations;
            pending += delays.pending;
            let footprint = scene.footprint();
            assert!(
                footprint.is_back_at(&baseline),
                "{footprint:?} is left, {baseline:?} was before"
            );
        }
        let without = before.max(control(&mut scene));
        assert!(
            longest <= without + MOST_ADDED,
            "a call took {longest:?}, without kills none more than {without:?}"
        );
        println!(
            "no call took more than {longest:.1?}, without kills {without:.1?}; left: {baseline:?}"
        );
        kills += done;
        scene.kills.into_iter().for_each(|(point, n)| *at_points.entry(point).or_default() += n);
    }
    assert!(kills >= target, "{kills} kills");
    let never: Vec<&String> =
        at_points.iter().filter(|(_, n)| **n == 0).map(|(point, _)| point).collect();
    println!(
        "{kills} kills among {PROCESSES} processes: {operations} operations acknowledged, 0 lost, 0 wrong, {pending} \
         never told; kills at {at_points:?}"
    );
    println!("nobody died at {never:?}");
    for part in PARTS {
        assert!(
            has_died_at(part, [&at_points, &BTreeMap::new()]),
            "nobody died at any step of {part}"
        );
    }
    Ok(())
}
