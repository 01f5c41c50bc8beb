//! What goes by itself: expired entries, the least recently used ones at the bounds, and what a `clear` left in the
//! tree. And the first look at everything when the directory is opened.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::store::{ENTRIES_PER_HOLD, LeftOver, Store, locked};
use super::table::Entry;
use crate::engine::counters::Counter;
use crate::engine::format::record::Kind;
use crate::entry::CheckReport;
use crate::error::Result;
use crate::limits::Limits;
use crate::options::{Durability, INLINE_CULL_ENTRIES, due_inline};

/// Entries that each store looks at for expired ones, so that what nobody reads goes as well.
const SWEPT_PER_STORE: usize = 4;
/// Records of cleared entries that each store looks for, until all are gone.
const LEFT_OVER_PER_STORE: usize = 8;

/// An entry, as it was when it was chosen to go.
type Chosen = (Arc<str>, u64);

impl Store {
    /// Reads all records: the books are not kept on the disk. Recency begins in the order of the last writes.
    pub(super) fn load(&self) -> Result<()> {
        let (mut found, mut dead) = (Vec::new(), Vec::new());
        let generation = self.books().generation;
        for item in self.home.entries.iter() {
            let (key, bytes) = item.map_err(|e| self.home.error("open", e))?;
            let record = self.home.record(&key, &bytes).filter(|r| r.kind == Kind::Value);
            match (record, str::from_utf8(&key)) {
                (Some(r), Ok(_)) if r.generation < generation => dead.push(key),
                (Some(r), Ok(name)) => {
                    let bytes = (key.len() + bytes.len()) as u64;
                    let entry = Entry { bytes, expires_at: r.expires_at, token: r.sequence };
                    found.push((Box::<str>::from(name), entry));
                }
                _ => {
                    self.counters.one(Counter::Corrupt);
                    tracing::warn!(
                        dir = %self.home.path.display(),
                        key = %String::from_utf8_lossy(&key),
                        "a record was damaged and is removed"
                    );
                    dead.push(key);
                }
            }
        }
        for key in dead {
            self.home.entries.remove(key).map_err(|e| self.home.error("open", e))?;
        }
        found.sort_unstable_by_key(|(_, entry)| entry.token);
        let mut books = self.books();
        for (key, entry) in found {
            books.table.put(&key, entry);
        }
        drop(books);
        self.keep_limits()
    }

    /// Evicts what is beyond the limits.
    pub(super) fn keep_limits(&self) -> Result<()> {
        let Limits { max_entries, max_bytes, .. } = self.limits.get();
        let books = self.books();
        let (entries, bytes) = (books.table.len(), books.table.bytes());
        drop(books);
        self.evict_coldest(entries.saturating_sub(max_entries))?;
        if bytes > max_bytes { self.make_room_for_bytes(0) } else { Ok(()) }
    }

    /// Removes every entry: they are misses at once, and their records go a few with each store.
    pub(super) fn clear(&self) -> Result<()> {
        self.home.begin_generation(self.options.durability == Durability::Sync, |generation| {
            let mut books = self.books();
            books.generation = generation;
            let gone = std::mem::take(&mut books.table);
            drop(books);
            drop(gone);
            *locked(&self.left_over) = Some(LeftOver { generation, from: Vec::new() });
        })
    }

    /// The share of each store in the work that nobody else does.
    pub(super) fn sweep_some(&self) -> Result<()> {
        self.reap(SWEPT_PER_STORE)?;
        if let Ok(mut left_over) = self.left_over.try_lock()
            && left_over.is_some()
        {
            self.sweep_left_over(&mut left_over, LEFT_OVER_PER_STORE)?;
        }
        Ok(())
    }

    /// Reaps everything that has expired and removes what was cleared.
    pub(super) fn maintain(&self) -> Result<()> {
        let mut left = self.books().table.slots();
        while left > 0 {
            let slots = left.min(ENTRIES_PER_HOLD);
            self.reap(slots)?;
            left -= slots;
        }
        let mut left_over = locked(&self.left_over);
        while left_over.is_some() {
            self.sweep_left_over(&mut left_over, ENTRIES_PER_HOLD)?;
        }
        Ok(())
    }

    /// Removes the next few records of cleared entries.
    fn sweep_left_over(&self, left_over: &mut Option<LeftOver>, most: usize) -> Result<()> {
        let Some(LeftOver { generation, from }) = left_over else { return Ok(()) };
        let mut last = None;
        for item in self.home.entries.range(&from[..]..).take(most) {
            let (key, bytes) = item.map_err(|e| self.home.error("sweep", e))?;
            let record = self.home.record(&key, &bytes);
            if record.is_some_and(|r| r.generation < *generation)
                && let Ok(name) = str::from_utf8(&key)
            {
                let _stripe = self.stripe(name);
                self.swap(name, Some(bytes), None)?;
            }
            last = Some(key);
        }
        match last {
            Some(key) => *from = [&key[..], &[0]].concat(),
            None => *left_over = None,
        }
        Ok(())
    }

