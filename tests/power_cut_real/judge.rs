//! What must be there after a cut, and what may be.

use std::collections::BTreeMap;
use std::fmt;

use keepwarm::Cache;

use crate::worker::{Mode, Report, What, name, shared, value};

/// What the cuts left.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) cuts: u64,
    pub(crate) acknowledged: u64,
    pub(crate) keys: u64,
    /// Of calls that reported what they found.
    pub(crate) reports: u64,
    /// Keys that must be there and are not, or whose reported state is another one.
    pub(crate) lost: u64,
    /// Keys with a value that is older than the last that was surely on the disk.
    pub(crate) older: u64,
    /// Keys with bytes that were never stored under them.
    pub(crate) wrong: u64,
    /// Keys that were being changed and are absent.
    pub(crate) torn: u64,
    /// The age of the oldest acknowledged call of a worker with an interval that was not in effect,
    /// in milliseconds.
    pub(crate) oldest_lost: u64,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.older + self.wrong == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, acknowledged, keys, reports, lost, older, wrong, torn, oldest_lost } =
            self;
        write!(
            f,
            "{cuts} cuts, {acknowledged} calls acknowledged, {reports} reports; {keys} keys \
             checked: {lost} lost, {older} older, {wrong} wrong, {torn} absent while they \
             changed; with an interval, the oldest call that was lost was {oldest_lost} ms old"
        )
    }
}

/// What is known of a key: its versions with the time of their acknowledgement.
#[derive(Debug, Default)]
struct History {
    versions: Vec<(u64, Option<u64>)>,
}

/// The version of each key at the end of the last round, on the disk; `None` if it is absent.
pub(crate) type Base = BTreeMap<u64, Option<u64>>;

/// Compares what is there after a cut at the time `cut` with what two workers reported. Returns the
/// base of the next round.
pub(crate) fn judge(
    cache: &Cache,
    base: &Base,
    round: u64,
    cut: u64,
    workers: [(Mode, &[Report]); 2],
    tally: &mut Tally,
) -> Base {
    tally.cuts += 1;
    let mut found = Base::new();
    let mut histories: BTreeMap<u64, (History, Mode, u64)> = BTreeMap::new();
    for key in base.keys() {
        histories.insert(*key, (History::default(), Mode::Buffered, 0));
    }
    for (mode, reports) in workers {
        let durable_until = durable_until(mode, reports, cut);
        for report in reports {
            let entry = histories.entry(report.key);
            match report.what {
                What::Begun => {
                    let entry = entry.or_default();
                    (entry.1, entry.2) = (mode, durable_until);
                    entry.0.versions.push((report.version, None));
                }
                What::Acknowledged => {
                    tally.acknowledged += u64::from(report.at < cut);
                    if let Some(last) = entry.or_default().0.versions.last_mut() {
                        last.1 = Some(report.at);
                    }
                }
                _ => {}
            }
        }
    }
    for (key, (history, mode, durable_until)) in histories {
        let before = base.get(&key).copied().flatten();
        let version = judge_key(cache, key, before, &history, (mode, durable_until, cut), tally);
        found.insert(key, version);
    }
    if let [_, (Mode::Sync, reports)] = workers {
        let deleting = |number| {
            let is_it = |r: &&Report| r.what == What::Deleting && r.key == number;
            workers[0].1.iter().find(is_it).is_some()
        };
        judge_reports(cache, round, cut, reports, deleting, tally);
    }
    found
}

/// All calls that had ended by then are on the disk.
fn durable_until(mode: Mode, reports: &[Report], cut: u64) -> u64 {
    let synced = |r: &&Report| r.what == What::Synced && r.at < cut;
    match mode {
        Mode::Sync => cut,
        Mode::Interval => reports.iter().filter(synced).map(|r| r.version).max().unwrap_or(0),
        Mode::Seldom | Mode::Buffered => 0,
    }
}

fn judge_key(
    cache: &Cache,
    key: u64,
    before: Option<u64>,
    history: &History,
    (mode, durable_until, cut): (Mode, u64, u64),
    tally: &mut Tally,
) -> Option<u64> {
    tally.keys += 1;
    // The versions from the last that is surely on the disk.
    let is_durable = |at: &Option<u64>| at.is_some_and(|at| at < durable_until);
    let floor = history.versions.iter().rposition(|(_, at)| is_durable(at));
    let first = match floor {
        Some(at) => Some(history.versions[at].0),
        None => before,
    };
    let later = &history.versions[floor.map_or(0, |at| at + 1)..];
    let found = cache.get_bytes(&name(key)).unwrap();
    let version = found.as_ref().and_then(|bytes| {
        bytes.get(..8).map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i])))
    });
    let is_whole = found.as_deref().is_none_or(|bytes| {
        version.is_some_and(|version| value(key, version).as_deref() == Some(bytes))
    });
    let is_absent_in = |version: Option<u64>| version.is_none_or(|v| value(key, v).is_none());
    let may_be_absent =
        is_absent_in(first) || later.iter().any(|(version, _)| is_absent_in(Some(*version)));
    match version {
        _ if !is_whole => tally.wrong += 1,
        None if found.is_some() => tally.wrong += 1,
        None if may_be_absent => {}
        None if !later.is_empty() => tally.torn += 1,
        None => tally.lost += 1,
        Some(version) if Some(version) == first => {}
        Some(version) if later.iter().any(|(later, _)| *later == version) => {}
        Some(version) if first.is_none_or(|first| version < first) => tally.older += 1,
        Some(_) => tally.wrong += 1,
    }
    if mode == Mode::Interval {
        let in_effect = version.unwrap_or(0);
        let lost = later.iter().filter_map(|(v, at)| at.filter(|at| *v > in_effect && *at < cut));
        let age = lost.min().map_or(0, |at| (cut - at) / 1_000_000);
        tally.oldest_lost = tally.oldest_lost.max(if version.is_some() { age } else { 0 });
    }
    version
}

/// What calls reported must be so, unless it was being changed.
fn judge_reports(
    cache: &Cache,
    round: u64,
    cut: u64,
    reports: &[Report],
    deleting: impl Fn(u64) -> bool,
    tally: &mut Tally,
) {
    let mut last = BTreeMap::new();
    for report in reports.iter().filter(|r| matches!(r.what, What::Exists | What::Gone)) {
        if report.at < cut {
            last.insert(report.key, report.what);
        }
    }
    for (number, what) in last {
        tally.reports += 1;
        let found = cache.get::<u64>(&shared(round, number)).unwrap();
        tally.wrong += u64::from(found.is_some_and(|found| found != number));
        tally.lost += u64::from(match what {
            What::Gone => found.is_some(),
            _ => found.is_none() && !deleting(number),
        });
    }
}
