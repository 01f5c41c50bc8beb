//! Whether what was seen of a key can have happened: whether there is an order of the operations, each at one moment
//! between its begin and its end, in which every one of them saw what the last before it left.
//!
//! Every value has one writer. So what was seen of a value, its write and its reads, is a *cluster*; `first` is when the
//! first of these ended, `last` when the last of them began. If `first < last`, the value was there all the time
//! between, and nothing else was. (With single writers per value, that no two clusters contradict each other is all
//! that there is to check: Gibbons and Korach, "Testing Shared Memories", 1997.)
//!
//! That nothing was there has many causes: a delete, a clear, the end of a lifetime, and no write before. So of what
//! was seen of that, and of what was there without saying which, it is checked that there was a cause at all.

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

/// What it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Did {
    Nothing,
    Wrote(u64),
    Removed,
    /// It was to count up; nobody was told to what.
    Counted,
}

/// An operation on a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Whether it was acknowledged. Otherwise it took effect between begin and end, or not.
    pub(crate) told: bool,
    pub(crate) saw: Saw,
    pub(crate) did: Did,
    /// How many nanoseconds the value that it wrote lives; `None` for ever.
    pub(crate) lives: Option<u64>,
    pub(crate) by: Name,
}

/// Why what was seen cannot have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wrong {
    /// A value that nobody wrote, or that was written after it was read.
    FromNowhere,
    /// Two writes left one value: an increment was lost.
    WrittenTwice,
    /// A value was read after something else had taken its place.
    Stale,
    /// A value was read when its lifetime was over.
    Expired,
    /// Nothing was there, and nobody had removed what was.
    Lost,
    /// Something was there, and nobody had written it since it was removed.
    Risen,
}

/// What is wrong, and with which operations.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) wrong: Wrong,
    #[expect(dead_code, reason = "for whoever reads the message of a failed test")]
    pub(crate) events: Vec<Event>,
}

/// How much the clock by which lifetimes end may differ from that of the stamps, in nanoseconds.
const LIFETIME_SLACK: u64 = 20_000_000;

struct Cluster {
    /// The end of the first operation that saw or wrote the value, and that operation.
    first: (u64, Event),
    /// The begin of the last one.
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

/// Checks all that was seen of a key that was absent at first. With `evicts`, an entry may go at any time.
pub(crate) fn check(events: &[Event], evicts: bool) -> Result<(), Violation> {
    let clusters = clusters(events)?;
    nothing_is_stale(events, &clusters)?;
    nothing_rises(events)?;
    if evicts { Ok(()) } else { nothing_is_lost(events, &clusters) }
}

fn wrong(wrong: Wrong, events: &[Event]) -> Violation {
    Violation { wrong, events: events.to_vec() }
}

/// What was seen of each value.
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
        if let (true, Did::Wrote(value)) = (event.told, event.did) {
            see(value, *event);
        }
    }
    for event in events {
        let Did::Wrote(value) = event.did else { continue };
        // One that was never told and that nobody saw says nothing.
        let Some(cluster) = clusters.get_mut(&value) else { continue };
        match cluster.write {
            None => cluster.write = Some(*event),
            // One that was never told may take effect at more than one time; it is one all the same.
            Some(other) if !event.told && event.by == other.by => {}
            Some(other) => return Err(wrong(Wrong::WrittenTwice, &[other, *event])),
        }
    }
    let mut unclaimed: Vec<Event> = Vec::new();
    for cluster in clusters.values() {
        let Some(write) = cluster.write else {
            unclaimed.push(cluster.first.1);
            continue;
        };
        if cluster.first.0 < write.begin {
            return Err(wrong(Wrong::FromNowhere, &[write, cluster.first.1]));
        }
        let over = write.lives.map(|lives| write.end.saturating_add(lives + LIFETIME_SLACK));
        if over.is_some_and(|over| over < cluster.last.0) {
            return Err(wrong(Wrong::Expired, &[write, cluster.last.1]));
        }
    }
    claim(unclaimed, events)?;
    Ok(clusters)
}

/// Values without a writer come from counting that was never told, one from each, begun before the value was seen.
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
            return Err(wrong(Wrong::FromNowhere, &[event]));
        }
    }
    Ok(())
}

