//! A linearizability checker for the operations on one key. A history is correct if the operations
//! have an order in which each takes effect at one moment between its begin and its end, and sees
//! what the operation before it left.
//!
//! Every value has one writer. The write of a value and its reads form a *cluster*: `first` is the
//! end of the operation that ended first, `last` is the begin of the one that began last. If
//! `first < last`, the key held this value, and no other, from `first` to `last`. With a single
//! writer per value, it is enough to check that no two clusters contradict each other (Gibbons and
//! Korach, "Testing Shared Memories", 1997).
//!
//! An absent key has many causes: a delete, a clear, the end of a lifetime, or no write before. So
//! for operations that saw the key absent, or present without its value, the checker only ensures
//! that there was a cause at all.

use std::collections::HashMap;

use crate::value::Name;

#[path = "checker_tests.rs"]
pub(crate) mod tests;

/// What an operation saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saw {
    Unknown,
    Absent,
    Present,
    Value(u64),
}

/// What an operation left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Did {
    Nothing,
    Wrote(u64),
    Removed,
    /// An increment that was never acknowledged, so that its result is unknown.
    Counted,
}

/// An operation on a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Whether it was acknowledged. Otherwise it took effect between begin and end, or never.
    pub(crate) acknowledged: bool,
    pub(crate) saw: Saw,
    pub(crate) did: Did,
    /// The lifetime of the value that it wrote, in nanoseconds; `None` if the value never expires.
    pub(crate) lifetime: Option<u64>,
    pub(crate) by: Name,
}

/// Why a history is not correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Anomaly {
    /// A value was read that was never written, or that was written after the read.
    FromNowhere,
    /// Two writes left the same value: an increment was lost.
    WrittenTwice,
    /// A value was read after it was superseded.
    Stale,
    /// A value was read after the end of its lifetime.
    Expired,
    /// The key was absent, and no operation had removed it.
    Lost,
    /// The key was present, and no operation had written it since it was removed.
    Resurrected,
}

/// An anomaly, and the operations that show it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) anomaly: Anomaly,
    #[expect(dead_code, reason = "shown in the message of a failed test")]
    pub(crate) events: Vec<Event>,
}

/// The largest difference between the clock of lifetimes and the clock of begin and end, in
/// nanoseconds.
const LIFETIME_SLACK: u64 = 20_000_000;

struct Cluster {
    /// The end of the operation that ended first, of those that saw or wrote the value.
    first: (u64, Event),
    /// The begin of the operation that began last.
    last: (u64, Event),
    write: Option<Event>,
}

impl Cluster {
    fn of(event: Event) -> Self {
        Self { first: (event.end, event), last: (event.begin, event), write: None }
    }

    fn include(&mut self, event: Event) {
        if event.end < self.first.0 {
            self.first = (event.end, event);
        }
        if event.begin > self.last.0 {
            self.last = (event.begin, event);
        }
    }

    fn is_forward(&self) -> bool {
        self.first.0 < self.last.0
    }
}

/// Checks the operations on a key that was absent at first. With `evicts`, the entry may be evicted
/// at any time.
pub(crate) fn check(events: &[Event], evicts: bool) -> Result<(), Violation> {
    let clusters = clusters(events)?;
    nothing_is_stale(events, &clusters)?;
    nothing_is_resurrected(events)?;
    if evicts { Ok(()) } else { nothing_is_lost(events, &clusters) }
}

fn violation(anomaly: Anomaly, events: &[Event]) -> Violation {
    Violation { anomaly, events: events.to_vec() }
}

