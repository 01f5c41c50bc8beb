//! The store in a sled tree: keys on disk, in order, each with a record as in the log of the
//! engine.
//!
//! sled provides the tree, the file and the syncs. This module makes a cache of it: the conditional
//! write ([`store`]); expiry, bounds and `clear` ([`sweep`]); the directory ([`directory`]).
//! Recency and counts are kept in memory ([`accounting`]), so opening reads all records once.

mod accounting;
mod directory;
mod store;
mod sweep;
mod table;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::{
    Backend, Change, CheckReport, Condition, Item, Limits, NewLimits, Outcome, Stats, Stored,
};
use crate::engine::counters::Counters;
use crate::error::{Error, Result};
use crate::limits::OwnLimits;
use crate::options::{Durability, INLINE_CULL_ENTRIES, Options, QUICK_CULL_ENTRIES};
use store::Store;

pub(crate) struct SledBackend {
    dir: PathBuf,
    options: Options,
    limits: Arc<OwnLimits>,
    counters: Arc<Counters>,
    /// `None` after a `close`. Only open and close lock it to write; they wait for running calls.
    store: RwLock<Option<Store>>,
}

impl SledBackend {
    pub(crate) fn open(dir: &Path, options: &Options) -> Result<Self> {
        // So that a later change of the working directory does not matter.
        let dir = std::path::absolute(dir).map_err(|e| Error::io("open", dir, e))?;
        let counters = Arc::new(Counters::default());
        let limits = Arc::new(OwnLimits::new(options.limits()));
        let store = Store::open(&dir, options, limits.clone(), counters.clone())?;
        Ok(Self {
            dir,
            options: options.clone(),
            limits,
            counters,
            store: RwLock::new(Some(store)),
        })
    }

    /// Calls `work` with the store, which is opened first if it was closed. `work` must not run
    /// code of callers.
    fn with<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        loop {
            if let Some(store) = &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
                return work(store);
            }
            let mut closed = self.store.write().unwrap_or_else(PoisonError::into_inner);
            if closed.is_none() {
                *closed = Some(Store::open(
                    &self.dir,
                    &self.options,
                    self.limits.clone(),
                    self.counters.clone(),
                )?);
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.store.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// A gauge of the store; the default value if it was closed and cannot be opened again.
    fn gauge<T: Default>(&self, read: impl FnOnce(&Store) -> T) -> T {
        self.with(|store| Ok(read(store))).unwrap_or_else(|error| {
            tracing::warn!(%error, "there is nothing to show");
            T::default()
        })
    }
}

impl Backend for SledBackend {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        self.with(|store| store.get(key))
    }

    fn weight(&self, key: &str) -> usize {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            Some(store) => {
                store.accounting().table.get(key).map_or(0, |entry| entry.bytes as usize)
            }
            None => 0,
        }
    }

    fn reads_take_long(&self) -> bool {
        self.is_closed()
    }

    fn commits_take_long(&self) -> bool {
        let Limits { max_entries, cull_frequency, .. } = self.limits.get();
        let culls = max_entries <= INLINE_CULL_ENTRIES || cull_frequency == 0;
        self.options.durability == Durability::Sync
            || self.is_closed()
            || (culls && self.gauge(Store::len) >= max_entries.max(QUICK_CULL_ENTRIES))
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.with(|store| store.commit(key, condition, change))
    }

    fn clear(&self) -> Result<()> {
        self.with(Store::clear)
    }

    fn len(&self) -> Result<u64> {
        self.with(|store| Ok(store.len()))
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        let (batch, next) = self.with(|store| store.batch(cursor))?;
        for (key, stored) in &batch {
            visit(key, stored.item());
        }
        Ok(next)
    }

    fn maintain(&self) -> Result<()> {
        self.with(Store::maintain)
    }

    fn flush(&self) -> Result<()> {
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            Some(store) => store.directory.flush(),
            None => Ok(()),
        }
    }

    fn close(&self) -> Result<()> {
        let flushed = self.flush();
        drop(self.store.write().unwrap_or_else(PoisonError::into_inner).take());
        flushed
    }

    fn limits(&self) -> Limits {
        self.limits.get()
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        self.with(|store| {
            let counts = self.limits.change(new);
            if let Err(error) = store.keep_limits() {
                tracing::warn!(%error, "the new limits are not met yet");
            }
            Ok(counts)
        })
    }

    fn stats(&self) -> Stats {
        let Stats { entries, bytes, .. } = self.gauge(Store::gauges);
        Stats { entries, bytes, ..self.counters.totals() }
    }

    fn check(&self) -> Result<CheckReport> {
        self.with(Store::check)
    }
}

#[cfg(test)]
mod tests;