    /// Looks at the entries in the next `slots` slots and removes those that have expired. Says how many.
    fn reap(&self, slots: usize) -> Result<u64> {
        let now = self.options.clock.now();
        let mut books = self.books();
        let mut expired: Vec<Chosen> = Vec::new();
        for _ in 0..slots.min(books.table.slots()) {
            books.swept = (books.swept + 1) % books.table.slots();
            if let Some((key, entry)) =
                books.table.at(books.swept).filter(|(_, e)| e.has_expired(now))
            {
                expired.push((key.clone(), entry.token));
            }
        }
        drop(books);
        self.remove_all(expired, Counter::Expired)
    }

    fn remove_all(&self, chosen: Vec<Chosen>, counter: Counter) -> Result<u64> {
        let mut removed = 0;
        for (key, token) in chosen {
            let _stripe = self.stripe(&key);
            if self.books().table.get(&key).is_none_or(|entry| entry.token != token) {
                continue;
            }
            self.home.entries.remove(&*key).map_err(|e| self.home.error("evict", e))?;
            self.books().table.remove(&key);
            removed += 1;
        }
        self.counters.add(counter, removed);
        Ok(removed)
    }

    /// Evicts `count` entries, the least recently used ones. Fewer, if somebody else changed some meanwhile.
    fn evict_coldest(&self, count: u64) -> Result<u64> {
        let books = self.books();
        let coldest = books.table.coldest().take(count as usize);
        let chosen = coldest.map(|(key, entry)| (key.clone(), entry.token)).collect();
        drop(books);
        self.remove_all(chosen, Counter::Evicted)
    }

    /// Culls as the other backends do: up to 10,000 entries one in `cull_frequency`, expired ones first; above,
    /// just one.
    pub(super) fn make_room_for_entry(&self) -> Result<()> {
        let _culling = locked(&self.culling);
        let entries = self.len();
        // Somebody else may have made room while this call waited.
        let Limits { max_entries, cull_frequency, .. } = self.limits.get();
        if entries < max_entries {
            return Ok(());
        }
        self.tell_once("max_entries");
        let Some(due) = due_inline(entries, cull_frequency) else {
            self.counters.add(Counter::Evicted, entries);
            return self.clear();
        };
        let slots = self.books().table.slots();
        let mut gone = if entries <= INLINE_CULL_ENTRIES { self.reap(slots)? } else { 0 };
        while gone < due && self.len() > 0 {
            gone += self.evict_coldest(due - gone)?;
        }
        Ok(())
    }

    /// Evicts the least recently used entries until there is room for `bytes` more.
    pub(super) fn make_room_for_bytes(&self, bytes: u64) -> Result<()> {
        let _culling = locked(&self.culling);
        self.tell_once("max_bytes");
        let goal = self.limits.get().max_bytes.saturating_sub(bytes);
        let books = self.books();
        let mut over = books.table.bytes().saturating_sub(goal);
        let coldest = books.table.coldest().take_while(|(_, entry)| {
            let goes = over > 0;
            over = over.saturating_sub(entry.bytes);
            goes
        });
        let chosen = coldest.map(|(key, entry)| (key.clone(), entry.token)).collect();
        drop(books);
        self.remove_all(chosen, Counter::Evicted).map(drop)
    }

    fn tell_once(&self, bound: &'static str) {
        if !self.told_it_is_full.load(Ordering::Relaxed)
            && !self.told_it_is_full.swap(true, Ordering::Relaxed)
        {
            tracing::info!(dir = %self.home.path.display(), bound, "the cache is full; entries are evicted from now on");
        }
    }

    /// Reads everything. Exact when nobody writes meanwhile.
    pub(super) fn check(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let (generation, now) = (self.books().generation, self.options.clock.now());
        for item in self.home.entries.iter() {
            let (key, bytes) = match item {
                Ok(item) => item,
                Err(e) => {
                    report.problem(format!("the tree cannot be read: {e}"));
                    break;
                }
            };
            let name = String::from_utf8_lossy(&key);
            let Some(record) = self.home.record(&key, &bytes) else {
                report.problem(format!("the record of {name:?} is damaged"));
                continue;
            };
            report.records += 1;
            if record.generation < generation {
                report.outdated += 1;
                continue;
            }
            report.entries += 1;
            report.expired += u64::from(record.is_expired(now));
            if record.kind != Kind::Value || record.value().is_none() {
                report.problem(format!("the value of {name:?} is damaged"));
            }
            let known = self.books().table.get(&name).map(|entry| entry.token);
            if known != Some(record.sequence) {
                report.problem(format!("{name:?} is not the entry that the books have"));
            }
        }
        let counted = self.len();
        if report.entries != counted {
            report.problem(format!("{counted} entries are counted, {} are there", report.entries));
        }
        Ok(report)
    }
}
