//! The store in the memory of this process: an LRU map behind one mutex.
//!
//! One mutex and not shards, because both bounds and the choice of what to cull are over all
//! entries, to the exact count. User code (`visit`) and the freeing of many entries happen outside
//! it.

mod decoded;
mod table;

use std::any::TypeId;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    Backend, Change, Condition, Decoded, Item, Limits, NewLimits, Outcome, SharedValue, Stats,
    Stored,
};
use crate::entry::Decided;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::OwnLimits;
use crate::options::{self, INLINE_CULL_ENTRIES, Options, QUICK_CULL_ENTRIES};
use crate::time::{Clock, Timestamp};
use table::{Content, Garbage, Node, Table, entry_bytes, passed};

/// Slots that each insert examines, so that expired entries are reaped even if no call reads them.
const SWEPT_PER_INSERT: usize = 4;

/// Slots that one hold of the mutex looks at in a scan or a sweep.
const SLOTS_PER_HOLD: usize = 256;

pub(crate) struct MemoryBackend {
    limits: OwnLimits,
    hot_bytes: u64,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    table: Table,
    /// Where the sweep for expired entries continues.
    swept: usize,
    last_token: u64,
    evicted_before: bool,
    stats: Stats,
}

impl MemoryBackend {
    pub(crate) fn new(options: &Options) -> Self {
        let state = State {
            table: Table::default(),
            swept: 0,
            last_token: 0,
            evicted_before: false,
            stats: Stats::default(),
        };
        Self {
            limits: OwnLimits::new(options.limits()),
            hot_bytes: options.hot_bytes,
            clock: options.clock.clone(),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing of a caller's runs under the lock, so a panic elsewhere cannot have left it half
        // done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> u64 {
        self.lock().table.len()
    }

    /// The key's entry, and what `beside` finds while the state is locked, if there is an entry.
    fn find<R>(
        &self,
        key: &str,
        beside: impl FnOnce(&mut State) -> Option<R>,
    ) -> (Option<R>, Option<Stored>) {
        let now = self.clock.now();
        let mut garbage = Garbage::default();
        let mut state = self.lock();
        state.reap(key, now, &mut garbage);
        let stored = state.table.use_entry(key).map(Node::stored);
        let beside = match &stored {
            Some(_) => {
                state.stats.hits += 1;
                beside(&mut state)
            }
            None => {
                state.stats.misses += 1;
                None
            }
        };
        drop(state);
        (beside, stored)
    }

    fn store(
        &self,
        state: &mut State,
        key: &str,
        new: Content,
        now: Timestamp,
        garbage: &mut Garbage,
    ) -> Option<u64> {
        if !state.table.contains(key) {
            state.sweep(SWEPT_PER_INSERT, now, garbage);
            self.make_room_for_one(state, garbage);
        }
        state.last_token += 1;
        let token = state.last_token;
        garbage.extend(state.table.put(key, new, token));
        // The entry just stored is the most recently used one, and fits by itself, so it stays.
        self.keep_bytes(state, garbage);
        Some(token)
    }

    fn keep_bytes(&self, state: &mut State, garbage: &mut Garbage) {
        let max_bytes = self.limits.get().max_bytes;
        let evicted = state.evict_while(|table| table.bytes() > max_bytes, garbage);
        self.count_evicted(state, evicted, "max_bytes");
    }

    fn make_room_for_one(&self, state: &mut State, garbage: &mut Garbage) {
        let entries = state.table.len();
        let Limits { max_entries, cull_frequency, .. } = self.limits.get();
        if entries < max_entries {
            return;
        }
        let evicted = match options::due_inline(entries, cull_frequency) {
            None => {
                garbage.take_all(&mut state.table);
                entries
            }
            Some(due) => {
                state.evict_while(|table| table.len() > entries.saturating_sub(due), garbage)
            }
        };
        self.count_evicted(state, evicted, "max_entries");
    }

    fn count_evicted(&self, state: &mut State, evicted: u64, bound: &'static str) {
        state.stats.evicted += evicted;
        if evicted > 0 && !state.evicted_before {
            state.evicted_before = true;
            let limits = self.limits.get();
            tracing::info!(bound, ?limits, "the cache is full; entries are evicted from now on");
        }
    }
}

impl State {
    /// Removes the least recently used entries while the table is too `full`, and says how many.
    fn evict_while(&mut self, full: impl Fn(&Table) -> bool, garbage: &mut Garbage) -> u64 {
        let mut evicted = 0;
        while full(&self.table)
            && let Some(node) = self.table.pop_lru()
        {
            garbage.push(node);
            evicted += 1;
        }
        evicted
    }

    /// Looks at the next `slots` slots and removes what has expired.
    fn sweep(&mut self, slots: usize, now: Timestamp, garbage: &mut Garbage) {
        for _ in 0..slots.min(self.table.slots()) {
            self.swept = (self.swept + 1) % self.table.slots();
            if let Some(node) = self.table.take_expired_at(self.swept, now) {
                garbage.push(node);
                self.stats.expired += 1;
            }
        }
    }