/// The cluster of each value.
fn clusters(events: &[Event]) -> Result<HashMap<u64, Cluster>, Violation> {
    let mut clusters: HashMap<u64, Cluster> = HashMap::new();
    let mut see = |value, event| {
        clusters
            .entry(value)
            .and_modify(|c| c.include(event))
            .or_insert_with(|| Cluster::of(event));
    };
    for event in events {
        if let Saw::Value(value) = event.saw {
            see(value, *event);
        }
        if let (true, Did::Wrote(value)) = (event.acknowledged, event.did) {
            see(value, *event);
        }
    }
    for event in events {
        let Did::Wrote(value) = event.did else { continue };
        // A write that was not acknowledged, and whose value was never read, proves nothing.
        let Some(cluster) = clusters.get_mut(&value) else { continue };
        match cluster.write {
            None => cluster.write = Some(*event),
            // A write that was not acknowledged has several events, as it may take effect at
            // several times. It is one write.
            Some(other) if !event.acknowledged && event.by == other.by => {}
            Some(other) => return Err(violation(Anomaly::WrittenTwice, &[other, *event])),
        }
    }
    let mut unclaimed: Vec<Event> = Vec::new();
    for cluster in clusters.values() {
        let Some(write) = cluster.write else {
            unclaimed.push(cluster.first.1);
            continue;
        };
        if cluster.first.0 < write.begin {
            return Err(violation(Anomaly::FromNowhere, &[write, cluster.first.1]));
        }
        let over =
            write.lifetime.map(|lifetime| write.end.saturating_add(lifetime + LIFETIME_SLACK));
        if over.is_some_and(|over| over < cluster.last.0) {
            return Err(violation(Anomaly::Expired, &[write, cluster.last.1]));
        }
    }
    claim(unclaimed, events)?;
    Ok(clusters)
}

/// Checks the values without a writer: each must come from its own unacknowledged increment, which
/// began before the value was read.
fn claim(mut unclaimed: Vec<Event>, events: &[Event]) -> Result<(), Violation> {
    let counted = events.iter().filter(|event| event.did == Did::Counted);
    let mut begun: HashMap<Name, u64> = HashMap::new();
    for event in counted {
        let begin = begun.entry(event.by).or_insert(event.begin);
        *begin = event.begin.min(*begin);
    }
    let mut begun: Vec<u64> = begun.into_values().collect();
    begun.sort_unstable();
    unclaimed.sort_unstable_by_key(|event| event.end);
    for (nth, event) in unclaimed.into_iter().enumerate() {
        if begun.get(nth).is_none_or(|begin| *begin > event.end) {
            return Err(violation(Anomaly::FromNowhere, &[event]));
        }
    }
    Ok(())
}

/// Checks that the key never held a value while it held another one, or was absent.
fn nothing_is_stale(events: &[Event], clusters: &HashMap<u64, Cluster>) -> Result<(), Violation> {
    let mut forward: Vec<&Cluster> =
        clusters.values().filter(|cluster| cluster.is_forward()).collect();
    forward.sort_unstable_by_key(|cluster| cluster.first.0);
    for pair in forward.windows(2) {
        if pair[1].first.0 < pair[0].last.0 {
            return Err(violation(
                Anomaly::Stale,
                &[pair[0].first.1, pair[1].first.1, pair[0].last.1],
            ));
        }
    }
    // A cluster that proves no interval, and an absence, must not lie inside another's interval.
    let around = |begin: u64, end: u64| {
        let before = forward.partition_point(|cluster| cluster.first.0 < begin);
        let cluster = forward.get(before.checked_sub(1)?)?;
        (end < cluster.last.0).then_some(*cluster)
    };
    for cluster in clusters.values().filter(|cluster| !cluster.is_forward()) {
        if let Some(other) = around(cluster.last.0, cluster.first.0) {
            return Err(violation(Anomaly::Stale, &[other.first.1, cluster.first.1, other.last.1]));
        }
    }
    for event in events.iter().filter(|event| is_absence(event)) {
        if let Some(other) = around(event.begin, event.end) {
            return Err(violation(Anomaly::Stale, &[other.first.1, *event, other.last.1]));
        }
    }
    Ok(())
}

/// Whether the key was absent at some moment of the operation.
fn is_absence(event: &Event) -> bool {
    event.acknowledged && (event.saw == Saw::Absent || event.did == Did::Removed)
}

