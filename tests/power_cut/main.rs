//! What a power cut leaves, simulated: at any moment of any work, each sector of each file is as it was synced
//! last or as it is in memory, and each name that was made or removed since the last sync of its directory is
//! there or not. Whatever comes of that, the directory opens, and no key holds anything torn, anything that it was
//! never given, or anything older than what was surely on the disk.
//!
//! `KEEPWARM_CUT_SECONDS` says how long to go on (12 in all if it is not set), `KEEPWARM_SEED` where to begin.
#![cfg(test)]

mod disk;
mod history;
#[path = "../support/home.rs"]
mod home;
#[path = "../support/points.rs"]
mod points;
#[path = "../support/rng.rs"]
mod rng;
mod work;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keepwarm::Durability;

use rng::Rng;
use work::{Lives, Plan, Totals};

/// Directories with the lives that `plan` asks for, until this test's share of the time, in hundredths, is over.
fn cut_again_and_again(share: u32, plan: impl Fn(&mut Rng) -> Plan) {
    const SECONDS: u64 = 12;
    const LIVES: usize = 8;
    /// However slow the machine is.
    const LEAST_CUTS: u64 = 50;
    // Fail points and the observer are the same for all threads of a process, so one test at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = std::env::var("KEEPWARM_CUT_SECONDS").map_or(SECONDS, |n| n.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds) * share / 100;
    let mut totals = Totals::default();
    // Each directory has the seed after the one before, so that a failure is repeated first.
    let mut seed = rng::seed();
    while Instant::now() < end || totals.cuts < LEAST_CUTS {
        Lives::new(Plan { seed, ..plan(&mut Rng::new(seed)) }).live(LIVES, end, &mut totals);
        seed = seed.wrapping_add(1);
    }
    println!("{totals}");
}

fn any_durability(rng: &mut Rng) -> Durability {
    match rng.below(4) {
        0 => Durability::Buffered,
        1 => Durability::Interval(Duration::from_millis(1)),
        2 => Durability::Interval(Duration::from_secs(3600)),
        _ => Durability::Sync,
    }
}

#[test]
fn nothing_that_was_synced_is_lost() {
    cut_again_and_again(35, |rng| Plan {
        seed: 0,
        tight: false,
        durability: any_durability(rng),
        threads: 1,
        operations: 20 + rng.below(200),
        most_bytes: [30, 200, 2000][rng.below(3) as usize],
    });
}

#[test]
fn nothing_old_comes_back_while_entries_are_evicted_and_segments_go() {
    cut_again_and_again(35, |rng| Plan {
        seed: 0,
        tight: true,
        durability: any_durability(rng),
        threads: 1,
        operations: 20 + rng.below(500),
        most_bytes: [200, 2000, 10_000][rng.below(3) as usize],
    });
}

#[test]
fn the_same_with_several_threads() {
    cut_again_and_again(30, |rng| Plan {
        seed: 0,
        tight: rng.below(2) == 0,
        durability: any_durability(rng),
        threads: 2 + rng.below(3),
        operations: 20 + rng.below(150),
        most_bytes: [30, 200, 2000][rng.below(3) as usize],
    });
}
