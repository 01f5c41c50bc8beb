//! How long calls took, and how much of that the scheduler of the machine caused.
//!
//! Eight processes on a few cores wait longer for a core than for each other, and the machine may
//! have other work. The kernel reports the run-queue time of each thread: how long it was ready to
//! run while other threads had the processors (`schedstat`). Two things do not count as a delay of
//! a call:
//!
//! - the run-queue time of its own thread;
//! - for a call that took long enough to matter, the longest stretch within it for which one other
//!   thread of the processes was descheduled. That thread may have held what the call waited for,
//!   whether it worked, ran in the background, or was dying: the locks of a killed process become
//!   free only when it gets a processor to die on, and its killer cannot speed that up.
//!
//! Each process is sampled about every ten milliseconds. The run-queue time of a thread between two
//! samples counts as one stretch. So does a time for which a whole processor was stalled, as
//! happens to a virtual machine. To detect this, a thread on each processor, which does not use the
//! cache, sleeps again and again and measures how late it is woken.
//!
//! The rest is time in which the threads that could shorten it ran, or slept because of the engine.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::child_processes::{self, RunQueueTime};
use crate::harness::Verdict;
use crate::history::{History, Kind, Times};

/// A stretch for which a thread was descheduled: `long` nanoseconds between these two moments.
struct Wait {
    from: u64,
    to: u64,
    long: u64,
    /// The thread of the history; `None` for a thread that is not in it.
    thread: Option<u32>,
}

/// Which threads were descheduled, and when.
#[derive(Default)]
pub(crate) struct StarvedThreads {
    /// For each thread of the system: the time of its last sample, and its run-queue time by then.
    seen: HashMap<u32, (u64, u64)>,
    waits: Vec<Wait>,
}

impl StarvedThreads {
    /// Shorter stretches are ignored.
    const MIN: u64 = 1_000_000;

    /// Samples all threads of a process. Its main thread is `thread` of the history.
    pub(crate) fn sample(&mut self, process: u32, thread: u32) {
        for entry in
            std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten()
        {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let (Some(waited), to) = (RunQueueTime::of(process, id), child_processes::now()) else {
                continue;
            };
            let (at, before) = self.seen.insert(id, (to, waited)).unwrap_or((to, 0));
            // If the time is lower than before, a new thread has the same id.
            let long = waited.checked_sub(before).unwrap_or(waited);
            if long >= Self::MIN {
                let thread = (id == process).then_some(thread);
                self.waits.push(Wait { from: at.saturating_sub(long), to, long, thread });
            }
        }
    }

    /// Adds the stalls of the processors.
    pub(crate) fn add(&mut self, processors: Processors) {
        self.waits.extend(processors.end());
    }

    /// The longest time between two moments for which one thread other than `thread` was
    /// descheduled.
    fn longest(&self, begin: u64, end: u64, thread: u32) -> u64 {
        let others = self.waits.iter().filter(|wait| wait.thread != Some(thread));
        let within =
            |wait: &Wait| wait.to.min(end).saturating_sub(wait.from.max(begin)).min(wait.long);
        others.map(within).max().unwrap_or(0)
    }
}

/// Threads that measure how late they are woken, one on each processor.
pub(crate) struct Processors {
    threads: Vec<JoinHandle<Vec<Wait>>>,
    over: Arc<AtomicBool>,
}

impl Processors {
    const PAUSE: Duration = Duration::from_millis(2);

