//! Latencies of single calls.

use std::time::Instant;

use hdrhistogram::Histogram;

use crate::contender::Which;
use crate::results::Results;

/// The reported percentiles with their names in the results.
pub(crate) const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9"), (99.99, "p99.99")];

/// Times of calls in nanoseconds, with a relative error of at most a thousandth.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        // From a nanosecond to a minute.
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap())
    }

    pub(crate) fn time<R>(&mut self, call: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = call();
        self.0.saturating_record(started.elapsed().as_nanos() as u64);
        result
    }

    fn at(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 * 1e-9
    }

    /// Adds each percentile and the maximum under `call` and its name.
    pub(crate) fn add_to(&self, results: &mut Results, group: &str, call: &str, which: Which) {
        for (percentile, name) in PERCENTILES {
            results.add(group, &metric(call, name), which, self.at(percentile));
        }
        results.add(group, &metric(call, "max"), which, self.0.max() as f64 * 1e-9);
    }
}

/// The name of a percentile of a call in the results.
pub(crate) fn metric(call: &str, percentile: &str) -> String {
    format!("{call} {percentile}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_match_the_recorded_times() {
        let mut latencies = Latencies::new();
        (1..=100_000u64).for_each(|n| latencies.0.record(n * 100).unwrap());
        for (percentile, wanted) in [(50.0, 5e-3), (99.0, 9.9e-3), (99.99, 9.999e-3)] {
            let got = latencies.at(percentile);
            assert!((got / wanted - 1.0).abs() < 2e-3, "{percentile}: {got} for {wanted}");
        }
        let mut results = Results::new(1, 1.0);
        latencies.add_to(&mut results, "g", "get", Which::Keepwarm);
        let max = results.median("g", "get max", Which::Keepwarm).unwrap();
        assert!((max - 0.01).abs() < 1e-5, "{max}");
    }

    #[test]
    fn a_timed_call_returns_its_result() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.time(|| 7), 7);
        assert_eq!(latencies.0.len(), 1);
    }
}
