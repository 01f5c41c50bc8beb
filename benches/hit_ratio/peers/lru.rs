//! Exact LRU.

use super::Policy;
use super::list::{List, Table};

/// Evicts the least recently used key, exactly.
pub(crate) struct Lru {
    capacity: usize,
    order: List,
    inside: Table<bool>,
}

impl Lru {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, order: List::default(), inside: Table::default() }
    }
}

impl Policy for Lru {
    fn request(&mut self, key: u32) -> bool {
        if self.inside.get(key) {
            self.order.make_first(key);
            return true;
        }
        if self.order.len() == self.capacity
            && let Some(out) = self.order.pop_back()
        {
            self.inside.set(out, false);
        }
        self.order.push_front(key);
        self.inside.set(key, true);
        false
    }
}
