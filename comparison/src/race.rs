//! The race within one process: the contenders run the same workload, one directly after the
//! other, so that other load on the machine affects all of them alike.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::contender::{Bounds, Contender, Which};
use crate::latency::Latencies;
use crate::plan::{Plan, Workload, disk_bytes};
use crate::results::Results;
use crate::workload::{self, Key, Size, Values};

/// The number of drawn ids; longer workloads repeat them.
const DRAWS: usize = 1 << 20;
const COUNTERS: u32 = 1000;
/// Operations between two reads of the clock.
const BATCH: usize = 128;
/// Calls that are timed one by one in each round.
const TIMED: u32 = 100_000;
/// The time for which loading is measured.
const LOADING: Duration = Duration::from_secs(2);
/// The size in bytes of a transaction of the remaining load, which is not measured.
const AT_ONCE: usize = 16 << 20;
/// The time in which background threads reclaim space before the disk is measured.
const RECLAIMING: Duration = Duration::from_millis(1500);

/// The input of every contender at one size.
struct Course {
    size: Size,
    values: Values,
    shuffled: Vec<u32>,
    uniform: Vec<u32>,
    zipf: Vec<u32>,
}

/// A contender with all entries loaded.
struct Racer {
    which: Which,
    store: Box<dyn Contender>,
    dir: TempDir,
}

/// Measures the rates at one size, and with the same stores latencies, disk space and reopening.
pub(crate) fn run(plan: &Plan, size: Size, results: &mut Results) {
    let course = Course {
        size,
        values: Values::new(size.len),
        shuffled: workload::shuffled(size.entries, 0),
        uniform: workload::uniform(size.entries, DRAWS),
        zipf: workload::zipf(size.entries, 0.99, DRAWS),
    };
    for round in 0..plan.rounds {
        eprintln!("{}: round {} of {}", size.name, round + 1, plan.rounds);
        if plan.wants(Workload::LoadOrdered) {
            let ordered: Vec<u32> = (0..size.entries).collect();
            for which in plan.order(round) {
                let racer = course.load(plan, which, &ordered, Workload::LoadOrdered, results);
                racer.store.close();
            }
        }
        let racers: Vec<Racer> = plan
            .order(round)
            .into_iter()
            .map(|which| {
                course.load(plan, which, &course.shuffled, Workload::LoadShuffled, results)
            })
            .collect();
        if round == 0 && plan.wants(Workload::Disk) {
            racers.iter().for_each(|racer| course.space(plan, racer, "disk after load", results));
        }
        course.rates(plan, &racers, round, results);
        if plan.wants(Workload::Latency) {
            course.latencies(plan, &racers, round, results);
        }
        for racer in racers {
            course.after(plan, racer, round, results);
        }
    }
}

/// Syncs the disk, so that earlier writes do not slow down the next measurement.
pub(crate) fn settle(plan: &Plan) {
    if plan.settles {
        nix::unistd::sync();
    }
}

impl Course {
    fn load(
        &self,
        plan: &Plan,
        which: Which,
        ids: &[u32],
        workload: Workload,
        results: &mut Results,
    ) -> Racer {
        let dir = plan.fresh_dir();
        let store = which.open(dir.path(), Bounds::roomy(self.size.entries));
        settle(plan);
        let rate = set_all(&*store, &self.values, ids, 1);
        results.add(self.size.name, workload.name(), which, rate);
        Racer { which, store, dir }
    }

    /// Measures all rates except those of loading.
    fn rates(&self, plan: &Plan, racers: &[Racer], round: usize, results: &mut Results) {
        settle(plan);
        let start = round * 7919;
        for workload in Workload::RATES.into_iter().filter(|workload| plan.wants(*workload)) {
            for Racer { which, store, .. } in racers {
                let rate = match workload {
                    Workload::LoadOrdered | Workload::LoadShuffled => continue,
                    Workload::GetUniform => self.get(plan, *which, &**store, &self.uniform, start),
                    Workload::GetUniformTwo => on_two_threads(|n| {
                        self.get(plan, *which, &**store, &self.uniform, start + n)
                    }),
                    Workload::GetZipf => self.get(plan, *which, &**store, &self.zipf, start),
                    Workload::GetZipfTwo => {
                        on_two_threads(|n| self.get(plan, *which, &**store, &self.zipf, start + n))
                    }
                    Workload::Mix => self.mix(plan, *which, &**store, start),
                    Workload::IncrOne => incr(plan, *which, &**store, 1),
                    _ => incr(plan, *which, &**store, COUNTERS),
                };
                results.add(self.size.name, workload.name(), *which, rate);
            }
        }
    }

    fn get(
        &self,
        plan: &Plan,
        which: Which,
        store: &dyn Contender,
        ids: &[u32],
        start: usize,
    ) -> f64 {
        let mut wrong = 0;
        let rate = rate_for(plan.slice, |n| {
            wrong += u64::from(!get_one(store, &self.values, ids[(start + n) % ids.len()]));
        });
        assert_right(which, wrong);
        rate
    }

    fn mix(&self, plan: &Plan, which: Which, store: &dyn Contender, start: usize) -> f64 {
        let (mut wrong, mut value) = (0, Vec::new());
        let rate = rate_for(plan.slice, |n| {
            let id = self.zipf[(start + n) % self.zipf.len()];
            if n % 10 == 9 {
                set_one(store, &self.values, id, 2, &mut value);
            } else {
                wrong += u64::from(!get_one(store, &self.values, id));
            }
        });
        assert_right(which, wrong);
        rate
    }

