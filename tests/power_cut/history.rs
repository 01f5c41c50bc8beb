//! The values that each key may hold after a power cut: the last value that was surely on the disk,
//! and every value that the key got later.

use std::collections::BTreeMap;

use keepwarm::Timestamp;

/// The content of a key. Values are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Nothing,
    Value(u64),
    Count(i64),
}

/// Content, and when it expires.
pub(crate) type Held = (Content, Option<Timestamp>);

pub(crate) const NOTHING: Held = (Content::Nothing, None);

#[derive(Debug, Clone, Copy)]
struct Version {
    held: Held,
    /// Its position in the order of all changes.
    order: u64,
    status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// An operation that began, and has not ended, may have stored it.
    Begun,
    /// It was stored, and a later power cut may have removed it.
    InDoubt,
    Acknowledged,
}

/// The versions of one key, oldest first.
#[derive(Debug, Clone, Default)]
struct History {
    versions: Vec<Version>,
    /// The order of the version that is surely on the disk.
    floor: u64,
}

impl History {
    /// The version on the disk, and the later ones.
    fn since_floor(&self) -> impl Iterator<Item = Held> {
        // Before its first version a key is absent.
        let nothing = (self.floor == 0).then_some(NOTHING);
        nothing
            .into_iter()
            .chain(self.versions.iter().filter(|v| v.order >= self.floor).map(|v| v.held))
    }

    fn last(&self) -> Held {
        self.versions
            .iter()
            .rev()
            .find(|v| v.status == Status::Acknowledged)
            .map_or(NOTHING, |v| v.held)
    }

    fn doubt_above(&mut self, order: u64) {
        self.versions
            .iter_mut()
            .filter(|v| v.order > order)
            .for_each(|v| v.status = Status::InDoubt);
    }

    fn last_order(&self) -> u64 {
        self.versions.iter().rev().find(|v| v.status == Status::Acknowledged).map_or(0, |v| v.order)
    }
}

/// How a run on the directory ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerCut,
    Kill,
}

/// The histories of all keys.
#[derive(Debug, Clone)]
pub(crate) struct Histories {
    keys: BTreeMap<String, History>,
    order: u64,
    /// Whether entries may be evicted: then each key may be absent.
    evicts: bool,
}

/// The result of a comparison of a directory with the histories.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// The number of keys.
    pub(crate) keys: u64,
    /// Keys whose content is not the last acknowledged one.
    pub(crate) older: u64,
    /// Keys that were changing and are absent: they have neither the old content nor the new one.
    pub(crate) torn: u64,
}

impl Histories {
    pub(crate) fn new(evicts: bool) -> Self {
        Self { keys: BTreeMap::new(), order: 0, evicts }
    }

    /// The last acknowledged content of the key.
    pub(crate) fn last(&self, key: &str, now: Timestamp) -> Held {
        self.keys.get(key).map_or(NOTHING, |history| unless_passed(history.last(), now))
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// Records that an operation began which may give `key` any of these contents.
    pub(crate) fn begin(&mut self, key: &str, possible: &[Held]) {
        let history = self.keys.entry(key.to_owned()).or_default();
        for held in possible {
            self.order += 1;
            history.versions.push(Version {
                held: *held,
                order: self.order,
                status: Status::Begun,
            });
        }
    }

    /// Records that the operation ended, and gave the key this content, or did not change it.
    pub(crate) fn end(&mut self, key: &str, held: Option<Held>) {
        let history = self.keys.entry(key.to_owned()).or_default();
        history.versions.retain(|v| v.status != Status::Begun);
        if let Some(held) = held {
            self.order += 1;
            history.versions.push(Version {
                held,
                order: self.order,
                status: Status::Acknowledged,
            });
        }
    }

    /// The last acknowledged version of each key, for [`is_synced`](Histories::is_synced).
    pub(crate) fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.keys.iter().map(|(key, history)| (key.clone(), history.last_order())).collect()
    }

