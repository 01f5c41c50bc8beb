//! What each key may hold after a power cut: every value that it was given since the last one which was surely on
//! the disk, that one included.

use std::collections::BTreeMap;

use keepwarm::Timestamp;

/// What a key holds. No two values are the same.
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
    /// Its place in the order of all changes.
    order: u64,
    is: Is,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    /// An operation that was begun may have stored it.
    Begun,
    /// It was stored, and a power cut since may have taken it, or not.
    InDoubt,
    Acknowledged,
}

/// What one key was given, oldest first.
#[derive(Debug, Clone, Default)]
struct History {
    versions: Vec<Version>,
    /// The order of the version that is surely on the disk.
    floor: u64,
}

impl History {
    /// The floor and what came after it.
    fn since_floor(&self) -> impl Iterator<Item = Held> {
        // Before its first version a key holds nothing.
        let nothing = (self.floor == 0).then_some(NOTHING);
        nothing
            .into_iter()
            .chain(self.versions.iter().filter(|v| v.order >= self.floor).map(|v| v.held))
    }

    fn last(&self) -> Held {
        self.versions.iter().rev().find(|v| v.is == Is::Acknowledged).map_or(NOTHING, |v| v.held)
    }

    fn doubt_above(&mut self, order: u64) {
        self.versions.iter_mut().filter(|v| v.order > order).for_each(|v| v.is = Is::InDoubt);
    }

    fn last_order(&self) -> u64 {
        self.versions.iter().rev().find(|v| v.is == Is::Acknowledged).map_or(0, |v| v.order)
    }
}

/// How a life of the directory ended.
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
    /// Whether entries may be evicted: then each may be missing.
    evicts: bool,
}

/// What a comparison of a directory with the histories came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Keys that were looked at.
    pub(crate) keys: u64,
    /// Those that hold something else than what was acknowledged last.
    pub(crate) older: u64,
    /// Those that were being changed and hold nothing, neither old nor new.
    pub(crate) torn: u64,
}

impl Histories {
    pub(crate) fn new(evicts: bool) -> Self {
        Self { keys: BTreeMap::new(), order: 0, evicts }
    }

    /// What the key holds, as far as was acknowledged.
    pub(crate) fn last(&self, key: &str, now: Timestamp) -> Held {
        self.keys.get(key).map_or(NOTHING, |history| unless_passed(history.last(), now))
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// An operation began that may give `key` any of these.
    pub(crate) fn begin(&mut self, key: &str, possible: &[Held]) {
        let history = self.keys.entry(key.to_owned()).or_default();
        for held in possible {
            self.order += 1;
            history.versions.push(Version { held: *held, order: self.order, is: Is::Begun });
        }
    }

    /// It ended, and gave the key this, or nothing new. Returns the order of what the key holds now.
    pub(crate) fn end(&mut self, key: &str, held: Option<Held>) {
        let history = self.keys.entry(key.to_owned()).or_default();
        history.versions.retain(|v| v.is != Is::Begun);
        if let Some(held) = held {
            self.order += 1;
            history.versions.push(Version { held, order: self.order, is: Is::Acknowledged });
        }
    }

    /// What is acknowledged of each key now, for [`is_synced`](Histories::is_synced).
    pub(crate) fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.keys.iter().map(|(key, history)| (key.clone(), history.last_order())).collect()
    }

    /// This is on the disk now.
    pub(crate) fn is_synced(&mut self, acknowledged: &BTreeMap<String, u64>) {
        for (key, order) in acknowledged {
            let history = self.keys.entry(key.clone()).or_default();
            history.floor = history.floor.max(*order);
        }
    }

    /// What is acknowledged of this key is on the disk now.
    pub(crate) fn key_is_synced(&mut self, key: &str) {
        if let Some(history) = self.keys.get_mut(key) {
            history.floor = history.floor.max(history.last_order());
        }
    }

    /// The same histories, with only that on the disk which surely was in `earlier`.
    pub(crate) fn with_floors_of(mut self, earlier: &Self) -> Self {
        self.set_floors(earlier, |history| history.floor);
        self
    }

    /// The same histories, for who finds all that was acknowledged in `earlier`, on the disk or not.
    pub(crate) fn with_all_of(mut self, earlier: &Self) -> Self {
        self.set_floors(earlier, History::last_order);
        self
    }

    /// The same histories, before anybody has looked what the end of a life has left: acknowledged is what is surely
    /// there, according to `possible`.
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

    /// Compares with what is `found` in a directory whose last life ended so. What is wrong is the error.
    pub(crate) fn judge(
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

    /// A life of the directory ended, and the next one found this, which is all there can be of the last one.
    pub(crate) fn settle(&mut self, found: &BTreeMap<String, Held>, end: End, now: Timestamp) {
        for (key, history) in &mut self.keys {
            self.order += 1;
            let seen = found.get(key).copied().unwrap_or(NOTHING);
            let version = Version { held: seen, order: self.order, is: Is::Acknowledged };
            if seen == NOTHING && self.evicts {
                // What was evicted may be back after the next cut.
                history.doubt_above(history.floor);
                continue;
            }
            match end {
                End::PowerCut => {
                    history.versions = vec![version];
                    history.floor = version.order;
                }
                // What is not there now will never be.
                End::Kill => {
                    match history.versions.iter().rposition(|v| unless_passed(v.held, now) == seen)
                    {
                        Some(at) => {
                            history.versions.truncate(at + 1);
                            history.versions[at].is = Is::Acknowledged;
                        }
                        None => history.versions = vec![version],
                    }
                }
            }
        }
    }
}

/// Nothing, if it has expired.
fn unless_passed(held: Held, now: Timestamp) -> Held {
    if held.1.is_some_and(|end| end <= now) { NOTHING } else { held }
}
