//! The directory of a sled cache: the lock of the process that has it open, sled's files, and the
//! facts that are stored beside the entries.
//!
//! ```text
//! DIR/CACHEDIR.TAG
//! DIR/locks          byte 1: the process that has it open
//! DIR/sled/          sled's own files; tree `entries`: key -> record, tree `facts`: one value
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::sled::{Db, IVec, Tree};
use serde::{Deserialize, Serialize};

use crate::engine::format::meta;
use crate::engine::format::record::{Record, RecordPlace};
use crate::engine::lifecycle::directory;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{Durability, Options};
use crate::sys::lock;
use crate::sys::storage::{File, SYSTEM};

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// The byte of `locks` that stands for the process that has the directory open.
const PROCESS: i64 = 1;
/// How many sequences are reserved on the disk at a time, so that none is used twice, whatever a
/// kill loses. sled's own `generate_id` is not enough: after two kills in short succession it
/// repeats itself.
const SEQUENCES: u64 = 1 << 32;
/// sled unlocks its file a moment after it was closed, when its threads have ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How often sled writes out its buffers if the durability asks for no interval. It also cleans up
/// its file then, so it is never turned off.
const UNHURRIED: Duration = Duration::from_secs(30);

const FACTS: &[u8] = b"facts";

/// What is known about the directory beside its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    format: u32,
    /// Seeds the checks of the records.
    salt: u64,
    /// The current generation. Records of earlier ones were cleared.
    generation: u32,
    /// The end of the reserved sequences.
    sequences: u64,
}

/// An open directory. One process at a time has it open.
pub(super) struct SledDirectory {
    pub(super) path: PathBuf,
    pub(super) entries: Tree,
    tree_of_facts: Tree,
    db: Db,
    /// sled's log.
    log: File,
    salt: u64,
    facts: Mutex<Facts>,
    next_sequence: AtomicU64,
    reserved_to: AtomicU64,
    /// The last field, so that no process opens the directory before sled has closed its file.
    _locks: File,
}

impl SledDirectory {
    pub(super) fn open(path: &Path, options: &Options) -> Result<Self> {
        directory::refuse_network(path, options)?;
        let path = directory::find_or_make(SYSTEM, path)?;
        directory::refuse_foreign(SYSTEM, &path, &["sled"])?;
        let locks = take(&path)?;
        directory::tag(SYSTEM, &path)?;
        let dir = path.join("sled");
        SYSTEM.create_dir(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let db = open_sled(&dir, options)?;
        let log = dir.join("db");
        let log = SYSTEM.open(&log).map_err(|e| Error::io("open", &log, e))?;
        let tree = |name: &str| db.open_tree(name).map_err(|e| store_error("open", &dir, e));
        let (entries, tree_of_facts) = (tree("entries")?, tree("facts")?);
        let mut facts = match tree_of_facts.get(FACTS).map_err(|e| store_error("open", &dir, e))? {
            Some(bytes) => Facts::decode(&bytes).map_err(|e| e.with_path(&dir))?,
            None if entries.is_empty() => {
                let salt = crate::sys::random::bits().map_err(|e| Error::io("open", &dir, e))?;
                Facts { format: FORMAT, salt, generation: 0, sequences: 1 }
            }
            None => {
                let why = "what the entries cannot be read without is lost";
                return Err(Error::new(ErrorKind::Corrupt, "open")
                    .with_path(&dir)
                    .with_source(why));
            }
        };
        let first = facts.sequences;
        facts.sequences += SEQUENCES;
        let directory = Self {
            path,
            entries,
            tree_of_facts,
            db,
            log,
            salt: facts.salt,
            facts: Mutex::new(facts.clone()),
            next_sequence: AtomicU64::new(first),
            reserved_to: AtomicU64::new(facts.sequences),
            _locks: locks,
        };
        directory.write(&facts)?;
        directory.flush()?;
        Ok(directory)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, facts: &Facts) -> Result<()> {
        let bytes = meta::seal(facts).map_err(|e| Error::io("write", &self.path, e))?;
        self.tree_of_facts.insert(FACTS, bytes).map_err(|e| self.error("write", e))?;
        Ok(())
    }

    pub(super) fn error(&self, operation: &'static str, error: ::sled::Error) -> Error {
        store_error(operation, &self.path, error)
    }

    /// Waits until all writes are on the disk, except pages that are so large that sled keeps them
    /// in files of their own.
    pub(super) fn flush(&self) -> Result<()> {
        self.db.flush().map_err(|e| self.error("sync", e))?;
        // On Linux sled only starts the write-back of its pages: neither the length of the file nor
        // the write cache of the disk is durable then.
        self.log.sync().map_err(|e| Error::io("sync", &self.path, e))
    }

    pub(super) fn generation(&self) -> u32 {
        self.facts().generation
    }

    /// Begins the next generation, durably if `sync`, and then calls `effect` with it.
    pub(super) fn begin_generation(&self, sync: bool, effect: impl FnOnce(u32)) -> Result<()> {
        let mut facts = self.facts();
        let Some(generation) = facts.generation.checked_add(1) else {
            let why = "4,294,967,295 clears are as many as a directory can have; remove it";
            return Err(Error::new(ErrorKind::Overflow, "clear")
                .with_path(&self.path)
                .with_source(why));
        };
        let next = Facts { generation, ..facts.clone() };
        self.write(&next)?;
        if sync {
            self.flush()?;
        }
        *facts = next;
        effect(generation);
        Ok(())
    }

    /// A number greater than all others ever used in this directory.
    pub(super) fn next_sequence(&self) -> Result<u64> {
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        if sequence >= self.reserved_to.load(Ordering::Acquire) {
            let mut facts = self.facts();
            while sequence >= facts.sequences {
                let next = Facts { sequences: facts.sequences + SEQUENCES, ..facts.clone() };
                self.write(&next)?;
                self.flush()?;
                self.reserved_to.store(next.sequences, Ordering::Release);
                *facts = next;
            }
        }
        Ok(sequence)
    }

    /// The seed of the records' checks. Each record is stored by itself, so its offset is 0.
    pub(super) fn place(&self) -> RecordPlace {
        RecordPlace { salt: self.salt, offset: 0 }
    }

    /// The record that is stored under `key`, if header and key are sound.
    pub(super) fn record<'a>(&self, key: &[u8], bytes: &'a IVec) -> Option<Record<'a>> {
        Record::decode(bytes, self.place()).filter(|record| record.key == key)
    }
}

