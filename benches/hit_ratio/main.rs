//! Hit ratios on recorded traffic, by eviction policy: keepwarm's own, in a cache on disk, beside
//! exact LRU, SIEVE, S3-FIFO, W-TinyLFU, and the optimum.
//!
//! `cargo bench --bench hit_ratio` replays all traces; with `-- web12 oltp` it replays these two. A
//! key that is missed is stored. A cache holds 1, 5, 10 or 20 % of the distinct keys of the trace,
//! counted in entries even if the trace has sizes; the byte hit ratio is computed from the same
//! hits.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark that cannot continue should stop"
)]
#![expect(clippy::print_stdout, reason = "the table is the output")]

mod peers;
mod real;
mod trace;

use keepwarm::Eviction;

use self::peers::{Belady, Lru, Policy, S3Fifo, Sieve, WTinyLfu};
use self::real::Real;
use self::trace::{NAMES, Trace};

const PERCENTS: [usize; 4] = [1, 5, 10, 20];
const POLICIES: [&str; 7] = ["Lru", "Adaptive", "LRU", "SIEVE", "S3-FIFO", "W-TinyLFU", "optimum"];

fn policy(name: &str, capacity: usize, trace: &Trace) -> Box<dyn Policy> {
    match name {
        "Lru" => Box::new(Real::new(capacity, Eviction::Lru)),
        "Adaptive" => Box::new(Real::new(capacity, Eviction::Adaptive)),
        "LRU" => Box::new(Lru::new(capacity)),
        "SIEVE" => Box::new(Sieve::new(capacity)),
        "S3-FIFO" => Box::new(S3Fifo::new(capacity)),
        "W-TinyLFU" => Box::new(WTinyLfu::new(capacity)),
        "optimum" => Box::new(Belady::new(capacity, &trace.requests)),
        other => panic!("there is no {other}"),
    }
}

fn row(trace: &Trace, percent: usize, ratios: impl Iterator<Item = f64>) {
    let capacity = trace.capacity(percent);
    let cells: String = ratios.map(|ratio| format!(" {ratio:.2} |")).collect();
    println!("| {} | {percent} % | {capacity} |{cells}", trace.name);
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.starts_with(w.as_str()));
    println!("| trace | of its keys | entries | {} |", POLICIES.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(POLICIES.len()));
    for name in NAMES.into_iter().filter(|name| is_wanted(name)) {
        let trace = Trace::read(name);
        let mut bytes = Vec::new();
        for percent in PERCENTS {
            let capacity = trace.capacity(percent);
            let ratios = POLICIES.map(|name| trace.replay(&mut *policy(name, capacity, &trace)));
            row(&trace, percent, ratios.iter().map(|r| r.of_requests));
            bytes.push(ratios.map(|r| r.of_bytes));
        }
        if trace.sizes.is_some() {
            let titled = Trace { name: "the same, bytes", ..trace };
            for (percent, ratios) in PERCENTS.into_iter().zip(bytes) {
                row(&titled, percent, ratios.into_iter());
            }
        }
    }
}
