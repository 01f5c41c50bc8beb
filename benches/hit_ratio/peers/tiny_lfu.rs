//! W-TinyLFU.

use super::Policy;
use super::list::{List, Table};

#[derive(Default, Clone, Copy, PartialEq)]
enum Place {
    #[default]
    Outside,
    Window,
    Probation,
    Protected,
}

/// W-TinyLFU (Einziger, Friedman, Manes, ACM ToS 2017): an LRU window of one percent, and a
/// segmented LRU (four fifths of it protected). A key that leaves the window enters the segmented
/// LRU only if it is used more often than the key it would evict.
pub(crate) struct WTinyLfu {
    capacity: usize,
    window_capacity: usize,
    protected_capacity: usize,
    window: List,
    probation: List,
    protected: List,
    places: Table<Place>,
    sketch: Sketch,
}

impl WTinyLfu {
    pub(crate) fn new(capacity: usize) -> Self {
        let window_capacity = (capacity / 100).max(1);
        Self {
            capacity,
            window_capacity,
            protected_capacity: (capacity - window_capacity) * 4 / 5,
            window: List::default(),
            probation: List::default(),
            protected: List::default(),
            places: Table::default(),
            sketch: Sketch::new(capacity),
        }
    }

    fn touch(&mut self, key: u32) {
        match self.places.get(key) {
            Place::Window => self.window.make_first(key),
            Place::Protected => self.protected.make_first(key),
            Place::Probation => {
                self.probation.remove(key);
                self.protected.push_front(key);
                self.places.set(key, Place::Protected);
                if self.protected.len() > self.protected_capacity
                    && let Some(demoted) = self.protected.pop_back()
                {
                    self.put_on_probation(demoted);
                }
            }
            Place::Outside => {}
        }
    }

    fn put_on_probation(&mut self, key: u32) {
        self.probation.push_front(key);
        self.places.set(key, Place::Probation);
    }

    /// Moves the coldest key of the window to the main part if there is room, or if it is used more
    /// often than the victim there. Otherwise evicts it.
    fn leave_window(&mut self) {
        let Some(candidate) = self.window.pop_back() else { return };
        let main = self.probation.len() + self.protected.len();
        if main < self.capacity - self.window_capacity {
            return self.put_on_probation(candidate);
        }
        let victim = self.probation.back().or(self.protected.back());
        match victim.filter(|victim| self.sketch.count(candidate) > self.sketch.count(*victim)) {
            Some(victim) => {
                let is_protected = self.places.get(victim) == Place::Protected;
                if is_protected {
                    self.protected.remove(victim)
                } else {
                    self.probation.remove(victim)
                }
                self.places.set(victim, Place::Outside);
                self.put_on_probation(candidate);
            }
            None => self.places.set(candidate, Place::Outside),
        }
    }
}

impl Policy for WTinyLfu {
    fn request(&mut self, key: u32) -> bool {
        self.sketch.add(key);
        if self.places.get(key) != Place::Outside {
            self.touch(key);
            return true;
        }
        if self.window.len() == self.window_capacity {
            self.leave_window();
        }
        self.window.push_front(key);
        self.places.set(key, Place::Window);
        false
    }
}

const ROWS: u64 = 4;
const MOST: u8 = 15;

/// A count-min sketch of counts up to 15. All counts are halved after ten times as many uses as the
/// cache holds keys.
struct Sketch {
    counts: Vec<u8>,
    mask: u64,
    uses: usize,
    halve_at: usize,
}

impl Sketch {
    fn new(capacity: usize) -> Self {
        let width = (capacity * 4).next_power_of_two().max(64);
        Self {
            counts: vec![0; width * ROWS as usize],
            mask: width as u64 - 1,
            uses: 0,
            halve_at: capacity * 10,
        }
    }

    fn places(&self, key: u32) -> impl Iterator<Item = usize> + use<> {
        let mask = self.mask;
        (0..ROWS).map(move |row| {
            let mixed = (u64::from(key) + 1)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(row as u32 * 16 + 7);
            let mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
            ((mixed >> 32 & mask) + row * (mask + 1)) as usize
        })
    }

    fn count(&self, key: u32) -> u8 {
        self.places(key).map(|at| self.counts[at]).min().unwrap_or(0)
    }

    fn add(&mut self, key: u32) {
        let least = self.count(key);
        for at in self.places(key) {
            if self.counts[at] == least && least < MOST {
                self.counts[at] += 1;
            }
        }
        self.uses += 1;
        if self.uses >= self.halve_at {
            self.uses /= 2;
            self.counts.iter_mut().for_each(|count| *count /= 2);
        }
    }
}
