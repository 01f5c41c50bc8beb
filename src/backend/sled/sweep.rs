//! Removal without a request: expired entries, the least recently used ones at the bounds, and the
//! records that a `clear` left in the tree. Also the first pass over all records at open.

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

/// Entries that each store examines, so that expired entries are reaped even if no call reads them.
const SWEPT_PER_STORE: usize = 4;
/// Records that each store examines after a clear, until all cleared ones are removed.
const LEFT_OVER_PER_STORE: usize = 8;

/// A key and the token that its entry had when it was chosen for removal.
type Chosen = (Arc<str>, u64);

impl Store {
    /// Builds the accounting, which is not stored, from all records. Recency starts as the order of
    /// the last writes.
    pub(super) fn load(&self) -> Result<()> {
        let (mut found, mut dead) = (Vec::new(), Vec::new());
        let generation = self.accounting().generation;
        for item in self.directory.entries.iter() {
            let (key, bytes) = item.map_err(|e| self.directory.error("open", e))?;
            let record = self.directory.record(&key, &bytes).filter(|r| r.kind == Kind::Value);
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
                        dir = %self.directory.path.display(),
                        key = %String::from_utf8_lossy(&key),
                        "a record was damaged and is removed"
                    );
                    dead.push(key);
                }
            }
        }
        for key in dead {
            self.directory.entries.remove(key).map_err(|e| self.directory.error("open", e))?;
        }
        found.sort_unstable_by_key(|(_, entry)| entry.token);
        let mut accounting = self.accounting();
        for (key, entry) in found {
            accounting.table.put(&key, entry);
        }
        drop(accounting);
        self.keep_limits()
    }

    /// Evicts entries until the limits hold.
    pub(super) fn keep_limits(&self) -> Result<()> {
        let Limits { max_entries, max_bytes, .. } = self.limits.get();
        let accounting = self.accounting();
        let (entries, bytes) = (accounting.table.len(), accounting.table.bytes());
        drop(accounting);
        self.evict_coldest(entries.saturating_sub(max_entries))?;
        if bytes > max_bytes { self.make_room_for_bytes(0) } else { Ok(()) }
    }

    /// Removes all entries. They are misses at once; later stores remove their records.
    pub(super) fn clear(&self) -> Result<()> {
        self.directory.begin_generation(self.options.durability == Durability::Sync, |generation| {
            let mut accounting = self.accounting();
            accounting.generation = generation;
            let gone = std::mem::take(&mut accounting.table);
            drop(accounting);
            drop(gone);
            *locked(&self.left_over) = Some(LeftOver { generation, from: Vec::new() });
        })
    }

    /// The removals that each store does.
    pub(super) fn sweep_some(&self) -> Result<()> {
        self.reap(SWEPT_PER_STORE)?;
        if let Ok(mut left_over) = self.left_over.try_lock()
            && left_over.is_some()
        {
            self.sweep_left_over(&mut left_over, LEFT_OVER_PER_STORE)?;
        }
        Ok(())
    }

    /// Reaps all expired entries and removes all cleared records.
    pub(super) fn maintain(&self) -> Result<()> {
        let mut left = self.accounting().table.slots();
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
        for item in self.directory.entries.range(&from[..]..).take(most) {
            let (key, bytes) = item.map_err(|e| self.directory.error("sweep", e))?;
            let record = self.directory.record(&key, &bytes);
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

    /// Removes the expired entries in the next `slots` slots, and returns how many.
    fn reap(&self, slots: usize) -> Result<u64> {
        let now = self.options.clock.now();
        let mut accounting = self.accounting();
        let mut expired: Vec<Chosen> = Vec::new();
        for _ in 0..slots.min(accounting.table.slots()) {
            accounting.swept = (accounting.swept + 1) % accounting.table.slots();
            if let Some((key, entry)) =
                accounting.table.at(accounting.swept).filter(|(_, e)| e.has_expired(now))
            {
                expired.push((key.clone(), entry.token));
            }
        }
        drop(accounting);
        self.remove_all(expired, Counter::Expired)
    }

    fn remove_all(&self, chosen: Vec<Chosen>, counter: Counter) -> Result<u64> {
        let mut removed = 0;
        for (key, token) in chosen {
            let _stripe = self.stripe(&key);
            if self.accounting().table.get(&key).is_none_or(|entry| entry.token != token) {
                continue;
            }
            self.directory.entries.remove(&*key).map_err(|e| self.directory.error("evict", e))?;
            self.accounting().table.remove(&key);
            removed += 1;
        }
        self.counters.add(counter, removed);
        Ok(removed)
    }

    /// Evicts the `count` least recently used entries; fewer if other calls changed some of them
    /// meanwhile. Returns how many.
    fn evict_coldest(&self, count: u64) -> Result<u64> {
        let accounting = self.accounting();
        let coldest = accounting.table.coldest().take(count as usize);
        let chosen = coldest.map(|(key, entry)| (key.clone(), entry.token)).collect();
        drop(accounting);
        self.remove_all(chosen, Counter::Evicted)
    }

    /// Culls as the other backends do: up to 10,000 entries, one in `cull_frequency`, expired ones
    /// first; above, one entry.
    pub(super) fn make_room_for_entry(&self) -> Result<()> {
        let _culling = locked(&self.culling);
        let entries = self.len();
        // Another call may have made room while this one waited.
        let Limits { max_entries, cull_frequency, .. } = self.limits.get();
        if entries < max_entries {
            return Ok(());
        }
        self.tell_once("max_entries");
        let Some(due) = due_inline(entries, cull_frequency) else {
            self.counters.add(Counter::Evicted, entries);
            return self.clear();
        };
        let slots = self.accounting().table.slots();
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
        let accounting = self.accounting();
        let mut over = accounting.table.bytes().saturating_sub(goal);
        let coldest = accounting.table.coldest().take_while(|(_, entry)| {
            let goes = over > 0;
            over = over.saturating_sub(entry.bytes);
            goes
        });
        let chosen = coldest.map(|(key, entry)| (key.clone(), entry.token)).collect();
        drop(accounting);
        self.remove_all(chosen, Counter::Evicted).map(drop)
    }

    fn tell_once(&self, bound: &'static str) {
        if !self.told_it_is_full.load(Ordering::Relaxed)
            && !self.told_it_is_full.swap(true, Ordering::Relaxed)
        {
            let dir = self.directory.path.display();
            tracing::info!(%dir, bound, "the cache is full; entries are evicted from now on");
        }
    }

    /// Verifies all records. Exact if no call writes meanwhile.
    pub(super) fn check(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let (generation, now) = (self.accounting().generation, self.options.clock.now());
        for item in self.directory.entries.iter() {
            let (key, bytes) = match item {
                Ok(item) => item,
                Err(e) => {
                    report.problem(format!("the tree cannot be read: {e}"));
                    break;
                }
            };
            let name = String::from_utf8_lossy(&key);
            let Some(record) = self.directory.record(&key, &bytes) else {
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
            let known = self.accounting().table.get(&name).map(|entry| entry.token);
            if known != Some(record.sequence) {
                report.problem(format!("{name:?} differs from its entry in the accounting"));
            }
        }
        let counted = self.len();
        if report.entries != counted {
            report.problem(format!("{counted} entries are counted, {} are there", report.entries));
        }
        Ok(report)
    }
}
