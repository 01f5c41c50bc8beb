//! Belady's optimum, the upper bound of every policy.

use std::collections::{BinaryHeap, HashMap};

use super::Policy;

/// The optimum (Belady 1966): with the future known, evict the key whose next request is the
/// latest, which may be the key just requested.
pub(crate) struct Belady {
    capacity: usize,
    /// For each request, the index of the next request of the same key.
    again: std::vec::IntoIter<usize>,
    /// The cached keys by their next request. Outdated pairs are skipped.
    needed: BinaryHeap<(usize, u32)>,
    inside: HashMap<u32, usize>,
}

impl Belady {
    /// For exactly these requests.
    pub(crate) fn new(capacity: usize, requests: &[u32]) -> Self {
        let mut next: HashMap<u32, usize> = HashMap::new();
        let mut again: Vec<usize> = Vec::with_capacity(requests.len());
        for (at, key) in requests.iter().enumerate().rev() {
            again.push(next.insert(*key, at).unwrap_or(usize::MAX));
        }
        again.reverse();
        Self {
            capacity,
            again: again.into_iter(),
            needed: BinaryHeap::new(),
            inside: HashMap::with_capacity(capacity + 1),
        }
    }
}

impl Policy for Belady {
    fn request(&mut self, key: u32) -> bool {
        let again = self.again.next().unwrap_or(usize::MAX);
        self.needed.push((again, key));
        if self.inside.insert(key, again).is_some() {
            return true;
        }
        while self.inside.len() > self.capacity {
            let Some((at, key)) = self.needed.pop() else { break };
            if self.inside.get(&key) == Some(&at) {
                self.inside.remove(&key);
            }
        }
        false
    }
}
