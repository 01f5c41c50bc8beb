//! A backend of about 200 lines: a `HashMap` behind a lock, bounded in entries. Its `main` runs the
//! conformance suite and prints the result.
//!
//! ```sh
//! cargo run --example toy_backend --features test-util
//! ```

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keepwarm::backend::{
    Backend, Change, Condition, Decided, Expiry, Item, Limits, NewLimits, Outcome, Stored,
};
use keepwarm::testing::backend_contract::{Contract, Report};
use keepwarm::{Clock, Error, ErrorKind, Result, Timestamp};

/// Values of more bytes are refused.
const MAX_VALUE: u64 = 2 << 20;

/// The store. Its entries are gone with it.
pub(crate) struct Toy {
    clock: Box<dyn Clock>,
    state: Mutex<State>,
    /// Whether it plays a store that cannot be reached.
    outage: Arc<AtomicBool>,
}

struct State {
    entries: HashMap<String, Entry>,
    /// Counts up, so that no token is used twice.
    last_token: u64,
    max_entries: u64,
}

struct Entry {
    stored: Stored,
    /// The order of insertion, by which a scan continues and the oldest entry is evicted.
    number: u64,
}

impl Toy {
    pub(crate) fn new(clock: impl Clock, outage: Arc<AtomicBool>) -> Self {
        let state = State { entries: HashMap::new(), last_token: 0, max_entries: 100_000 };
        Self { clock: Box::new(clock), state: Mutex::new(state), outage }
    }

    /// The state, unless there is an outage: then nothing has changed.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        if self.outage.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unreachable, "lock"));
        }
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// At its expiry an entry has expired.
fn has_passed(expires_at: Expiry, now: Timestamp) -> bool {
    expires_at.is_some_and(|end| end <= now)
}

impl State {
    /// The entry of `key`, unless it has expired.
    fn live(&self, key: &str, now: Timestamp) -> Option<&Stored> {
        let stored = &self.entries.get(key)?.stored;
        (!has_passed(stored.expires_at, now)).then_some(stored)
    }

    fn evict_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.number);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.entries.remove(&key);
        }
    }
}

impl Backend for Toy {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        // The value is shared, not copied: `Stored` holds its bytes by a count of references.
        Ok(self.state()?.live(key, self.clock.now()).cloned())
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        if let Change::Store { value, .. } = change
            && value.len() as u64 > MAX_VALUE
        {
            return Err(Error::new(ErrorKind::ValueTooLarge, "store").with_key(key));
        }
        // One lock around the check of the condition and the change makes them one step.
        let mut state = self.state()?;
        let now = self.clock.now();
        let before = state.live(key, now).cloned();
        let current = before.as_ref().map(|stored| stored.token);
        let token = match change.decide(condition, current, |end| has_passed(end, now)) {
            Decided::Return(outcome) => return Ok(outcome),
            Decided::Remove => {
                state.entries.remove(key);
                None
            }
            Decided::Put { expires_at } => {
                state.last_token += 1;
                let token = state.last_token;
                let stored = match (change, before) {
                    (Change::Store { value, codec, soft, .. }, _) => {
                        Stored::new(value.to_vec(), codec, expires_at, token).with_soft(soft)
                    }
                    // A touch: the value stays, and from now on all of its life is fresh.
                    (_, Some(Stored { value, codec, soft, .. })) => {
                        Stored::new(value, codec, expires_at, token).with_soft(soft.touched())
                    }
                    (_, None) => return Ok(Outcome::Refused { current: None }),
                };
                // An entry that is replaced keeps its number, so that a scan does not repeat it.
                let number = state.entries.get(key).map_or(token, |entry| entry.number);
                state.entries.insert(key.to_owned(), Entry { stored, number });
                if state.entries.len() as u64 > state.max_entries {
                    state.evict_oldest();
                }
                Some(token)
            }
        };
        Ok(Outcome::Done { token, existed: current.is_some() })
    }

    fn clear(&self) -> Result<()> {
        // `last_token` stays: the tokens of the entries that are gone must not come back.
        self.state()?.entries.clear();
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.state()?.entries.len() as u64)
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        let (state, now) = (self.state()?, self.clock.now());
        let mut batch: Vec<(u64, String, Stored)> = state
            .entries
            .iter()
            .filter(|(_, entry)| entry.number > cursor && !has_passed(entry.stored.expires_at, now))
            .map(|(key, entry)| (entry.number, key.clone(), entry.stored.clone()))
            .collect();
        // `visit` may call the backend again, so it is called without the lock.
        drop(state);
        batch.sort_unstable_by_key(|(number, ..)| *number);
        batch.truncate(256);
        batch.iter().for_each(|(_, key, stored)| visit(key, stored.item()));
        Ok(batch.last().map(|(number, ..)| *number))
    }

    // Also optional: these two tell `AsyncCache` that no call takes long.
    fn weight(&self, key: &str) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.live(key, self.clock.now()).map_or(0, |stored| stored.value.len())
    }

    fn commits_take_long(&self) -> bool {
        false
    }

    fn limits(&self) -> Limits {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut limits = Limits::unlimited();
        (limits.max_entries, limits.max_bytes) = (state.max_entries, MAX_VALUE);
        limits
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let max_entries = new.over(self.limits()).max_entries;
        let mut state = self.state()?;
        state.max_entries = max_entries;
        while state.entries.len() as u64 > max_entries {
            state.evict_oldest();
        }
        drop(state);
        Ok(self.limits())
    }
}

/// Checks the contract on stores like this one.
pub(crate) fn check() -> Report {
    let outage = Arc::new(AtomicBool::new(false));
    let switch = outage.clone();
    Contract::new(move |clock| Ok(Box::new(Toy::new(clock, outage.clone()))))
        .outage(move |on| switch.store(on, SeqCst))
        .check()
}

#[cfg_attr(not(test), expect(clippy::print_stdout, reason = "it shows the report"))]
fn main() -> ExitCode {
    let report = check();
    println!("{report}");
    if report.is_kept() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
