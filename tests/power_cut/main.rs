//! Simulated power cuts. At any moment of random work, each sector of each file has its last synced
//! content or its content in memory. Each name that was created or removed since the last sync of
//! its directory is there or not. In every such state the directory opens, and no key holds a torn
//! value, a value that was never stored under it, or one that is older than the last that was
//! surely on the disk.
//!
//! `KEEPWARM_CUT_SECONDS` sets the total time (default 12), `KEEPWARM_SEED` the first seed.
//!
//! Shows invariants I7, I18, I20 and I21.
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
use work::{CrashRuns, Plan, Totals};

/// Runs directories according to `plan`, until this test's share of the time, in percent, is over.
fn cut_power_repeatedly(share: u32, plan: impl Fn(&mut Rng) -> Plan) {
    const SECONDS: u64 = 12;
    const RUNS: usize = 8;
    /// The minimum, also on a slow machine.
    const LEAST_CUTS: u64 = 50;
    // Fail points and the observer are global in a process, so the tests run one at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = std::env::var("KEEPWARM_CUT_SECONDS").map_or(SECONDS, |n| n.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds) * share / 100;
    let mut totals = Totals::default();
    // Each directory gets the next seed. So the seed of a failure repeats it first.
    let mut seed = rng::seed();
    while Instant::now() < end || totals.cuts < LEAST_CUTS {
        CrashRuns::new(Plan { seed, ..plan(&mut Rng::new(seed)) }).run(RUNS, end, &mut totals);
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
fn a_power_cut_loses_no_synced_write() {
    cut_power_repeatedly(35, |rng| Plan {
        seed: 0,
        tight: false,
        durability: any_durability(rng),
        threads: 1,
        operations: 20 + rng.below(200),
        most_bytes: [30, 200, 2000][rng.below(3) as usize],
    });
}

#[test]
fn a_power_cut_with_evictions_restores_nothing_old() {
    cut_power_repeatedly(35, |rng| Plan {
        seed: 0,
        tight: true,
        durability: any_durability(rng),
        threads: 1,
        operations: 20 + rng.below(500),
        most_bytes: [200, 2000, 10_000][rng.below(3) as usize],
    });
}

#[test]
fn a_power_cut_with_several_threads_loses_no_synced_write() {
    cut_power_repeatedly(30, |rng| Plan {
        seed: 0,
        tight: rng.below(2) == 0,
        durability: any_durability(rng),
        threads: 2 + rng.below(3),
        operations: 20 + rng.below(150),
        most_bytes: [30, 200, 2000][rng.below(3) as usize],
    });
}
