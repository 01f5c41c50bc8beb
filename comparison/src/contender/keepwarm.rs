//! keepwarm.

use std::path::Path;

use keepwarm::{Cache, Timeout};

use super::{Bounds, Contender};

pub(super) const SETUP: &str = "defaults (`Durability::Interval` of 1 s, 64 MiB hot tier, default \
     key function), bounds a tenth above the stored entries and 4 GiB; `set_bytes` with \
     `Timeout::Never`, `get_bytes`, `incr_or_init`";

pub(super) struct Store(Cache);

impl Store {
    pub(super) fn open(dir: &Path, bounds: Bounds) -> Self {
        Self(
            Cache::builder(dir).max_entries(bounds.entries).max_bytes(bounds.bytes).open().unwrap(),
        )
    }
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        self.0.set_bytes(key, value, Timeout::Never).unwrap();
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        self.0.get_bytes(key).unwrap().map(|value| look(&value)).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        self.0.incr_or_init(key, 1, 0, Timeout::Never).unwrap()
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }

    fn close(self: Box<Self>) {
        self.0.close().unwrap();
    }
}
