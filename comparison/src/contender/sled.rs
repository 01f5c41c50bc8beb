//! sled.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Contender, count_of};
use crate::workload::Key;

pub(super) const SETUP: &str = "0.34.7; `Mode::HighThroughput`, `flush_every_ms(1000)`, 1 GiB \
     cache (its default); `update_and_fetch` for counters";

/// The longest wait for the lock of a store that this process has just dropped. A lock that is held
/// for longer belongs to another process.
const MOST: Duration = Duration::from_secs(60);

pub(super) struct Store(sled::Db);

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let config = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(1000));
        let started = Instant::now();
        loop {
            match config.open() {
                // The threads of a dropped store release its lock file a little later. Until then
                // the store cannot be opened again.
                Err(sled::Error::Io(e))
                    if e.to_string().starts_with("could not acquire lock")
                        && started.elapsed() < MOST =>
                {
                    std::thread::yield_now();
                }
                opened => return Self(opened.unwrap()),
            }
        }
    }
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        self.0.insert(key, value).unwrap();
    }

    fn set_many(&self, entries: &[(Key, Vec<u8>)]) {
        let mut batch = sled::Batch::default();
        entries.iter().for_each(|(key, value)| batch.insert(key.as_str(), value.as_slice()));
        self.0.apply_batch(batch).unwrap();
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        self.0.get(key).unwrap().map(|value| look(&value)).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let add = |old: Option<&[u8]>| Some((old.map_or(0, count_of) + 1).to_le_bytes().to_vec());
        count_of(&self.0.update_and_fetch(key, add).unwrap().unwrap())
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }

    fn close(self: Box<Self>) {
        self.0.flush().unwrap();
    }
}
