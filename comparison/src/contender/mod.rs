//! The engines of the comparison behind one trait, each used as its documentation recommends.

mod hash_map;
mod keepwarm;
mod lmdb;
mod moka;
mod nothing;
mod quick_cache;
mod redb;
mod sled;
mod sqlite;

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::workload::Key;

/// An open store. Its methods panic on an error: then there is nothing to compare.
pub(crate) trait Contender: Send + Sync {
    fn set(&self, key: &str, value: &[u8]);

    /// Sets many entries in one transaction, if that is faster.
    fn set_many(&self, entries: &[(Key, Vec<u8>)]) {
        entries.iter().for_each(|(key, value)| self.set(key.as_str(), value));
    }

    /// Calls `look` with the value under `key`. `false` if there is none.
    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool;

    /// Adds 1 to the counter under `key`, which starts at 0, and returns the sum.
    fn incr(&self, key: &str) -> i64;

    /// Returns when everything is on the disk.
    fn flush(&self) {}

    /// Closes the store as a program does at a normal exit.
    fn close(self: Box<Self>) {}
}

/// The limits of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Bounds {
    /// Limits of `entries` and a tenth more, and of more bytes than any workload writes.
    pub(crate) fn roomy(entries: u32) -> Self {
        Self { entries: u64::from(entries) * 11 / 10 + 10_000, bytes: 4 << 30 }
    }
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Which {
    Keepwarm,
    Lmdb,
    Sled,
    Redb,
    Moka,
    QuickCache,
    HashMap,
    Sqlite,
    /// A store that does nothing, to show the cost of the measurement itself.
    Nothing,
}

impl Which {
    pub(crate) const ALL: [Self; 9] = [
        Self::Keepwarm,
        Self::Lmdb,
        Self::Sled,
        Self::Redb,
        Self::Moka,
        Self::QuickCache,
        Self::HashMap,
        Self::Sqlite,
        Self::Nothing,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Keepwarm => "keepwarm",
            Self::Lmdb => "LMDB",
            Self::Sled => "sled",
            Self::Redb => "redb",
            Self::Moka => "moka",
            Self::QuickCache => "quick_cache",
            Self::HashMap => "HashMap",
            Self::Sqlite => "SQLite",
            Self::Nothing => "(harness)",
        }
    }

    /// A description of its version and settings.
    pub(crate) fn setup(self) -> &'static str {
        match self {
            Self::Keepwarm => keepwarm::SETUP,
            Self::Lmdb => lmdb::SETUP,
            Self::Sled => sled::SETUP,
            Self::Redb => redb::SETUP,
            Self::Moka => moka::SETUP,
            Self::QuickCache => quick_cache::SETUP,
            Self::HashMap => hash_map::SETUP,
            Self::Sqlite => sqlite::SETUP,
            Self::Nothing => nothing::SETUP,
        }
    }

    /// Whether it stores its entries in a directory.
    pub(crate) fn is_persistent(self) -> bool {
        matches!(self, Self::Keepwarm | Self::Lmdb | Self::Sled | Self::Redb | Self::Sqlite)
    }

    /// Whether it takes part in the race within one process.
    pub(crate) fn races(self) -> bool {
        self != Self::Sqlite
    }

    /// Whether more than one process can have its directory open.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Keepwarm | Self::Lmdb | Self::Sqlite)
    }

    /// Whether it evicts at a bound.
    pub(crate) fn is_bounded(self) -> bool {
        matches!(self, Self::Keepwarm | Self::Moka | Self::QuickCache)
    }

    /// Opens it in `dir`, which is empty or was used by the same engine before.
    pub(crate) fn open(self, dir: &Path, bounds: Bounds) -> Box<dyn Contender> {
        match self {
            Self::Keepwarm => Box::new(keepwarm::Store::open(dir, bounds)),
            Self::Lmdb => Box::new(lmdb::Store::open(dir)),
            Self::Sled => Box::new(sled::Store::open(dir)),
            Self::Redb => Box::new(redb::Store::open(dir)),
            Self::Moka => Box::new(moka::Store::new(bounds)),
            Self::QuickCache => Box::new(quick_cache::Store::new(bounds)),
            Self::HashMap => Box::new(hash_map::Store::default()),
            Self::Sqlite => Box::new(sqlite::Store::open(dir)),
            Self::Nothing => Box::new(nothing::Store::default()),
        }
    }
}

/// Decodes a counter, for stores without counters of their own.
fn count_of(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_stores_counts_and_persists() {
        for which in Which::ALL.into_iter().filter(|which| *which != Which::Nothing) {
            let dir = tempfile::tempdir().unwrap();
            let bounds = Bounds::roomy(100);
            let store = which.open(dir.path(), bounds);
            let read = |store: &dyn Contender, key: &str| {
                let mut seen = None;
                store.get(key, &mut |value| seen = Some(value.to_vec())).then(|| seen.unwrap())
            };
            assert_eq!(read(&*store, "a"), None, "{which:?}");
            store.set("a", b"one");
            store.set("a", b"two");
            store.set("b", b"three");
            store.set_many(&[(Key::of(1), b"four".to_vec()), (Key::of(2), b"five".to_vec())]);
            assert_eq!(
                read(&*store, Key::of(2).as_str()).as_deref(),
                Some(&b"five"[..]),
                "{which:?}"
            );
            assert_eq!(read(&*store, "a").as_deref(), Some(&b"two"[..]), "{which:?}");
            assert_eq!((store.incr("n"), store.incr("n"), store.incr("m")), (1, 2, 1), "{which:?}");
            store.flush();
            store.close();
            if which.is_persistent() {
                let store = which.open(dir.path(), bounds);
                assert_eq!(read(&*store, "b").as_deref(), Some(&b"three"[..]), "{which:?}");
                assert_eq!(store.incr("n"), 3, "{which:?}");
                store.close();
            }
        }
    }
}