    pub(crate) fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        // No processor is watched if the kernel does not report or allow affinities.
        let ours = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let ours = (0..CpuSet::count()).filter(|number| ours.is_set(*number).unwrap_or(false));
        let watch = |number| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || Self::watch_one(number, &over))
        };
        let threads = ours.map(watch).collect();
        Self { threads, over }
    }

    fn watch_one(number: usize, over: &AtomicBool) -> Vec<Wait> {
        let (mut alone, mut waits) = (CpuSet::new(), Vec::new());
        if alone.set(number).and_then(|()| sched_setaffinity(Pid::from_raw(0), &alone)).is_err() {
            return waits;
        }
        while !over.load(Ordering::Relaxed) {
            let from = child_processes::now();
            std::thread::sleep(Self::PAUSE);
            let to = child_processes::now();
            let long = (to - from).saturating_sub(Self::PAUSE.as_nanos() as u64);
            if long >= StarvedThreads::MIN {
                waits.push(Wait { from, to, long, thread: None });
            }
        }
        waits
    }

    fn end(mut self) -> Vec<Wait> {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).flat_map(|thread| thread.join().unwrap()).collect()
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The durations of the calls of a round.
pub(crate) struct Delays {
    /// Operations that were acknowledged.
    pub(crate) operations: u64,
    /// Operations that began and were never acknowledged.
    pub(crate) pending: u64,
    /// The longest call, without the time that the scheduler caused.
    pub(crate) longest: Duration,
    /// The duration of each call without the run-queue time of its own thread, sorted.
    durations: Vec<u64>,
    slowest: Kind,
    wall_clock: u64,
    /// The longest time of another thread's wait that was subtracted from one call.
    excused: u64,
}

impl Delays {
    /// The waits of other threads are not subtracted from shorter calls.
    pub(crate) const RELEVANT: Duration = Duration::from_millis(50);

    pub(crate) fn of(history: &History, starved: &StarvedThreads) -> Self {
        let (mut operations, mut pending, mut durations, mut slowest) =
            (0, 0, Vec::new(), (0, Kind::Get));
        let (mut longest, mut wall_clock, mut excused) = (0, 0, 0);
        for (name, op) in history.ops() {
            let thread = name.thread() as u32;
            *if op.end > 0 { &mut operations } else { &mut pending } += 1;
            // A call during which its process was killed from outside counts up to the kill.
            let Some(times) = op.times(history.killed.get(&thread).copied()) else { continue };
            let Times { end, took, itself: own } = times;
            let others = if own < Self::RELEVANT.as_nanos() as u64 {
                0
            } else {
                starved.longest(op.begin, end, thread).min(own)
            };
            longest = longest.max(own - others);
            wall_clock = wall_clock.max(took);
            excused = excused.max(others);
            if own >= slowest.0 {
                slowest = (own, op.kind);
            }
            durations.push(own);
        }
        durations.sort_unstable();
        let longest = Duration::from_nanos(longest);
        Self { operations, pending, longest, durations, slowest: slowest.1, wall_clock, excused }
    }

    /// The durations, as text.
    pub(crate) fn summary(&self) -> String {
        let all_but_one_in = |n: usize| {
            let at = (self.durations.len() - self.durations.len().div_ceil(n))
                .min(self.durations.len() - 1);
            Duration::from_nanos(self.durations[at])
        };
        let [p99, p9999, all] = [100, 10_000, self.durations.len() + 1].map(all_but_one_in);
        let [wall, excused] = [self.wall_clock, self.excused].map(Duration::from_nanos);
        format!(
            "{} calls: 99 % within {p99:.1?}, 99.99 % within {p9999:.1?}, the longest, {:?}, \
             {all:.1?} (wall clock {wall:.1?}; up to {excused:.1?} of one call excused, while \
             another thread had no processor)",
            self.durations.len(),
            self.slowest
        )
    }
}

/// A call is excused for the wait of one other thread, and only for the part within the call.
pub(crate) fn one_wait_of_another_is_excused() -> Verdict {
    let wait = |from, to, long, thread| Wait { from, to, long, thread };
    let waits =
        vec![wait(100, 400, 200, Some(1)), wait(0, 1000, 50, None), wait(350, 900, 500, Some(2))];
    let starved = StarvedThreads { waits, ..StarvedThreads::default() };
    assert_eq!(starved.longest(0, 1000, 3), 500);
    assert_eq!(starved.longest(0, 400, 3), 200, "of the third wait, 50 are within the call");
    assert_eq!(starved.longest(0, 400, 1), 50, "the wait of its own thread is no excuse");
    assert_eq!(starved.longest(2000, 3000, 3), 0);
    Ok(())
}