    /// Records that these versions are on the disk now.
    pub(crate) fn is_synced(&mut self, acknowledged: &BTreeMap<String, u64>) {
        for (key, order) in acknowledged {
            let history = self.keys.entry(key.clone()).or_default();
            history.floor = history.floor.max(*order);
        }
    }

    /// Records that the last acknowledged version of this key is on the disk now.
    pub(crate) fn key_is_synced(&mut self, key: &str) {
        if let Some(history) = self.keys.get_mut(key) {
            history.floor = history.floor.max(history.last_order());
        }
    }

    /// The same histories, with only those versions on the disk that were surely there in
    /// `earlier`.
    pub(crate) fn with_floors_of(mut self, earlier: &Self) -> Self {
        self.set_floors(earlier, |history| history.floor);
        self
    }

    /// The same histories for an end that loses nothing that was acknowledged in `earlier`, synced
    /// or not.
    pub(crate) fn with_all_of(mut self, earlier: &Self) -> Self {
        self.set_floors(earlier, History::last_order);
        self
    }

    /// The same histories, before the content after the end of a run is known: only the versions
    /// that are surely there, according to `possible`, count as acknowledged.
    pub(crate) fn unsettled(mut self, possible: &Self) -> Self {
        for (key, history) in &mut self.keys {
            let floor = possible.keys.get(key).map_or(0, |possible| possible.floor);
            history.doubt_above(floor);
        }
        self
    }

    fn set_floors(&mut self, earlier: &Self, floor: impl Fn(&History) -> u64) {
        for (key, history) in &mut self.keys {
            history.floor = earlier.keys.get(key).map_or(0, &floor);
        }
    }

    /// Compares with the content `found` in a directory whose last run ended with `end`. The error
    /// describes the difference.
    pub(crate) fn check(
        &self,
        found: &BTreeMap<String, Held>,
        end: End,
        now: Timestamp,
    ) -> Result<Tally, String> {
        let mut tally = Tally::default();
        if let Some(key) = found.keys().find(|key| !self.keys.contains_key(*key)) {
            return Err(format!("{key:?} was never stored, and holds {:?}", found[key]));
        }
        for (key, history) in &self.keys {
            let seen = found.get(key).copied().unwrap_or(NOTHING);
            let possible: Vec<Held> =
                history.since_floor().map(|held| unless_passed(held, now)).collect();
            let changing = possible.len() > 1;
            tally.keys += 1;
            tally.older += u64::from(possible.last() != Some(&seen));
            if possible.contains(&seen) || (self.evicts && seen == NOTHING) {
                continue;
            }
            // A record whose header reached the disk and whose value did not: a miss.
            if seen == NOTHING && changing && end == End::PowerCut {
                tally.torn += 1;
                continue;
            }
            return Err(format!(
                "{key:?} holds {seen:?}, which is none of {possible:?}: {history:?}"
            ));
        }
        Ok(tally)
    }

    /// Records the content that the next run found. Nothing else of the last run can appear later.
    pub(crate) fn settle(&mut self, found: &BTreeMap<String, Held>, end: End, now: Timestamp) {
        for (key, history) in &mut self.keys {
            self.order += 1;
            let seen = found.get(key).copied().unwrap_or(NOTHING);
            let version = Version { held: seen, order: self.order, status: Status::Acknowledged };
            if seen == NOTHING && self.evicts {
                // An evicted entry may return after the next power cut.
                history.doubt_above(history.floor);
                continue;
            }
            match end {
                End::PowerCut => {
                    history.versions = vec![version];
                    history.floor = version.order;
                }
                // A version that is not there after a kill will never appear.
                End::Kill => {
                    match history.versions.iter().rposition(|v| unless_passed(v.held, now) == seen)
                    {
                        Some(at) => {
                            history.versions.truncate(at + 1);
                            history.versions[at].status = Status::Acknowledged;
                        }
                        None => history.versions = vec![version],
                    }
                }
            }
        }
    }
}

/// The content, or nothing if it has expired.
fn unless_passed(held: Held, now: Timestamp) -> Held {
    if held.1.is_some_and(|end| end <= now) { NOTHING } else { held }
}
