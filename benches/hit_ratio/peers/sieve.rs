//! SIEVE.

use super::Policy;
use super::list::{List, Table};

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Outside,
    Inside,
    Visited,
}

/// SIEVE (Zhang et al., NSDI 2024): a queue whose hand moves from the oldest key to the newest,
/// skips keys visited since its last pass, and evicts the first key that was not.
pub(crate) struct Sieve {
    capacity: usize,
    queue: List,
    states: Table<State>,
    hand: Option<u32>,
}

impl Sieve {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, queue: List::default(), states: Table::default(), hand: None }
    }

    fn evict(&mut self) {
        let mut at = self.hand.or(self.queue.back());
        while let Some(key) = at.filter(|key| self.states.get(*key) == State::Visited) {
            self.states.set(key, State::Inside);
            at = self.queue.before(key).or(self.queue.back());
        }
        if let Some(key) = at {
            self.hand = self.queue.before(key);
            self.queue.remove(key);
            self.states.set(key, State::Outside);
        }
    }
}

impl Policy for Sieve {
    fn request(&mut self, key: u32) -> bool {
        if self.states.get(key) != State::Outside {
            self.states.set(key, State::Visited);
            return true;
        }
        if self.queue.len() == self.capacity {
            self.evict();
        }
        self.queue.push_front(key);
        self.states.set(key, State::Inside);
        false
    }
}