/// No value was there at a moment at which another was, or nothing.
fn nothing_is_stale(events: &[Event], clusters: &HashMap<u64, Cluster>) -> Result<(), Violation> {
    let mut forward: Vec<&Cluster> =
        clusters.values().filter(|cluster| cluster.is_forward()).collect();
    forward.sort_unstable_by_key(|cluster| cluster.first.0);
    for pair in forward.windows(2) {
        if pair[1].first.0 < pair[0].last.0 {
            return Err(wrong(Wrong::Stale, &[pair[0].first.1, pair[1].first.1, pair[0].last.1]));
        }
    }
    // What was not there for long must fit in between.
    let around = |begin: u64, end: u64| {
        let before = forward.partition_point(|cluster| cluster.first.0 < begin);
        let cluster = forward.get(before.checked_sub(1)?)?;
        (end < cluster.last.0).then_some(*cluster)
    };
    for cluster in clusters.values().filter(|cluster| !cluster.is_forward()) {
        if let Some(other) = around(cluster.last.0, cluster.first.0) {
            return Err(wrong(Wrong::Stale, &[other.first.1, cluster.first.1, other.last.1]));
        }
    }
    for event in events.iter().filter(|event| is_absence(event)) {
        if let Some(other) = around(event.begin, event.end) {
            return Err(wrong(Wrong::Stale, &[other.first.1, *event, other.last.1]));
        }
    }
    Ok(())
}

/// Whether there was nothing at some moment of it.
fn is_absence(event: &Event) -> bool {
    event.told && (event.saw == Saw::Absent || event.did == Did::Removed)
}

/// Whether there was something at some moment of it.
fn is_presence(event: &Event) -> bool {
    let writes = matches!(event.did, Did::Wrote(_));
    event.told && (writes || matches!(event.saw, Saw::Present | Saw::Value(_)))
}

/// An end or a begin, and the operation it is of.
type Moment = (u64, Event);

/// The latest of some moments, of those that come before a time: `keyed` by the time that decides.
struct Latest {
    /// By time; each with the latest moment up to it.
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

/// Whatever was there had been written since there was nothing.
fn nothing_rises(events: &[Event]) -> Result<(), Violation> {
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
            return Err(wrong(Wrong::Risen, &[by, *event]));
        }
        if written.is_none() {
            return Err(wrong(Wrong::FromNowhere, &[*event]));
        }
    }
    Ok(())
}

/// Whenever nothing was there, somebody had removed what was, or its lifetime was over.
fn nothing_is_lost(events: &[Event], clusters: &HashMap<u64, Cluster>) -> Result<(), Violation> {
    let removals = events.iter().filter(|event| event.did == Did::Removed);
    let removals = removals.map(|event| (event.begin, (event.end, *event)));
    let unnamed = events.iter().filter(|event| event.told && event.saw == Saw::Present);
    let unnamed = Latest::of(unnamed.map(|event| (event.begin, (event.begin, *event))));
    let ends = events.iter().filter_map(|event| {
        let (Did::Wrote(value), Some(lives)) = (event.did, event.lives) else { return None };
        // It takes the place of nothing that was written after this value was there last.
        let named = clusters.get(&value).map_or(0, |cluster| cluster.last.0);
        let over = event.end.saturating_add(lives + LIFETIME_SLACK);
        let last = unnamed.before(over).map_or(named, |(begin, _)| begin.max(named));
        Some(((event.begin + lives).saturating_sub(LIFETIME_SLACK), (event.end.max(last), *event)))
    });
    let removed = Latest::of(removals.chain(ends));
    let presences = events.iter().filter(|event| is_presence(event));
    let present = Latest::of(presences.map(|event| (event.end, (event.begin, *event))));
    for event in events.iter().filter(|event| event.told && event.saw == Saw::Absent) {
        let Some((since, by)) = present.before(event.begin) else { continue };
        if removed.before(event.end).is_none_or(|(end, _)| end < since) {
            return Err(wrong(Wrong::Lost, &[by, *event]));
        }
    }
    Ok(())
}
