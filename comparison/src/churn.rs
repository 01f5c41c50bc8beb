//! Churn: stores at their bounds, and a counter that is incremented far more often than the log has
//! room for.

use keepwarm::{Cache, Timeout};

use crate::contender::{Bounds, Contender, Which};
use crate::latency::Latencies;
use crate::plan::{Plan, disk_bytes};
use crate::race::set_one;
use crate::results::Results;
use crate::workload::{self, Key, Values};

/// The groups of the results.
pub(crate) const AT_ENTRIES: &str = "churn at max_entries";
pub(crate) const AT_BYTES: &str = "churn at max_bytes";
pub(crate) const COUNTING: &str = "counting";

const LEN: usize = 100;
const BOUND: u32 = 100_000;
const BYTES: u64 = 64 << 20;
/// The number of new keys after the store is full, as a multiple of its entries.
const TURNS: u32 = 5;
const COUNTS: u32 = 5_000_000;

pub(crate) fn run(plan: &Plan, results: &mut Results) {
    for round in 0..plan.rounds {
        eprintln!("churn: round {} of {}", round + 1, plan.rounds);
        for which in plan.order(round).into_iter().filter(|which| which.is_bounded()) {
            let bounds = Bounds { entries: u64::from(plan.scaled(BOUND)), bytes: 4 << 30 };
            let dir = plan.fresh_dir();
            let store = which.open(dir.path(), bounds);
            churn(&*store, plan.scaled(BOUND)).add_to(results, AT_ENTRIES, "set", which);
        }
        if plan.contenders.contains(&Which::Keepwarm) {
            let dir = plan.fresh_dir();
            let bounds = Bounds { entries: 4 * u64::from(BOUND), bytes: BYTES };
            let store = Which::Keepwarm.open(dir.path(), bounds);
            churn(&*store, plan.scaled(2 * BOUND)).add_to(
                results,
                AT_BYTES,
                "set",
                Which::Keepwarm,
            );
        }
    }
    if plan.contenders.contains(&Which::Keepwarm) {
        zipf(plan, results);
        counting(plan, results);
    }
}

/// Sets new keys, each once. The first `full` of them fill the store, the others are timed.
fn churn(store: &dyn Contender, full: u32) -> Latencies {
    let (values, mut value, mut latencies) = (Values::new(LEN), Vec::new(), Latencies::new());
    for id in 0..full {
        set_one(store, &values, id, 1, &mut value);
    }
    for id in full..full * (1 + TURNS) {
        values.write(id, 1, &mut value);
        let key = Key::of(id);
        latencies.time(|| store.set(key.as_str(), &value));
    }
    latencies
}

/// The usual use of a cache: a missing key is set, and keys are drawn by Zipf's law from five times
/// as many as fit.
fn zipf(plan: &Plan, results: &mut Results) {
    let full = plan.scaled(BOUND);
    let ids = workload::zipf(full * TURNS, 0.99, (full * TURNS * 2) as usize);
    let (values, mut value) = (Values::new(1 << 10), Vec::new());
    let dir = plan.fresh_dir();
    let (entries, bytes) = (u64::from(full) * 4, BYTES.max(u64::from(full) * 1280));
    let cache = Cache::builder(dir.path()).max_entries(entries).max_bytes(bytes).open().unwrap();
    let (mut hits, mut sets) = (0u64, Latencies::new());
    for id in &ids {
        let key = Key::of(*id);
        if cache.get_bytes(key.as_str()).unwrap().is_some() {
            hits += 1;
        } else {
            values.write(*id, 1, &mut value);
            sets.time(|| cache.set_bytes(key.as_str(), &value, Timeout::Never).unwrap());
        }
    }
    results.add(AT_BYTES, "hit ratio", Which::Keepwarm, hits as f64 / ids.len() as f64);
    sets.add_to(results, AT_BYTES, "set after a miss", Which::Keepwarm);
    let stats = cache.stats();
    let amplification =
        (stats.written_bytes + stats.copied_bytes) as f64 / stats.written_bytes as f64;
    results.add(AT_BYTES, "write amplification", Which::Keepwarm, amplification);
}

/// One counter, incremented so often that the log must reclaim space.
fn counting(plan: &Plan, results: &mut Results) {
    let dir = plan.fresh_dir();
    let cache = Cache::open(dir.path().join("cache")).unwrap();
    let counts = plan.scaled(COUNTS);
    let mut most = 0;
    for n in 1..=counts {
        cache.incr_or_init("counter", 1, 0, Timeout::Never).unwrap();
        if n % (counts / 100).max(1) == 0 {
            most = most.max(disk_bytes(dir.path()));
        }
    }
    results.add(COUNTING, "most bytes", Which::Keepwarm, most as f64);
    results.add(COUNTING, "bytes written", Which::Keepwarm, cache.stats().written_bytes as f64);
}