    /// Removes the entry of `key` if it has expired, so that what remains can be used without
    /// another check of its expiry.
    fn reap(&mut self, key: &str, now: Timestamp, garbage: &mut Garbage) {
        if let Some(node) = self.table.take_expired(key, now) {
            garbage.push(node);
            self.stats.expired += 1;
        }
    }
}

impl Backend for MemoryBackend {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        Ok(self.find(key, |_| None::<()>).1)
    }

    fn get_decoded(
        &self,
        key: &str,
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        let (kept, stored) = self.find(key, |state| {
            let kept = state.table.use_decoded(key, wanted);
            state.stats.hot_hits += u64::from(kept.is_some());
            kept
        });
        let Some(stored) = stored.filter(|_| kept.is_none()) else { return Ok(kept) };
        let Some(decoded) = decode(stored.item()) else { return Ok(None) };
        let value = decoded.value.clone();
        let mut garbage = Garbage::default();
        let mut state = self.lock();
        state.table.keep_decoded(key, stored.token, decoded, self.hot_bytes, &mut garbage);
        drop(state);
        Ok(Some(value))
    }

    fn weight(&self, key: &str) -> usize {
        self.lock().table.weight(key)
    }

    fn commits_take_long(&self) -> bool {
        let Limits { max_entries, cull_frequency, .. } = self.limits.get();
        let culls = max_entries <= INLINE_CULL_ENTRIES || cull_frequency == 0;
        culls && self.entries() >= max_entries.max(QUICK_CULL_ENTRIES)
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        let now = self.clock.now();
        // Copied before anything is locked.
        let new = match change {
            Change::Store { value, codec, expires_at, soft } if !passed(expires_at, now) => {
                let max_bytes = self.limits.get().max_bytes;
                if entry_bytes(key, value.len()) > max_bytes {
                    let why = format!("{} bytes of at most {max_bytes}", value.len());
                    return Err(Error::new(ErrorKind::ValueTooLarge, "store")
                        .with_key(key)
                        .with_source(why));
                }
                Some(Content { value: Bytes::copy_from_slice(value), codec, expires_at, soft })
            }
            _ => None,
        };
        let mut garbage = Garbage::default();
        let mut state = self.lock();
        state.reap(key, now, &mut garbage);
        let current = state.table.token(key);
        let token = match (change.decide(condition, current, |end| passed(end, now)), new) {
            (Decided::Return(outcome), _) => return Ok(outcome),
            (Decided::Put { .. }, Some(new)) => self.store(&mut state, key, new, now, &mut garbage),
            (Decided::Put { expires_at }, None) => {
                state.last_token += 1;
                let token = state.last_token;
                state.table.touch(key, expires_at, token);
                Some(token)
            }
            (Decided::Remove, _) => {
                garbage.extend(state.table.remove(key));
                None
            }
        };
        state.stats.commits += 1;
        drop(state);
        Ok(Outcome::Done { token, existed: current.is_some() })
    }

    fn clear(&self) -> Result<()> {
        let mut garbage = Garbage::default();
        let mut state = self.lock();
        garbage.take_all(&mut state.table);
        state.stats.commits += 1;
        drop(state);
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.entries())
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        // An entry keeps its slot for as long as it stays, so slots in order give each exactly
        // once.
        let now = self.clock.now();
        let state = self.lock();
        let first = usize::try_from(cursor).unwrap_or(usize::MAX).min(state.table.slots());
        let end = first.saturating_add(SLOTS_PER_HOLD).min(state.table.slots());
        let batch: Vec<(Arc<str>, Stored)> = (first..end)
            .filter_map(|slot| state.table.at(slot))
            .filter(|(_, item)| !passed(item.expires_at, now))
            .collect();
        let more = end < state.table.slots();
        drop(state);
        for (key, stored) in &batch {
            visit(key, stored.item());
        }
        Ok(more.then_some(end as u64))
    }

    fn maintain(&self) -> Result<()> {
        let now = self.clock.now();
        let mut left = self.lock().table.slots();
        while left > 0 {
            let mut garbage = Garbage::default();
            let slots = left.min(SLOTS_PER_HOLD);
            self.lock().sweep(slots, now, &mut garbage);
            left -= slots;
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits.get()
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        let mut garbage = Garbage::default();
        let mut state = self.lock();
        let counts = self.limits.change(new);
        let evicted = state.evict_while(|table| table.len() > counts.max_entries, &mut garbage);
        self.count_evicted(&mut state, evicted, "max_entries");
        self.keep_bytes(&mut state, &mut garbage);
        drop(state);
        Ok(counts)
    }

    fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            entries: state.table.len(),
            bytes: state.table.bytes(),
            hot_bytes: state.table.decoded_bytes(),
            ..state.stats
        }
    }
}

#[cfg(test)]
mod tests;
