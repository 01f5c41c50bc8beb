//! SQLite, through rusqlite.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, Params};

use super::Contender;
use crate::workload::Key;

pub(super) const SETUP: &str = "bundled with rusqlite 0.41; `journal_mode = WAL`, `synchronous = \
     NORMAL`, a page cache of 256 MiB, which holds the whole database, a busy timeout of a minute; \
     a table `key BLOB PRIMARY KEY, value BLOB` `WITHOUT ROWID`, cached statements, a transaction \
     per call, values read in place";

const SET: &str =
    "INSERT INTO entries VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM entries WHERE key = ?1";
const INCR: &str = "INSERT INTO entries VALUES (?1, 1) \
     ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value";

/// Far longer than any wait for the lock, so that a call times out only if something is wrong.
const BUSY: Duration = Duration::from_secs(60);

/// One connection, because the workloads that include SQLite have one thread per process.
pub(super) struct Store(Mutex<Connection>);

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let connection = Connection::open(dir.join("entries")).unwrap();
        connection.busy_timeout(BUSY).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "synchronous", "NORMAL").unwrap();
        // A negative size is in KiB. With a memory map instead, all calls are slower; so they are
        // with a table with row ids.
        connection.pragma_update(None, "cache_size", -(256 << 10)).unwrap();
        let table =
            "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID";
        connection.execute_batch(table).unwrap();
        Self(Mutex::new(connection))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap()
    }
}

/// Runs a statement that returns nothing.
fn execute(connection: &Connection, sql: &str, params: impl Params) {
    connection.prepare_cached(sql).unwrap().execute(params).unwrap();
}

impl Contender for Store {
    fn set(&self, key: &str, value: &[u8]) {
        execute(&self.connection(), SET, (key.as_bytes(), value));
    }

    fn set_many(&self, entries: &[(Key, Vec<u8>)]) {
        let mut connection = self.connection();
        let transaction = connection.transaction().unwrap();
        for (key, value) in entries {
            execute(&transaction, SET, (key.as_str().as_bytes(), value));
        }
        transaction.commit().unwrap();
    }

    fn get(&self, key: &str, look: &mut dyn FnMut(&[u8])) -> bool {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(GET).unwrap();
        let mut rows = statement.query((key.as_bytes(),)).unwrap();
        rows.next().unwrap().map(|row| look(row.get_ref(0).unwrap().as_blob().unwrap())).is_some()
    }

    fn incr(&self, key: &str) -> i64 {
        let connection = self.connection();
        let mut statement = connection.prepare_cached(INCR).unwrap();
        statement.query_row((key.as_bytes(),), |row| row.get(0)).unwrap()
    }
}
