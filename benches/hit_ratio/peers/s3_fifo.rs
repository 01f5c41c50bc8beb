//! S3-FIFO.

use std::collections::VecDeque;

use super::Policy;
use super::list::Table;

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Outside,
    /// In the cache, with its uses since an eviction last examined it, at most three.
    Inside(u8),
    /// In the ghost queue. The number is the count of ghosts when it was added.
    Ghost(u64),
}

/// S3-FIFO (Yang et al., SOSP 2023): a small queue (a tenth) for new keys; a main queue for keys
/// that were used more than once in the small one, or that are requested while the ghost queue
/// holds them. The ghost queue holds as many keys as the main queue.
pub(crate) struct S3Fifo {
    capacity: usize,
    small_capacity: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: u64,
    states: Table<State>,
}

impl S3Fifo {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            small_capacity: (capacity / 10).max(1),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: 0,
            states: Table::default(),
        }
    }

    fn uses(&self, key: u32) -> u8 {
        match self.states.get(key) {
            State::Inside(uses) => uses,
            _ => 0,
        }
    }

    fn main_capacity(&self) -> usize {
        self.capacity - self.small_capacity
    }

    fn evict(&mut self) {
        while self.small.len() + self.main.len() >= self.capacity {
            if self.small.len() >= self.small_capacity {
                self.evict_small()
            } else {
                self.evict_main()
            }
        }
    }

    fn evict_small(&mut self) {
        let Some(key) = self.small.pop_front() else { return };
        if self.uses(key) > 1 {
            self.put_into_main(key);
        } else {
            self.ghosts += 1;
            self.states.set(key, State::Ghost(self.ghosts));
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            let uses = self.uses(key);
            if uses == 0 {
                self.states.set(key, State::Outside);
                return;
            }
            self.states.set(key, State::Inside(uses - 1));
            self.main.push_back(key);
        }
    }

    fn put_into_main(&mut self, key: u32) {
        if self.main.len() >= self.main_capacity() {
            self.evict_main();
        }
        self.states.set(key, State::Inside(0));
        self.main.push_back(key);
    }
}

impl Policy for S3Fifo {
    fn request(&mut self, key: u32) -> bool {
        match self.states.get(key) {
            State::Inside(uses) => {
                self.states.set(key, State::Inside((uses + 1).min(3)));
                return true;
            }
            State::Ghost(at) if self.ghosts - at < self.main_capacity() as u64 => {
                self.evict();
                self.put_into_main(key);
            }
            _ => {
                self.evict();
                self.states.set(key, State::Inside(0));
                self.small.push_back(key);
            }
        }
        false
    }
}
