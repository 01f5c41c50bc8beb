//! Power cuts on real file systems: ext4 in its three data modes, and XFS, on loop devices. Two
//! processes work in one directory; then the file system is shut down without a flush of its log,
//! mounted again, and the directory is opened.
//!
//! `Sync` loses nothing that was acknowledged, and what a `Sync` call reported is so. `Interval`
//! loses nothing that ended before a round of syncs began which was over before the cut. No key has
//! a value that is older than that, or one that was never stored under it. A key that was just
//! being changed may be absent.
//!
//! `KEEPWARM_REAL_CUTS` sets the number of cuts (default 60), `KEEPWARM_SEED` the seed. Needs root.
//!
//! Shows invariants I36 and I37.
#![cfg(test)]

#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/home.rs"]
mod home;
mod judge;
#[path = "../support/rng.rs"]
mod rng;
mod volume;
mod worker;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use harness::Verdict;
use judge::{Base, Tally, judge};
use rng::Rng;
use volume::{KINDS, Kind, Volume};
use worker::{Mode, Worker, builder, now};

fn main() -> ExitCode {
    if worker::work_if_worker() {
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_power_cut_loses_nothing_that_was_promised", promised),
        ("what_a_killed_process_wrote_survives_a_power_cut", left_by_the_dead),
        ("a_store_that_does_not_sync_is_caught", caught),
    ])
}

/// The most time that anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two workers, until one of them has done some calls; then the power is cut. `judged` are the
/// modes that they should have.
fn cut(
    volume: &mut Volume,
    base: &Base,
    round: u64,
    modes: [Mode; 2],
    judged: [Mode; 2],
    rng: &mut Rng,
    tally: &mut Tally,
) -> Base {
    let seed = rng.next();
    let start = |worker: usize| {
        let number = worker as u64;
        Worker::start(volume.path(), modes[worker], number, round, seed ^ number, u64::MAX)
    };
    let mut workers = [start(0), start(1)];
    let most = [20, 200, 1000][rng.below(3) as usize];
    let least = 1 + rng.below(most);
    wait_until("the work", || {
        let ended = workers.iter_mut().any(Worker::has_ended);
        assert!(!ended, "a worker ended before the cut");
        workers.iter().map(Worker::acknowledged).min() >= Some(least)
    });
    let at = now();
    if volume.kind.ends_first {
        workers.iter_mut().for_each(Worker::end);
    }
    volume.cut();
    let reports = workers.map(Worker::kill);
    volume.restart();
    let cache = builder(volume.path()).open().unwrap();
    let found =
        judge(&cache, base, round, at, [(judged[0], &reports[0]), (judged[1], &reports[1])], tally);
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    cache.close().unwrap();
    found
}

fn cuts_on(kind: Kind, cuts: u64, rng: &mut Rng) -> Result<Tally, &'static str> {
    /// So many cuts in one directory.
    const LIVES: u64 = 12;
    let (mut tally, mut round) = (Tally::default(), 0);
    while tally.cuts < cuts {
        let mut volume = Volume::new(kind)?;
        let mut base = Base::new();
        for _ in 0..LIVES.min(cuts - tally.cuts) {
            round += 1;
            let modes = match rng.below(3) {
                0 => [Mode::Sync, Mode::Sync],
                1 => [Mode::Interval, Mode::Interval],
                _ => [Mode::Buffered, Mode::Sync],
            };
            base = cut(&mut volume, &base, round, modes, modes, rng, &mut tally);
            assert!(tally.is_clean(), "{}, cut {round}, {modes:?}: {tally}", kind.name);
        }
    }
    Ok(tally)
}

fn promised() -> Verdict {
    const CUTS: u64 = 60;
    volume::prepare()?;
    let cuts = std::env::var("KEEPWARM_REAL_CUTS").map_or(CUTS, |n| n.parse().unwrap());
    let mut rng = Rng::new(rng::seed());
    for kind in KINDS {
        let tally = cuts_on(kind, cuts.div_ceil(KINDS.len() as u64), &mut rng)?;
        println!("{}: {tally}", kind.name);
    }
    Ok(())
}

/// A process whose interval never ends is killed. Another one, which has the directory open or
/// opens it then, syncs what it wrote.
fn left_by_the_dead() -> Verdict {
    const CALLS: u64 = 200;
    volume::prepare()?;
    let mut rng = Rng::new(rng::seed());
    for (kind, is_beside) in [(KINDS[0], true), (KINDS[0], false), (KINDS[3], true)] {
        let mut volume = Volume::new(kind)?;
        let start = |worker, calls, rng: &mut Rng| {
            Worker::start(volume.path(), Mode::Seldom, worker, 1, rng.next(), calls)
        };
        let dying = start(0, CALLS, &mut rng);
        wait_until("the opening", || dying.acknowledged() > 0);
        let beside = is_beside.then(|| start(1, 1, &mut rng));
        wait_until("the work", || dying.acknowledged() >= CALLS);
        let reports = dying.kill();
        let next = beside.unwrap_or_else(|| start(1, 1, &mut rng));
        wait_until("the sync of what the killed process wrote", || next.left_synced() > 0);
        let at = now();
        volume.cut();
        drop(next.kill());
        volume.restart();
        let cache = builder(volume.path()).open().unwrap();
        let mut tally = Tally::default();
        judge(
            &cache,
            &Base::new(),
            1,
            at,
            [(Mode::Sync, &reports), (Mode::Buffered, &[])],
            &mut tally,
        );
        println!("{}, beside it: {is_beside}: {tally}", kind.name);
        assert!(tally.is_clean() && tally.torn == 0, "{}: {tally}", kind.name);
    }
    Ok(())
}

/// The planted fault: workers that never sync are judged as if they had to.
fn caught() -> Verdict {
    const MOST: u64 = 10;
    volume::prepare()?;
    let mut rng = Rng::new(rng::seed());
    for kind in KINDS {
        let (mut volume, mut tally) = (Volume::new(kind)?, Tally::default());
        let (modes, judged) = ([Mode::Buffered; 2], [Mode::Sync; 2]);
        let mut base = Base::new();
        for round in 1..=MOST {
            if tally.lost + tally.older > 0 {
                break;
            }
            base = cut(&mut volume, &base, round, modes, judged, &mut rng, &mut tally);
        }
        println!("{}, planted: {tally}", kind.name);
        assert!(tally.lost + tally.older > 0, "{}: nothing is found", kind.name);
    }
    Ok(())
}
