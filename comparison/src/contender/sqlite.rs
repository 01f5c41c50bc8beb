use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::{Connection, Params};

use super::Contender;
use crate::workload::Key;

pub(super) const SETUP: &str = "through rusqlite 0.41, which brings it along; `journal_mode = WAL`, `synchronous = NORMAL`, \
     a page cache of 256 MiB, which holds all of it, a busy timeout of a minute; a table `key BLOB PRIMARY KEY, value BLOB` \
     `WITHOUT ROWID`, cached statements, a transaction for each call, values read where they lie";

const SET: &str =
    "INSERT INTO entries VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM entries WHERE key = ?1";
const INCR: &str = "INSERT INTO entries VALUES (?1, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value";

/// Nobody waits so long: a call fails only if something is wrong.
const BUSY: Duration = Duration::from_secs(60);

/// One connection, as nobody shares it between threads here.
pub(super) struct Store(Mutex<Connection>);

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let connection = Connection::open(dir.join("entries")).unwrap();
        connection.busy_timeout(BUSY).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.pragma_update(None, "synchronous", "NORMAL").unwrap();
        // Negative: in KiB. With a memory map in its place all of this is slower, and so is a table with row ids.
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
