//! An open sled directory: reading and writing.
//!
//! ```text
//! read the key's record; decide; if nothing is to be done: return
//! make the new record but for its stamp
//! lock the key's stripe; take the sequence; put the entry down in the books, or at a bound: unlock, make room, begin again
//! compare-and-swap in the tree, from the record that was read to the new one; if it is another by now: begin again
//! ```
//!
//! The compare-and-swap makes a change atomic; the stripe keeps the order of sequences the order of
//! publication, and books and tree in step. No call of users runs under a lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::sled::IVec;
use bytes::Bytes;

use super::accounting::{Again, Books};
use super::directory::Home;
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
/// Entries that one hold of the books looks at in a scan or a sweep.
pub(super) const ENTRIES_PER_HOLD: usize = 256;

/// Records of an earlier generation than this one, from this key on, are still in the tree.
pub(super) struct LeftOver {
    pub(super) generation: u32,
    pub(super) from: Vec<u8>,
}

pub(super) struct Store {
    pub(super) home: Home,
    pub(super) options: Options,
    /// Those of the backend, which may change.
    pub(super) limits: Arc<OwnLimits>,
    pub(super) counters: Arc<Counters>,
    books: Mutex<Books>,
    stripes: [Mutex<()>; STRIPES],
    hasher: RandomState,
    /// Held by whoever makes room, so that two inserts at the bound do not both.
    pub(super) culling: Mutex<()>,
    pub(super) left_over: Mutex<Option<LeftOver>>,
    pub(super) told_it_is_full: AtomicBool,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of a caller's runs under any of the locks, so a panic elsewhere cannot have left them
    // half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub(super) fn open(
        dir: &std::path::Path,
        options: &Options,
        limits: Arc<OwnLimits>,
        counters: Arc<Counters>,
    ) -> Result<Self> {
        let home = Home::open(dir, options)?;
        let store = Self {
            books: Mutex::new(Books::new(home.generation())),
            home,
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

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        locked(&self.books)
    }

    pub(super) fn stripe(&self, key: &str) -> MutexGuard<'_, ()> {
        locked(&self.stripes[self.hasher.hash_one(key) as usize % STRIPES])
    }

    fn stored(&self, key: &str) -> Result<Option<IVec>> {
        self.home.entries.get(key).map_err(|e| self.home.error("read", e))
    }

    /// Whether the record is an entry now. The generation is looked up after the record was read.
    fn is_live(&self, record: &Record<'_>, generation: u32) -> bool {
        record.generation >= generation && !record.is_expired(self.options.clock.now())
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Stored>> {
        let found = self.find(key, true)?;
        self.counters.one(if found.is_some() { Counter::Hits } else { Counter::Misses });
        Ok(found)
    }

    /// The entry of `key`. `uses`: it is from now on the most recently used one.
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
        let sound = self.home.record(key.as_bytes(), &bytes).and_then(|r| Some((r, r.content()?)));
        let Some((record, (soft, value))) = sound else {
            self.forget(key, bytes)?;
            return Ok(None);
        };
        let mut books = self.books();
        if !self.is_live(&record, books.generation) {
            return Ok(None);
        }
        if uses {
            books.table.use_entry(key);
        }
        drop(books);
        let Record { codec, expires_at, sequence: token, .. } = record;
        let at = value.as_ptr() as usize - bytes.as_ptr() as usize;
        let range = at..at + value.len();
        let value = Bytes::from_owner(bytes).slice(range);
        Ok(Some(Stored { value, codec, expires_at, soft, token }))
    }

    /// Removes what is no sound record of its key, so that it is counted once.
    fn forget(&self, key: &str, damaged: IVec) -> Result<()> {
        let _stripe = self.stripe(key);
        if self.swap(key, Some(damaged), None)? {
            self.books().table.remove(key);
            self.counters.one(Counter::Corrupt);
            tracing::warn!(dir = %self.home.path.display(), key, "a record was damaged and is removed");
        }
        Ok(())
    }

    /// Compare-and-swap of a key's record. Says whether `old` was the one that was there.
    pub(super) fn swap(&self, key: &str, old: Option<IVec>, new: Option<Vec<u8>>) -> Result<bool> {
        let swapped = self.home.entries.compare_and_swap(key, old, new);
        Ok(swapped.map_err(|e| self.home.error("write", e))?.is_ok())
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
            let generation = self.books().generation;
            let record = old.as_ref().and_then(|bytes| self.home.record(key.as_bytes(), bytes));
            let live = record.filter(|record| self.is_live(record, generation));
            let current = live.map(|record| record.sequence);
            let has_passed = |end: Expiry| end.is_some_and(|end| end <= self.options.clock.now());
            let attempt = match change.decide(condition, current, has_passed) {
                Decided::Return(outcome) => return Ok(outcome),
                Decided::Remove => self.remove(key, old)?.then_some(None).ok_or(Again::Changed),
                Decided::Put { expires_at } => {
                    let mut fields = Fields::default();
                    let draft = |codec, flags, fields: &[u8], body: &[u8]| Draft {
                        kind: Kind::Value,
                        codec,
                        flags,
                        key_len: key.len() as u32,
                        // What does not fit into 32 bits does not fit into a record either.
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
                                    // A reader would say so too: there is no entry.
                                    old.clone()
                                        .map_or(Ok(()), |damaged| self.forget(key, damaged))?;
                                    continue;
                                }
                            }
                        }
                        // Only an entry is touched.
                        _ => (draft(Codec::Raw, 0, &[], &[]), &[][..]),
                    };
                    let body = [fields.bytes(), body];
                    self.put(key, old.clone(), draft, body, expires_at, generation)?.map(Some)
                }
            };
            match attempt {
                Ok(token) => break Outcome::Done { token, existed: current.is_some() },
                Err(Again::Changed) => {}
                Err(Again::Full) => self.make_room_for_entry()?,
                Err(Again::Large(bytes)) => self.make_room_for_bytes(bytes)?,
            }
        };
        self.counters.one(Counter::Commits);
        if self.options.durability == Durability::Sync {
            self.home.flush()?;
        }
        Ok(outcome)
    }

    /// One attempt to store a record in place of `old`. Gives its token.
    fn put(
        &self,
        key: &str,
        old: Option<IVec>,
        draft: Draft,
        body: [&[u8]; 2],
        expires_at: Expiry,
        generation: u32,
    ) -> Result<Result<u64, Again>> {
        let Limits { max_entries, max_bytes, .. } = self.limits.get();
        let bytes = |len: u32| (key.len() as u64) + u64::from(len);
        let Some(len) = draft.len().filter(|len| bytes(*len) <= max_bytes) else {
            let why = format!("{} bytes of at most {max_bytes}", draft.body_len);
            return Err(Error::new(ErrorKind::ValueTooLarge, "store")
                .with_key(key)
                .with_source(why));
        };
        let prepared = Prepared::new(draft, len, self.home.place(), key.as_bytes(), body);
        let _stripe = self.stripe(key);
        let sequence = self.home.next_sequence()?;
        let entry = Entry { bytes: bytes(len), expires_at, token: sequence };
        let before = match self.books().reserve(key, entry, generation, max_entries, max_bytes) {
            Ok(before) => before,
            Err(again) => return Ok(Err(again)),
        };
        let record =
            prepared.encode(Stamp { sequence, generation, expires_at }, key.as_bytes(), body);
        let swapped = self.swap(key, old, Some(record));
        if !matches!(swapped, Ok(true)) {
            self.books().restore(key, before, generation);
        }
        Ok(if swapped? { Ok(sequence) } else { Err(Again::Changed) })
    }

    /// One attempt to remove the record `old`. Says whether it did.
    fn remove(&self, key: &str, old: Option<IVec>) -> Result<bool> {
        let _stripe = self.stripe(key);
        let removed = self.swap(key, old, None)?;
        if removed {
            self.books().table.remove(key);
        }
        Ok(removed)
    }

    /// Some entries from slot `cursor` on, and where to go on.
    #[expect(clippy::type_complexity, reason = "a batch and what follows it")]
    pub(super) fn batch(&self, cursor: u64) -> Result<(Vec<(Arc<str>, Stored)>, Option<u64>)> {
        // An entry keeps its slot for as long as it stays, so slots in order give each exactly
        // once.
        let books = self.books();
        let first = usize::try_from(cursor).unwrap_or(usize::MAX).min(books.table.slots());
        let end = first.saturating_add(ENTRIES_PER_HOLD).min(books.table.slots());
        let keys: Vec<Arc<str>> = (first..end)
            .filter_map(|slot| books.table.at(slot))
            .map(|(key, _)| key.clone())
            .collect();
        let more = end < books.table.slots();
        drop(books);
        let mut batch = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(stored) = self.find(&key, false)? {
                batch.push((key, stored));
            }
        }
        Ok((batch, more.then_some(end as u64)))
    }

    pub(super) fn len(&self) -> u64 {
        self.books().table.len()
    }

    /// Entries and bytes, the counters aside.
    pub(super) fn gauges(&self) -> Stats {
        let books = self.books();
        Stats { entries: books.table.len(), bytes: books.table.bytes(), ..Stats::default() }
    }
}
