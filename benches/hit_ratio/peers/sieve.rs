use super::Policy;
use super::list::{List, Table};

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Outside,
    Inside,
    Visited,
}

/// SIEVE (Zhang et al., NSDI 2024): a queue whose hand moves from the oldest to the newest, passes over what was
/// visited since it last came by, and takes out the first that was not.
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

#[test]
fn the_hand_goes_on_where_it_was() {
    // Oldest first: 1 is visited and passed over, 2 goes; then 3, where the hand stands, although 1 is older.
    assert_eq!(super::hits(&mut Sieve::new(3), &[1, 2, 3, 1, 4, 5, 1, 2, 4]), "---+--+--");
    // All visited: each loses its mark, and the oldest goes.
    assert_eq!(super::hits(&mut Sieve::new(2), &[1, 2, 1, 2, 3, 2, 1]), "--++-+-");
}
