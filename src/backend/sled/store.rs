//! An open sled directory: reading and writing.
//!
//! ```text
//! read the key's record; decide; return if nothing must be written
//! prepare the new record, except its stamp
//! lock the key's stripe; take the next sequence
//! count the entry in the accounting; at a bound: unlock, make room, start over
//! compare-and-swap in the tree, from the record just read to the new one; if it has changed:
//!     undo the accounting, start over
//! ```
//!
//! The compare-and-swap makes a change atomic. The stripe's lock makes the order of sequences the
//! order of publication, and keeps accounting and tree in step. No code of callers runs under a
//! lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::sled::IVec;
use bytes::Bytes;

use super::accounting::{Accounting, Retry};
use super::directory::SledDirectory;
use super::table::Entry;
use crate::backend::{Change, Codec, Condition, Outcome, Stats, Stored};
use crate::engine::counters::{Counter, Counters};
use crate::engine::format::record::{
    Draft, Fields, Kind, MAX_KEY_LEN, Prepared, Record, Stamp, touched,
};
use crate::entry::{Decided, Expiry};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{Limits, OwnLimits};
use crate::options::{Durability, Options};

const STRIPES: usize = 64;
/// Entries that a scan or a sweep examines while it holds the accounting's lock once.
pub(super) const ENTRIES_PER_HOLD: usize = 256;

/// Records of an earlier generation than this one, from this key on, are still in the tree.
pub(super) struct LeftOver {
    pub(super) generation: u32,
    pub(super) from: Vec<u8>,
}

pub(super) struct Store {
    pub(super) directory: SledDirectory,
    pub(super) options: Options,
    /// The limits of the backend, which may change.
    pub(super) limits: Arc<OwnLimits>,
    pub(super) counters: Arc<Counters>,
    accounting: Mutex<Accounting>,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
    /// Held while a call makes room, so that two inserts at the bound do not both evict.
    pub(super) culling: Mutex<()>,
    pub(super) left_over: Mutex<Option<LeftOver>>,
    pub(super) told_it_is_full: AtomicBool,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code of callers runs under a lock, so a panic cannot have left the state half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(super) fn open(
        dir: &std::path::Path,
        options: &Options,
        limits: Arc<OwnLimits>,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let directory = SledDirectory::open(dir, options)?;
        let store = Self {
            accounting: Mutex::new(Accounting::new(directory.generation())),
            directory,
            options: options.clone(),
            limits,
            counters,
            stripes: std::array::from_fn(|_| Mutex::new(())),
            hasher: RandomState::new(),
            culling: Mutex::new(()),
            left_over: Mutex::new(None),
            told_it_is_full: AtomicBool::new(false),
        };
        store.load()?;
        Ok(store)
    }

