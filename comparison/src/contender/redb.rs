//! redb.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{Contender, count_of};
use crate::workload::Key;

pub(super) const SETUP: &str = "4.5; a transaction per call, `Durability::None` except one \
     `Immediate` commit per second, 1 GiB cache (its default); values read in place";

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
const DURABLE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Store {
    db: Database,
    durable: Mutex<Instant>,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let db = Database::create(dir.join("redb")).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(TABLE).unwrap();
        txn.commit().unwrap();
        Self { db, durable: Mutex::new(Instant::now()) }
    }

    fn write(&self) -> WriteTransaction {
        let mut txn = self.db.begin_write().unwrap();
        let mut durable = self.durable.lock().unwrap();
        if durable.elapsed() >= DURABLE_EVERY {
            *durable = Instant::now();
        } else {
            txn.set_durability(Durability::None).unwrap();
        }
        txn
    }
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        let txn = self.write();
        txn.open_table(TABLE).unwrap().insert(key, value).unwrap();
        txn.commit().unwrap();
    }

    fn set_many(&self, entries: &[(Key, Vec<u8>)]) {
        let txn = self.write();
        let mut table = txn.open_table(TABLE).unwrap();
        for (key, value) in entries {
            table.insert(key.as_str(), value.as_slice()).unwrap();
        }
        drop(table);
        txn.commit().unwrap();
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        let txn = self.db.begin_read().unwrap();
        let table = txn.open_table(TABLE).unwrap();
        table.get(key).unwrap().map(|value| look(value.value())).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let txn = self.write();
        let mut table = txn.open_table(TABLE).unwrap();
        let sum = table.get(key).unwrap().map_or(0, |value| count_of(value.value())) + 1;
        table.insert(key, sum.to_le_bytes().as_slice()).unwrap();
        drop(table);
        txn.commit().unwrap();
        sum
    }

    fn flush(&self) {
        // A durable commit makes all earlier commits durable too.
        self.db.begin_write().unwrap().commit().unwrap();
    }
}
