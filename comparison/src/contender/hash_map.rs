//! `HashMap` behind a lock.

use std::collections::HashMap;
use std::sync::RwLock;

use bytes::Bytes;

use super::{Contender, count_of};

pub(super) const SETUP: &str =
    "`RwLock<HashMap<String, Bytes>>` of the standard library (SipHash); no bound, no eviction";

#[derive(Default)]
pub(super) struct Store(RwLock<HashMap<String, Bytes>>);

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        self.0.write().unwrap().insert(key.to_owned(), value);
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        let value = self.0.read().unwrap().get(key).cloned();
        value.map(|value| look(&value)).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let mut map = self.0.write().unwrap();
        let sum = map.get(key).map_or(0, |value| count_of(value)) + 1;
        map.insert(key.to_owned(), Bytes::copy_from_slice(&sum.to_le_bytes()));
        sum
    }
}