    pub(super) fn accounting(&self) -> MutexGuard<'_, Accounting> {
        locked(&self.accounting)
    }

    pub(super) fn stripe(&self, key: &str) -> MutexGuard<'_, ()> {
        locked(&self.stripes[self.hasher.hash_one(key) as usize % STRIPES])
    }

    fn stored(&self, key: &str) -> Result<Option<IVec>> {
        self.directory.entries.get(key).map_err(|e| self.directory.error("read", e))
    }

    /// Whether the record is an entry now. `generation` must have been read after the record.
    fn is_live(&self, record: &Record<'_>, generation: u32) -> bool {
        record.generation >= generation && !record.is_expired(self.options.clock.now())
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Stored>> {
        let found = self.find(key, true)?;
        self.counters.one(if found.is_some() { Counter::Hits } else { Counter::Misses });
        Ok(found)
    }

    /// The entry of `key`. If `uses`, it becomes the most recently used one.
    fn find(&self, key: &str, uses: bool) -> Result<Option<Stored>> {
        let bytes = match self.stored(key) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                self.counters.one(Counter::Corrupt);
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let sound =
            self.directory.record(key.as_bytes(), &bytes).and_then(|r| Some((r, r.content()?)));
        let Some((record, (soft, value))) = sound else {
            self.forget(key, bytes)?;
            return Ok(None);
        };
        let mut accounting = self.accounting();
        if !self.is_live(&record, accounting.generation) {
            return Ok(None);
        }
        if uses {
            accounting.table.use_entry(key);
        }
        drop(accounting);
        let Record { codec, expires_at, sequence: token, .. } = record;
        let at = value.as_ptr() as usize - bytes.as_ptr() as usize;
        let range = at..at + value.len();
        let value = Bytes::from_owner(bytes).slice(range);
        Ok(Some(Stored { value, codec, expires_at, soft, token }))
    }

    /// Removes a damaged record, so that it is counted once.
    fn forget(&self, key: &str, damaged: IVec) -> Result<()> {
        let _stripe = self.stripe(key);
        if self.swap(key, Some(damaged), None)? {
            self.accounting().table.remove(key);
            self.counters.one(Counter::Corrupt);
            let dir = self.directory.path.display();
            tracing::warn!(%dir, key, "a record was damaged and is removed");
        }
        Ok(())
    }

    /// Compare-and-swap of a key's record. Returns whether `old` was there.
    pub(super) fn swap(&self, key: &str, old: Option<IVec>, new: Option<Vec<u8>>) -> Result<bool> {
        let swapped = self.directory.entries.compare_and_swap(key, old, new);
        Ok(swapped.map_err(|e| self.directory.error("write", e))?.is_ok())
    }

    pub(super) fn commit(
        &self,
        key: &str,
        condition: Condition,
        change: Change<'_>,
    ) -> Result<Outcome> {
        if key.len() > MAX_KEY_LEN {
            let why = format!(
                "{} bytes with prefix and version; at most {MAX_KEY_LEN} are possible",
                key.len()
            );
            return Err(Error::new(ErrorKind::InvalidKey, "set").with_source(why));
        }
        if let Change::Store { .. } = change {
            self.sweep_some()?;
        }
        let outcome = loop {
            let old = self.stored(key)?;
            let generation = self.accounting().generation;
            let record =
                old.as_ref().and_then(|bytes| self.directory.record(key.as_bytes(), bytes));
            let live = record.filter(|record| self.is_live(record, generation));
            let current = live.map(|record| record.sequence);
            let has_passed = |end: Expiry| end.is_some_and(|end| end <= self.options.clock.now());
            let attempt = match change.decide(condition, current, has_passed) {
                Decided::Return(outcome) => return Ok(outcome),
                Decided::Remove => self.remove(key, old)?.then_some(None).ok_or(Retry::Changed),
                Decided::Put { expires_at } => {
                    let mut fields = Fields::default();
                    let draft = |codec, flags, fields: &[u8], body: &[u8]| Draft {
                        kind: Kind::Value,
                        codec,
                        flags,
                        key_len: key.len() as u32,
                        // A length beyond 32 bits is refused as too large for a record.
                        body_len: u32::try_from(fields.len() + body.len()).unwrap_or(u32::MAX),
                    };
                    let (draft, body) = match (change, live) {
                        (Change::Store { value, codec, soft, .. }, _) => {
                            fields = Fields::new(soft);
                            (draft(codec, fields.flags, fields.bytes(), value), value)
                        }
                        (_, Some(record)) => {
                            match record.verified_body().and_then(|b| touched(record.flags, b)) {
                                Some((flags, body)) => {
                                    (draft(record.codec, flags, &[], body), body)
                                }
                                None => {
                                    // A damaged record is no entry, for a reader too.
                                    old.clone()
                                        .map_or(Ok(()), |damaged| self.forget(key, damaged))?;
                                    continue;
                                }
                            }
                        }
                        // Not reached: only a live entry is touched.
                        _ => (draft(Codec::Raw, 0, &[], &[]), &[][..]),
                    };
                    let body = [fields.bytes(), body];
                    self.put(key, old.clone(), draft, body, expires_at, generation)?.map(Some)
                }
            };
            match attempt {
                Ok(token) => break Outcome::Done { token, existed: current.is_some() },
                Err(Retry::Changed) => {}
                Err(Retry::Full) => self.make_room_for_entry()?,
                Err(Retry::Large(bytes)) => self.make_room_for_bytes(bytes)?,
            }
        };
        self.counters.one(Counter::Commits);
        if self.options.durability == Durability::Sync {
            self.directory.flush()?;
        }
        Ok(outcome)
    }

    /// One attempt to store a record in place of `old`. Returns its token.
    fn put(
        &self,
        key: &str,
        old: Option<IVec>,
        draft: Draft,
        body: [&[u8]; 2],
        expires_at: Expiry,
        generation: u32,
    ) -> Result<Result<u64, Retry>> {
        let Limits { max_entries, max_bytes, .. } = self.limits.get();
        let bytes = |len: u32| (key.len() as u64) + u64::from(len);
        let Some(len) = draft.len().filter(|len| bytes(*len) <= max_bytes) else {
            let why = format!("{} bytes of at most {max_bytes}", draft.body_len);
            return Err(Error::new(ErrorKind::ValueTooLarge, "store")
                .with_key(key)
                .with_source(why));
        };
        let prepared = Prepared::new(draft, len, self.directory.place(), key.as_bytes(), body);
        let _stripe = self.stripe(key);
        let sequence = self.directory.next_sequence()?;
        let entry = Entry { bytes: bytes(len), expires_at, token: sequence };
        let before = match self.accounting().reserve(key, entry, generation, max_entries, max_bytes)
        {
            Ok(before) => before,
            Err(retry) => return Ok(Err(retry)),
        };
        let record =
            prepared.encode(Stamp { sequence, generation, expires_at }, key.as_bytes(), body);
        let swapped = self.swap(key, old, Some(record));
        if !matches!(swapped, Ok(true)) {
            self.accounting().restore(key, before, generation);
        }
        Ok(if swapped? { Ok(sequence) } else { Err(Retry::Changed) })
    }

    /// One attempt to remove the record `old`. Returns whether it was removed.
    fn remove(&self, key: &str, old: Option<IVec>) -> Result<bool> {
        let _stripe = self.stripe(key);
        let removed = self.swap(key, old, None)?;
        if removed {
            self.accounting().table.remove(key);
        }
        Ok(removed)
    }

    /// Some entries from slot `cursor` on, and the next cursor.
    #[expect(clippy::type_complexity, reason = "a batch and what follows it")]
    pub(super) fn batch(&self, cursor: u64) -> Result<(Vec<(Arc<str>, Stored)>, Option<u64>)> {
        // An entry keeps its slot for as long as it stays, so slots in order give each exactly
        // once.
        let accounting = self.accounting();
        let first = usize::try_from(cursor).unwrap_or(usize::MAX).min(accounting.table.slots());
        let end = first.saturating_add(ENTRIES_PER_HOLD).min(accounting.table.slots());
        let keys: Vec<Arc<str>> = (first..end)
            .filter_map(|slot| accounting.table.at(slot))
            .map(|(key, _)| key.clone())
            .collect();
        let more = end < accounting.table.slots();
        drop(accounting);
        let mut batch = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(stored) = self.find(&key, false)? {
                batch.push((key, stored));
            }
        }
        Ok((batch, more.then_some(end as u64)))
    }

    pub(super) fn len(&self) -> u64 {
        self.accounting().table.len()
    }

    /// The gauges: entries and bytes.
    pub(super) fn gauges(&self) -> Stats {
        let accounting = self.accounting();
        Stats {
            entries: accounting.table.len(),
            bytes: accounting.table.bytes(),
            ..Stats::default()
        }
    }
}
