//! The goals of keepwarm in this comparison, and whether the results reach them.

use crate::child;
use crate::churn;
use crate::contender::Which;
use crate::latency::metric;
use crate::plan::Workload;
use crate::processes::{self, Traffic};
use crate::report::{Table, ratio, span};
use crate::results::Results;
use crate::shared;

/// A figure and its limit.
struct Goal {
    /// The name of the figure.
    what: String,
    measured: Option<f64>,
    limit: Limit,
    show: fn(f64) -> String,
}

enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn new(
        what: impl Into<String>,
        measured: Option<f64>,
        limit: Limit,
        show: fn(f64) -> String,
    ) -> Self {
        Self { what: what.into(), measured, limit, show }
    }

    fn row(&self) -> Option<[String; 4]> {
        let measured = self.measured?;
        let (limit, reached) = match self.limit {
            Limit::AtLeast(limit) => (format!("≥ {}", (self.show)(limit)), measured >= limit),
            Limit::AtMost(limit) => (format!("≤ {}", (self.show)(limit)), measured <= limit),
        };
        let verdict = if reached { "yes" } else { "**no**" };
        Some([self.what.clone(), limit, (self.show)(measured), verdict.to_owned()])
    }
}

/// The table of all goals for which there are figures.
pub(crate) fn table(results: &Results) -> Table {
    let mut table = Table::new(["goal", "wanted", "measured", "reached"]);
    all(results).iter().filter_map(Goal::row).for_each(|row| table.row(row));
    table
}

fn all(results: &Results) -> Vec<Goal> {
    use Limit::{AtLeast, AtMost};
    use Workload::{GetUniform, GetUniformTwo, IncrOne, LoadShuffled};
    let own = |group: &str, name: &str| results.median(group, name, Which::Keepwarm);
    let against = |group: &str, workload: Workload, other: Which| {
        Some(own(group, workload.name())? / results.median(group, workload.name(), other)?)
    };
    let mut goals = Vec::new();
    for (group, workload, other, limit) in [
        ("100 B", LoadShuffled, Which::Lmdb, 1.5),
        ("1 KiB", LoadShuffled, Which::Lmdb, 3.0),
        ("100 B", GetUniform, Which::Lmdb, 1.5),
        ("100 B", GetUniformTwo, Which::Lmdb, 1.5),
        ("100 B", GetUniform, Which::QuickCache, 1.0),
        ("100 B", GetUniformTwo, Which::QuickCache, 1.0),
    ] {
        let what = format!("{}, {group}, against {}", workload.name(), other.name());
        goals.push(Goal::new(what, against(group, workload, other), AtLeast(limit), ratio));
    }
    let mixed = Traffic::Mix.metric(2);
    let faster = results.median(processes::GROUP, &mixed, Which::Lmdb);
    let faster = own(processes::GROUP, &mixed).zip(faster).map(|(own, theirs)| own / theirs);
    goals.push(Goal::new(format!("{mixed}, against LMDB"), faster, AtLeast(3.0), ratio));
    let decoding = own(shared::GROUP, "get of a struct");
    let shared = own(shared::GROUP, "get_shared of a struct");
    let quicker = decoding.zip(shared).map(|(decoding, shared)| decoding / shared);
    goals.push(Goal::new("`get_shared` against `get`, 20 fields", quicker, AtLeast(5.0), ratio));
    let counts = own("100 B", IncrOne.name());
    goals.push(Goal::new(IncrOne.name(), counts, AtLeast(1e6), crate::report::rate));
    let part = own(churn::COUNTING, "most bytes").zip(own(churn::COUNTING, "bytes written"));
    let part = part.map(|(most, written)| most / written);
    goals.push(Goal::new("disk of a counter, per byte written", part, AtMost(0.5), ratio));
    let closed = own("100 B", "reopen after close");
    goals.push(Goal::new("reopen after close, 1 M entries", closed, AtMost(2e-3), span));
    let killed = own(child::GROUP, "reopen after a kill");
    goals.push(Goal::new("reopen after a kill, 1 M entries", killed, AtMost(0.1), span));
    let lost: f64 = results.samples(child::GROUP, "lost", Which::Keepwarm).iter().sum();
    let lost = killed.map(|_| lost);
    goals.push(Goal::new("acknowledged writes lost on a kill", lost, AtMost(0.0), |n| {
        n.to_string()
    }));
    for (group, limit) in [("100 B", 1.7), ("1 KiB", 1.2)] {
        let what = format!("disk for keys and values, {group}");
        goals.push(Goal::new(what, own(group, "disk after load"), AtMost(limit), ratio));
    }
    for group in [churn::AT_ENTRIES, churn::AT_BYTES] {
        let slowest = own(group, &metric("set", "p99.9"));
        goals.push(Goal::new(format!("p99.9 of a set, {group}"), slowest, AtMost(1e-4), span));
    }
    let amplification = own(churn::AT_BYTES, "write amplification");
    goals.push(Goal::new(
        "write amplification, zipf at max_bytes",
        amplification,
        AtMost(1.3),
        ratio,
    ));
    let wakes = own(child::GROUP, "wake-ups a second");
    goals.push(Goal::new("wake-ups per second when idle", wakes, AtMost(1.05), |n| {
        format!("{n:.1}")
    }));
    let busy = own(child::GROUP, "idle processor time");
    let percent = |part: f64| format!("{:.3} %", part * 100.0);
    goals.push(Goal::new("processor time when idle", busy, AtMost(0.001), percent));
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_or_not() {
        let verdict = |measured, limit| {
            Goal::new("x", Some(measured), limit, ratio).row().unwrap()[3].clone()
        };
        assert_eq!(verdict(1.5, Limit::AtLeast(1.5)), "yes");
        assert_eq!(verdict(1.49, Limit::AtLeast(1.5)), "**no**");
        assert_eq!(verdict(1.49, Limit::AtMost(1.5)), "yes");
        assert_eq!(verdict(1.51, Limit::AtMost(1.5)), "**no**");
        assert!(
            Goal::new("x", None, Limit::AtMost(1.0), ratio).row().is_none(),
            "a goal without a figure has no row"
        );
    }

    #[test]
    fn ratios_are_of_the_medians() {
        let mut results = Results::new(1, 1.0);
        let name = Workload::LoadShuffled.name();
        results.add("100 B", name, Which::Keepwarm, 3e6);
        results.add("100 B", name, Which::Lmdb, 2e6);
        let text = table(&results).to_string();
        assert!(text.contains("| ≥ 1.5 × | 1.5 × | yes |"), "{text}");
        let mixed = Traffic::Mix.metric(2);
        results.add(processes::GROUP, &mixed, Which::Keepwarm, 5e6);
        results.add(processes::GROUP, &mixed, Which::Lmdb, 2e6);
        let text = table(&results).to_string();
        let row = "2 processes, against LMDB | ≥ 3.0 × | 2.5 × | **no** |";
        assert!(text.contains(row), "{text}");
    }
}
