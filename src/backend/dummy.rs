//! The store that keeps nothing, for development: every read is a miss and every write succeeds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Backend, Change, Condition, Item, Limits, NewLimits, Outcome, Stats, Stored};
use crate::error::Result;
use crate::limits::OwnLimits;
use crate::options::Options;

/// Keeps nothing, but counts.
#[derive(Debug)]
pub(crate) struct DummyBackend {
    limits: OwnLimits,
    misses: AtomicU64,
    commits: AtomicU64,
}

impl DummyBackend {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            limits: OwnLimits::new(options.limits()),
            misses: AtomicU64::default(),
            commits: AtomicU64::default(),
        }
    }
}

impl Backend for DummyBackend {
    fn visit(&self, _: &str, _: &mut dyn FnMut(Item<'_>)) -> Result<bool> {
        self.misses.fetch_add(1, Relaxed);
        Ok(false)
    }

    fn get(&self, _: &str) -> Result<Option<Stored>> {
        self.misses.fetch_add(1, Relaxed);
        Ok(None)
    }

    fn weight(&self, _: &str) -> usize {
        0
    }

    fn commits_take_long(&self) -> bool {
        false
    }

    fn commit(&self, _: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        // Every key is absent, so only storing can take effect, and only where no entry is asked
        // for.
        match (condition, change) {
            (Condition::Always | Condition::Absent, Change::Store { .. }) => {
                self.commits.fetch_add(1, Relaxed);
                Ok(Outcome::Done { token: None, existed: false })
            }
            _ => Ok(Outcome::Refused { current: None }),
        }
    }

    fn clear(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(0)
    }

    fn scan(&self, _: u64, _: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        Ok(None)
    }

    fn limits(&self) -> Limits {
        self.limits.get()
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        Ok(self.limits.change(new))
    }

    fn stats(&self) -> Stats {
        Stats {
            misses: self.misses.load(Relaxed),
            commits: self.commits.load(Relaxed),
            ..Stats::default()
        }
    }
}
