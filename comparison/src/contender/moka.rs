//! moka.

use bytes::Bytes;
use moka::sync::Cache;

use super::{Bounds, Contender, count_of};

pub(super) const SETUP: &str = "0.12, `sync::Cache<String, Bytes>`, defaults (TinyLFU, SipHash), a \
     capacity a tenth above the stored entries; `and_upsert_with` for counters";

pub(super) struct Store(Cache<String, Bytes>);

impl Store {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self(Cache::new(bounds.entries))
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
        let add = |entry: Option<moka::Entry<String, Bytes>>| {
            let count = entry.map_or(0, |entry| count_of(entry.value()));
            Bytes::copy_from_slice(&(count + 1).to_le_bytes())
        };
        count_of(self.0.entry_by_ref(key).and_upsert_with(add).value())
    }
}