impl Facts {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Corrupt, "open");
        let facts: Self = meta::unseal(bytes)
            .and_then(|body| rmp_serde::from_slice(body).ok())
            .ok_or_else(damaged)?;
        if facts.format > FORMAT {
            let why = format!("format {}; this version knows format {FORMAT}", facts.format);
            return Err(Error::new(ErrorKind::UnsupportedFormat, "open").with_source(why));
        }
        Ok(facts)
    }
}

/// The lock file, locked.
fn take(dir: &Path) -> Result<File> {
    let path = dir.join("locks");
    let locked = SYSTEM
        .open_or_create(&path)
        .and_then(|(file, _)| Ok((lock::try_lock(&file, PROCESS)?, file)));
    match locked.map_err(|e| Error::io("lock", &path, e))? {
        (true, file) => Ok(file),
        (false, _) => {
            let why = "or this one has it open already: clone that cache";
            Err(Error::new(ErrorKind::InUse, "open").with_path(dir).with_source(why))
        }
    }
}

/// Opens sled's files. sled panics on some kinds of damage; that is the error `Corrupt` here.
pub(super) fn open_sled(dir: &Path, options: &Options) -> Result<Db> {
    let every = match options.durability {
        Durability::Interval(interval) => interval,
        Durability::Buffered | Durability::Sync => UNHURRIED,
    };
    let config = ::sled::Config::new()
        .path(dir)
        .cache_capacity(options.hot_bytes.max(1 << 20))
        .flush_every_ms(Some(every.as_millis() as u64));
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => return Ok(db),
            Ok(Err(::sled::Error::Io(e))) if is_locked(&e) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(Err(::sled::Error::Io(e))) if is_locked(&e) => {
                return Err(Error::new(ErrorKind::InUse, "open").with_path(dir).with_source(e));
            }
            Ok(Err(e)) => return Err(store_error("open", dir, e)),
            Err(_) => {
                let why = "sled panicked";
                return Err(Error::new(ErrorKind::Corrupt, "open").with_path(dir).with_source(why));
            }
        }
    }
}

/// sled has no error kind for a file that another process has locked.
fn is_locked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().starts_with("could not acquire lock")
}

fn store_error(operation: &'static str, path: &Path, error: ::sled::Error) -> Error {
    match error {
        ::sled::Error::Io(e) => Error::io(operation, path, e),
        ::sled::Error::Corruption { .. } => {
            Error::new(ErrorKind::Corrupt, operation).with_path(path).with_source(error)
        }
        other => Error::new(ErrorKind::Io, operation).with_path(path).with_source(other),
    }
}
