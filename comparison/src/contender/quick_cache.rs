//! quick_cache.

use bytes::Bytes;
use quick_cache::sync::{Cache, EntryAction, EntryResult};

use super::{Bounds, Contender, count_of};

pub(super) const SETUP: &str = "0.7, `sync::Cache<String, Bytes>`, defaults, a capacity a tenth \
     above the stored entries; `entry` for counters";

pub(super) struct Store(Cache<String, Bytes>);

impl Store {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Cache::new(usize::try_from(bounds.entries).unwrap()))
    }
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        self.0.insert(key.to_owned(), Bytes::copy_from_slice(value));
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        self.0.get(key).map(|value| look(&value)).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let add = |_: &String, value: &mut Bytes| {
            let sum = count_of(value) + 1;
            *value = Bytes::copy_from_slice(&sum.to_le_bytes());
            EntryAction::Retain(sum)
        };
        match self.0.entry(key, None, add) {
            EntryResult::Retained(sum) => sum,
            EntryResult::Vacant(guard) => {
                guard.insert(Bytes::copy_from_slice(&1i64.to_le_bytes())).unwrap();
                1
            }
            _ => unreachable!("`add` only retains entries, and the wait has no time-out"),
        }
    }
}
