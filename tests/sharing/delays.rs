//! How long calls took, and how much of that the machine is to blame for.
//!
//! Eight processes on a few cores wait for these longer than for each other, and what else the machine does comes on
//! top. The kernel tells of each thread how long it was ready to run while others had the processors (`schedstat`). Two
//! things do not count as a call's delay: such time of its own thread; and, of a call that took so long that it matters,
//! the longest stretch within it for which another thread of the processes at work was put off its processor. That
//! other one may have held what the call waited for, whether it was at work, in the background, or dying: what a killed
//! process holds is free when it gets a processor to die on, which its killer cannot hasten.
//!
//! Each process is looked at some ten milliseconds apart; what a thread waited between two looks counts as one stretch.
//! So does a time for which a processor stood still, as one of a virtual machine may: a thread on each, which has nothing
//! to do with the cache, sleeps again and again, and sees how late it is woken.
//!
//! What is left is time in which those who could make it shorter ran, or slept because the engine had them sleep.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::crew::{self, Waits};
use crate::harness::Verdict;
use crate::history::{History, Kind, Times};

/// When a thread was put off its processor: `long` nanoseconds somewhere between these two moments.
struct Wait {
    from: u64,
    to: u64,
    long: u64,
    /// Which thread of the history it was; none that is in it.
    thread: Option<u32>,
}

/// Who was put off the processors, and when.
#[derive(Default)]
pub(crate) struct Starved {
    /// Of each thread of the system: when it was looked at last, and how long it had waited by then.
    seen: HashMap<u32, (u64, u64)>,
    waits: Vec<Wait>,
}

impl Starved {
    /// Shorter ones explain nothing.
    const LEAST: u64 = 1_000_000;

    /// Looks at all threads of a process, the first of which is `thread` of the history.
    pub(crate) fn look(&mut self, process: u32, thread: u32) {
        for entry in
            std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten()
        {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let (Some(waited), to) = (Waits::of(process, id), crew::now()) else { continue };
            let (at, before) = self.seen.insert(id, (to, waited)).unwrap_or((to, 0));
            // Lower than before, it is another thread of the same number.
            let long = waited.checked_sub(before).unwrap_or(waited);
            if long >= Self::LEAST {
                let thread = (id == process).then_some(thread);
                self.waits.push(Wait { from: at.saturating_sub(long), to, long, thread });
            }
        }
    }

    /// Adds what the processors were looked at for.
    pub(crate) fn add(&mut self, processors: Processors) {
        self.waits.extend(processors.end());
    }

    /// The longest time between two moments for which one thread, and not `thread`, was put off.
    fn longest(&self, begin: u64, end: u64, thread: u32) -> u64 {
        let others = self.waits.iter().filter(|wait| wait.thread != Some(thread));
        let within =
            |wait: &Wait| wait.to.min(end).saturating_sub(wait.from.max(begin)).min(wait.long);
        others.map(within).max().unwrap_or(0)
    }
}

/// Threads that look how late they are woken, one on each processor.
pub(crate) struct Processors {
    threads: Vec<JoinHandle<Vec<Wait>>>,
    over: Arc<AtomicBool>,
}

impl Processors {
    const PAUSE: Duration = Duration::from_millis(2);

    pub(crate) fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        // Where the kernel does not tell, or allow it, none is watched.
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
            let from = crew::now();
            std::thread::sleep(Self::PAUSE);
            let to = crew::now();
            let long = (to - from).saturating_sub(Self::PAUSE.as_nanos() as u64);
            if long >= Starved::LEAST {
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

/// How long the calls of a round took.
pub(crate) struct Delays {
    /// Operations that were told.
    pub(crate) operations: u64,
    /// Operations that were begun and never told.
    pub(crate) pending: u64,
    /// The longest, without what the machine is to blame for.
    pub(crate) longest: Duration,
    /// What of each its own thread did not wait for a processor, in order.
    itself: Vec<u64>,
    slowest: Kind,
    by_the_wall: u64,
    /// What the machine is to blame for most.
    excused: u64,
}

impl Delays {
    /// Shorter ones are not looked at closely.
    pub(crate) const MATTERS: Duration = Duration::from_millis(50);

    pub(crate) fn of(history: &History, starved: &Starved) -> Self {
        let (mut operations, mut pending, mut itself, mut slowest) =
            (0, 0, Vec::new(), (0, Kind::Get));
        let (mut longest, mut by_the_wall, mut excused) = (0, 0, 0);
        for (name, op) in history.ops() {
            let thread = name.thread() as u32;
            *if op.end > 0 { &mut operations } else { &mut pending } += 1;
            // Nor may somebody have waited for long who was killed over it.
            let Some(times) = op.times(history.killed.get(&thread).copied()) else { continue };
            let Times { end, took, itself: own } = times;
            let others = if own < Self::MATTERS.as_nanos() as u64 {
                0
            } else {
                starved.longest(op.begin, end, thread).min(own)
            };
            longest = longest.max(own - others);
            by_the_wall = by_the_wall.max(took);
            excused = excused.max(others);
            if own >= slowest.0 {
                slowest = (own, op.kind);
            }
            itself.push(own);
        }
        itself.sort_unstable();
        let longest = Duration::from_nanos(longest);
        Self { operations, pending, longest, itself, slowest: slowest.1, by_the_wall, excused }
    }

    /// For people.
    pub(crate) fn told(&self) -> String {
        let all_but_one_in = |n: usize| {
            let at = (self.itself.len() - self.itself.len().div_ceil(n)).min(self.itself.len() - 1);
            Duration::from_nanos(self.itself[at])
        };
        let [p99, p9999, all] = [100, 10_000, self.itself.len() + 1].map(all_but_one_in);
        let [wall, excused] = [self.by_the_wall, self.excused].map(Duration::from_nanos);
        format!(
            "{} calls: 99 % within {p99:.1?}, 99.99 % within {p9999:.1?}, the longest, {:?}, {all:.1?} (by the clock on \
             the wall {wall:.1?}; up to {excused:.1?} of one while another thread had no processor)",
            self.itself.len(),
            self.slowest
        )
    }
}

/// That no more is excused than one other thread waited, within the call.
pub(crate) fn the_machine_is_blamed_for_one_wait_of_another() -> Verdict {
    let wait = |from, to, long, thread| Wait { from, to, long, thread };
    let waits =
        vec![wait(100, 400, 200, Some(1)), wait(0, 1000, 50, None), wait(350, 900, 500, Some(2))];
    let starved = Starved { waits, ..Starved::default() };
    assert_eq!(starved.longest(0, 1000, 3), 500);
    assert_eq!(starved.longest(0, 400, 3), 200, "of the third, 50 are within");
    assert_eq!(starved.longest(0, 400, 1), 50, "its own is not another's");
    assert_eq!(starved.longest(2000, 3000, 3), 0);
    Ok(())
}
