//! A keepwarm cache on disk as a policy: a missing key is stored, as in a program.

use keepwarm::testing::TempCache;
use keepwarm::{Durability, Eviction, Timeout};

use super::peers::Policy;

pub(crate) struct Real {
    cache: TempCache,
    key: String,
}

impl Real {
    /// A cache with these two options, and with enough space that only the entries bound it.
    pub(crate) fn new(capacity: usize, eviction: Eviction) -> Self {
        let cache = TempCache::with(|builder| {
            let builder = builder.max_entries(capacity as u64).max_bytes(256 << 20).hot_bytes(0);
            builder.durability(Durability::Buffered).eviction(eviction)
        });
        Self { cache: cache.unwrap(), key: String::new() }
    }
}

impl Policy for Real {
    fn request(&mut self, key: u32) -> bool {
        use std::fmt::Write;
        self.key.clear();
        write!(self.key, "{key}").unwrap();
        let hit = self.cache.get_bytes(&self.key).unwrap().is_some();
        if !hit {
            self.cache.set_bytes(&self.key, &[], Timeout::Never).unwrap();
        }
        hit
    }
}