/// Whether the key was present at some moment of the operation.
fn is_presence(event: &Event) -> bool {
    let writes = matches!(event.did, Did::Wrote(_));
    event.acknowledged && (writes || matches!(event.saw, Saw::Present | Saw::Value(_)))
}

/// The end or the begin of an operation, and that operation.
type Moment = (u64, Event);

/// A prefix maximum: for each time, the latest of the moments whose key time is before it.
struct Latest {
    /// Sorted by key time; each with the latest moment up to there.
    sorted: Vec<(u64, Moment)>,
}

impl Latest {
    fn of(moments: impl Iterator<Item = (u64, Moment)>) -> Self {
        let mut sorted: Vec<(u64, Moment)> = moments.collect();
        sorted.sort_unstable_by_key(|(time, _)| *time);
        for i in 1..sorted.len() {
            if sorted[i - 1].1.0 > sorted[i].1.0 {
                sorted[i].1 = sorted[i - 1].1;
            }
        }
        Self { sorted }
    }

    fn before(&self, time: u64) -> Option<Moment> {
        let count = self.sorted.partition_point(|(at, _)| *at < time);
        Some(self.sorted[count.checked_sub(1)?].1)
    }
}

/// Checks that whenever the key was present, it had been written since it was last absent.
fn nothing_is_resurrected(events: &[Event]) -> Result<(), Violation> {
    let writes = |event: &&Event| matches!(event.did, Did::Wrote(_) | Did::Counted);
    let written =
        Latest::of(events.iter().filter(writes).map(|event| (event.begin, (event.end, *event))));
    let absences = events.iter().filter(|event| is_absence(event));
    let absent = Latest::of(absences.map(|event| (event.end, (event.begin, *event))));
    for event in events.iter().filter(|event| matches!(event.saw, Saw::Present | Saw::Value(_))) {
        let absent = absent.before(event.begin);
        let written = written.before(event.end);
        if let Some((gone, by)) = absent
            && written.is_none_or(|(end, _)| end < gone)
        {
            return Err(violation(Anomaly::Resurrected, &[by, *event]));
        }
        if written.is_none() {
            return Err(violation(Anomaly::FromNowhere, &[*event]));
        }
    }
    Ok(())
}

/// Checks that whenever the key was absent, it had been removed, or its lifetime had ended.
fn nothing_is_lost(events: &[Event], clusters: &HashMap<u64, Cluster>) -> Result<(), Violation> {
    let removals = events.iter().filter(|event| event.did == Did::Removed);
    let removals = removals.map(|event| (event.begin, (event.end, *event)));
    let unnamed = events.iter().filter(|event| event.acknowledged && event.saw == Saw::Present);
    let unnamed = Latest::of(unnamed.map(|event| (event.begin, (event.begin, *event))));
    let ends = events.iter().filter_map(|event| {
        let (Did::Wrote(value), Some(lifetime)) = (event.did, event.lifetime) else { return None };
        // Its expiry cannot remove a value that was written after this value was seen last.
        let named = clusters.get(&value).map_or(0, |cluster| cluster.last.0);
        let over = event.end.saturating_add(lifetime + LIFETIME_SLACK);
        let last = unnamed.before(over).map_or(named, |(begin, _)| begin.max(named));
        Some((
            (event.begin + lifetime).saturating_sub(LIFETIME_SLACK),
            (event.end.max(last), *event),
        ))
    });
    let removed = Latest::of(removals.chain(ends));
    let presences = events.iter().filter(|event| is_presence(event));
    let present = Latest::of(presences.map(|event| (event.end, (event.begin, *event))));
    for event in events.iter().filter(|event| event.acknowledged && event.saw == Saw::Absent) {
        let Some((since, by)) = present.before(event.begin) else { continue };
        if removed.before(event.end).is_none_or(|(end, _)| end < since) {
            return Err(violation(Anomaly::Lost, &[by, *event]));
        }
    }
    Ok(())
}
