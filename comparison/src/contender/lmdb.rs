//! LMDB, through heed.

use std::path::Path;

use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use super::{Contender, count_of};
use crate::workload::Key;

pub(super) const SETUP: &str = "through heed 0.22; `NO_SYNC` and `WRITE_MAP`, a map of 16 GiB; a \
     transaction per call (`read_txn` with thread-local slots), values read in place";

pub(super) struct Store {
    env: Env,
    db: Database<Str, Bytes>,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let mut options = EnvOpenOptions::new();
        options.map_size(16 << 30);
        // SAFETY: other processes open this directory only by these lines, on the same machine, and
        // LMDB's lock file synchronises them; nothing else changes the files. Without syncs the
        // files are sound as long as the machine runs.
        #[expect(unsafe_code, reason = "heed cannot know which processes map the file")]
        let env =
            unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP).open(dir) }.unwrap();
        let mut txn = env.write_txn().unwrap();
        let db = env.create_database(&mut txn, None).unwrap();
        txn.commit().unwrap();
        Self { env, db }
    }
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        let mut txn = self.env.write_txn().unwrap();
        self.db.put(&mut txn, key, value).unwrap();
        txn.commit().unwrap();
    }

    fn set_many(&self, entries: &[(Key, Vec<u8>)]) {
        let mut txn = self.env.write_txn().unwrap();
        entries.iter().for_each(|(key, value)| self.db.put(&mut txn, key.as_str(), value).unwrap());
        txn.commit().unwrap();
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        let txn = self.env.read_txn().unwrap();
        self.db.get(&txn, key).unwrap().map(look).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let mut txn = self.env.write_txn().unwrap();
        let sum = self.db.get(&txn, key).unwrap().map_or(0, count_of) + 1;
        self.db.put(&mut txn, key, &sum.to_le_bytes()).unwrap();
        txn.commit().unwrap();
        sum
    }

    fn flush(&self) {
        self.env.force_sync().unwrap();
    }

    fn close(self: Box<Self>) {
        let closing = self.env.prepare_for_closing();
        closing.wait();
    }
}
