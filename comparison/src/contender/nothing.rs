//! A store that does nothing.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::Contender;

pub(super) const SETUP: &str = "a store that does nothing, to show the cost of the measurement \
     itself: building key and value, checking the value";

#[derive(Default)]
pub(super) struct Store(AtomicI64);

/// As long as the longest value, so that a check of any value finds enough bytes.
static VALUE: [u8; 16 << 10] = [0; 16 << 10];

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        std::hint::black_box((key, value));
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        std::hint::black_box(key);
        look(&VALUE);
        true
    }

    fn incr(&self, key: &str) -> i64 {
        std::hint::black_box(key);
        self.0.fetch_add(1, Relaxed) + 1
    }
}
