//! Acknowledged operations survive `kill -9`: processes that set, delete, count and clear are
//! killed at random moments, again and again. The next process that opens the directory must find
//! every acknowledged operation in effect.
//!
//! `KEEPWARM_KILL_ROUNDS` sets the number of rounds.
//!
//! Shows invariants I2 and I6.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/harness.rs"]
mod harness;
#[path = "support/rng.rs"]
mod rng;
#[path = "support/survival.rs"]
mod survival;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitCode;

use harness::Verdict;
use rng::Rng;
use survival::{Operation, Plan, Witness};

fn main() -> ExitCode {
    if survival::work_if_child(|_| ()) {
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("nothing_acknowledged_is_lost", || rounds(false, 3)),
        ("nothing_acknowledged_is_lost_while_entries_are_evicted", || rounds(true, 1)),
    ])
}

/// The total size of the directory's segments, in bytes.
fn log_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("segments")).into_iter().flatten();
    files.map(|file| file.unwrap().metadata().map_or(0, |m| m.len())).sum()
}

/// Runs `share` quarters of all rounds.
fn rounds(tight: bool, share: u64) -> Verdict {
    /// The default of all rounds; the promise is at least 200.
    const ROUNDS: u64 = 240;
    /// Where nothing may be evicted, a directory is replaced before its log reaches the bound.
    const LOG_BYTES: u64 = 24 << 20;
    let rounds =
        std::env::var("KEEPWARM_KILL_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap()) * share / 4;
    let mut rng = Rng::new(rng::seed());
    let mut witness = Witness::new(tempfile::tempdir().unwrap());
    let (mut acknowledged, mut without, mut untouched) = (0, 0, 0);
    for round in 0..rounds {
        if !tight && log_bytes(&witness.dir()) > LOG_BYTES || rng.below(20) == 0 {
            witness = Witness::new(tempfile::tempdir().unwrap());
        }
        let plan = Plan {
            seed: rng.next(),
            threads: 1 + rng.below(4),
            operations: u64::MAX,
            waits: true,
            tight,
            durability: rng.below(8),
        };
        // A few are killed right after a clear, before a later operation shows its effect; a few
        // while they open the directory; most while they work.
        let plan = if rng.below(10) == 0 { until_clear(plan) } else { plan };
        let (reports, spins) = match rng.below(8) {
            _ if plan.operations < u64::MAX => (plan.operations, 0),
            0 => (0, rng.below(1_000_000)),
            1..4 => (1 + rng.below(20), rng.below(100_000)),
            _ => (1 + rng.below(800), rng.below(1_000_000)),
        };
        let ended = witness.round(plan, &[], rng.below(2) == 0, |child, received| {
            for _ in 0..reports {
                assert!(received.next(), "round {round}: the child ended by itself");
            }
            (0..spins).for_each(|_| std::hint::spin_loop());
            child.kill().unwrap();
        });
        assert_eq!(
            ended.status.signal(),
            Some(9),
            "round {round}, {plan:?}: the child failed by itself"
        );
        acknowledged += ended.acknowledged;
        without += ended.unacknowledged_in_effect;
        untouched += u64::from(ended.acknowledged == 0);
    }
    println!(
        "{rounds} rounds, each ended by SIGKILL ({untouched} before the first acknowledgement): \
         {acknowledged} operations acknowledged, 0 lost; {without} in effect unacknowledged"
    );
    Ok(())
}

/// The same plan, but the process ends its work with the first `clear`.
fn until_clear(plan: Plan) -> Plan {
    let clears = |index: &u64| matches!(plan.operation(0, *index), Operation::Clear);
    let Some(first) = (0..).find(clears) else {
        unreachable!("one operation in so many is a clear")
    };
    Plan { threads: 1, operations: first + 1, waits: true, ..plan }
}