    /// Times single calls.
    fn latencies(&self, plan: &Plan, racers: &[Racer], round: usize, results: &mut Results) {
        let timed = plan.scaled(TIMED) as usize;
        for Racer { which, store, .. } in racers {
            let (mut gets, mut sets, mut value) = (Latencies::new(), Latencies::new(), Vec::new());
            let mut wrong = 0;
            for n in 0..timed {
                let id = self.uniform[(round * timed + n) % self.uniform.len()];
                wrong += u64::from(!gets.time(|| get_one(&**store, &self.values, id)));
            }
            for id in self.shuffled.iter().cycle().skip(round * timed).take(timed) {
                self.values.write(*id, 3, &mut value);
                let key = Key::of(*id);
                sets.time(|| store.set(key.as_str(), &value));
            }
            assert_right(*which, wrong);
            gets.add_to(results, self.size.name, "get", *which);
            sets.add_to(results, self.size.name, "set", *which);
        }
    }

    /// Measures the reopening and the disk space of one contender, and closes it.
    fn after(&self, plan: &Plan, mut racer: Racer, round: usize, results: &mut Results) {
        let which = racer.which;
        if which.is_persistent() && plan.wants(Workload::Reopen) {
            racer.store.close();
            let started = Instant::now();
            racer.store = which.open(racer.dir.path(), Bounds::roomy(self.size.entries));
            let right = get_one(&*racer.store, &self.values, self.uniform[round]);
            results.add(
                self.size.name,
                "reopen after close",
                which,
                started.elapsed().as_secs_f64(),
            );
            assert!(right, "{} lost an entry in a close", which.name());
        }
        if which.is_persistent() && round == 0 && plan.wants(Workload::Disk) {
            for version in 4..7 {
                let ids = workload::shuffled(self.size.entries, version);
                set_all(&*racer.store, &self.values, &ids, version);
            }
            self.space(plan, &racer, "disk after overwriting three times", results);
            let lost = self
                .shuffled
                .iter()
                .filter(|id| !get_one(&*racer.store, &self.values, **id))
                .count();
            assert_eq!(lost, 0, "{} lost entries within its bounds", which.name());
        }
        racer.store.close();
    }

    /// Measures the disk space as a multiple of the bytes of keys and values.
    fn space(&self, plan: &Plan, racer: &Racer, metric: &str, results: &mut Results) {
        if racer.which.is_persistent() {
            racer.store.flush();
            // Background threads reclaim space within about a second.
            if plan.settles {
                std::thread::sleep(RECLAIMING);
            }
            let times = disk_bytes(racer.dir.path()) as f64 / self.size.bytes() as f64;
            results.add(self.size.name, metric, racer.which, times);
        }
    }
}

/// Whether a read of the key of `id` returns its value.
pub(crate) fn get_one(store: &dyn Contender, values: &Values, id: u32) -> bool {
    version_of(store, values, id).is_some()
}

/// The version of the value under the key of `id`, if it is sound.
pub(crate) fn version_of(store: &dyn Contender, values: &Values, id: u32) -> Option<u64> {
    let mut version = None;
    store.get(Key::of(id).as_str(), &mut |value| version = values.version(id, value));
    version
}

pub(crate) fn set_one(
    store: &dyn Contender,
    values: &Values,
    id: u32,
    version: u64,
    value: &mut Vec<u8>,
) {
    values.write(id, version, value);
    store.set(Key::of(id).as_str(), value);
}

/// Sets all of `ids`. Returns the rate per second of the measured part.
pub(crate) fn set_all(store: &dyn Contender, values: &Values, ids: &[u32], version: u64) -> f64 {
    let (mut value, mut done) = (Vec::new(), 0);
    let started = Instant::now();
    for batch in ids.chunks(BATCH) {
        for id in batch {
            set_one(store, values, *id, version, &mut value);
        }
        done += batch.len();
        if started.elapsed() > LOADING {
            break;
        }
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    for left in ids[done..].chunks((AT_ONCE / values.len()).min(50_000)) {
        let entries: Vec<_> = left
            .iter()
            .map(|id| {
                values.write(*id, version, &mut value);
                (Key::of(*id), value.clone())
            })
            .collect();
        store.set_many(&entries);
    }
    rate
}

pub(crate) fn assert_right(which: Which, wrong: u64) {
    assert!(wrong == 0 || which == Which::Nothing, "{}: {wrong} reads were wrong", which.name());
}

fn incr(plan: &Plan, which: Which, store: &dyn Contender, counters: u32) -> f64 {
    let keys: Vec<String> = (0..counters).map(|n| format!("counter {n} of {counters}")).collect();
    let (mut last, mut calls) = (0, 0);
    let rate = rate_for(plan.slice, |n| {
        last = store.incr(&keys[n % keys.len()]);
        calls = n + 1;
    });
    let expected = calls.div_ceil(keys.len()) as i64;
    assert!(
        last == expected || which == Which::Nothing,
        "{} counted {last} of {expected}",
        which.name()
    );
    rate
}

/// Calls `work` with 0, 1, 2 .. until `slice` has passed. Returns the calls per second.
fn rate_for(slice: Duration, mut work: impl FnMut(usize)) -> f64 {
    let started = Instant::now();
    let mut done = 0;
    loop {
        for n in done..done + BATCH {
            work(n);
        }
        done += BATCH;
        let elapsed = started.elapsed();
        if elapsed >= slice {
            return done as f64 / elapsed.as_secs_f64();
        }
    }
}

/// The sum of the rates of two threads. They start at the same time, half the draws apart.
fn on_two_threads(measure: impl Fn(usize) -> f64 + Sync) -> f64 {
    let barrier = Barrier::new(2);
    let on_one = |start| {
        barrier.wait();
        measure(start)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| on_one(DRAWS / 2));
        on_one(0) + other.join().unwrap()
    })
}
