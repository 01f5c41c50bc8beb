//! The cull: keeps the number of entries within `max_entries`.
//!
//! A pure function of their ages selects the victims ([`policy`](crate::engine::eviction::policy));
//! the rest is two passes over the hints. Up to 10,000 entries, the inserting call culls, with
//! exact counts. Above that, the background culls, from a mark a little below the bound. An insert
//! that still reaches the bound evicts a few entries itself.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::eviction::policy::{Ages, Fate};
use crate::engine::format::word::Word;
use crate::engine::index::{Role, Slot};
use crate::engine::ops::evict::Left;
use crate::entry::Expiry;
use crate::error::{ErrorKind, Result};
use crate::options;
use crate::sys::step;

/// The delay between a pass that could not remove some entries and the next. The next pass has to
/// wait for the same stopped lock holders again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);

impl Engine {
    /// The number of entries from which the background culls.
    fn crowded_at(&self) -> u64 {
        self.max_entries() - (self.max_entries() / 256).max(1)
    }

    /// Wakes the background if the cache is nearly full and the background culls it.
    pub(crate) fn ring_if_crowded(&self) {
        if !self.culls_inline() && self.index.count() >= self.crowded_at() {
            self.bell.ring();
        }
    }

    /// Makes room for at least one more entry.
    pub(crate) fn make_room(&self) -> Result<()> {
        self.tell_once(&self.has_logged_entries, "max_entries");
        if !self.culls_inline() {
            self.bell.ring();
            self.evict_few();
            return Ok(());
        }
        let culling = self.culling.enter();
        let role =
            culling.as_ref().map(|_| self.culling.share_timeout(self.index.acquire(Role::Cull)));
        let _role = match role {
            Some(Ok(role)) => role,
            Some(Err(e)) if e.kind() != ErrorKind::Busy => return Err(e),
            // The holder of the cull role is stalled. Without the role, the number of evicted
            // entries is not exact.
            Some(Err(_)) | None => {
                self.evict_few();
                return Ok(());
            }
        };
        // Another process or thread may have made room while this call waited.
        if self.index.count() >= self.max_entries() {
            self.cull()?;
        }
        Ok(())
    }

    /// Culls if the cache is nearly full and the background culls it.
    pub(crate) fn cull_if_crowded(&self) -> Result<()> {
        if self.culls_inline() || self.index.count() < self.crowded_at() {
            return Ok(());
        }
        self.tell_once(&self.has_logged_entries, "max_entries");
        let Some(_culling) = self.culling.try_enter() else { return Ok(()) };
        let Some(_role) = self.index.try_acquire(Role::Cull)? else { return Ok(()) };
        if self.index.count() >= self.crowded_at() { self.cull() } else { Ok(()) }
    }

    /// Removes one in `cull_frequency` entries, or all of them if it is 0. Expired entries are
    /// removed first and count towards that.
    fn cull(&self) -> Result<()> {
        let Some(wanted) = options::due(self.index.count(), self.index.limits().cull_frequency)
        else {
            return self.clear();
        };
        let must_reap = self.has_expired_entries() || !self.has_swept();
        let reaped = if must_reap { self.reap_all() } else { 0 };
        if reaped < wanted && self.evict_coldest(wanted - reaped) + reaped == 0 {
            self.count_again();
        }
        Ok(())
    }

    /// Removes all entries that are expired or of an older generation. Returns how many of them
    /// were counted as entries. Entries in a chain whose lock is held for long stay; a later pass
    /// removes them.
    pub(crate) fn reap_all(&self) -> u64 {
        let (now, generation) = (self.options.clock.now(), self.index.generation());
        let (mut reaped, mut next, mut left) = (0, u64::MAX, Left::default());
        // A commit sets its hint first and notes its expiry then. So this pass sees the hint, or
        // the note asks for a later pass.
        self.index.forget_next_expiry();
        step!("reap::begun");
        for (slot, word) in self.index.entries(0..self.index.geometry().buckets) {
            let hint = self.hints.get(slot);
            if hint.is_expired(now) || hint.is_of_other(generation) {
                reaped += u64::from(self.reap(slot, word, &mut left));
            } else {
                next = next.min(hint.expiry_millis());
            }
        }
        self.index.note_expiry(next);
        if left.is_any {
            self.note_expiry(now.checked_add(RETRY_AFTER));
        } else {
            self.index.set_swept(generation);
        }
        self.passed_over.fetch_max(generation, Ordering::AcqRel);
        reaped
    }

    /// Whether the entries that a clear left behind have been swept, or this process has tried to.
    /// The latter counts so that a stopped holder of a chain lock does not make each call that
    /// needs room try again.
    pub(crate) fn has_swept(&self) -> bool {
        let generation = self.index.generation();
        self.index.is_swept(generation) || self.passed_over.load(Ordering::Acquire) >= generation
    }

    /// Notes that an entry expires at this time.
    pub(crate) fn note_expiry(&self, expires_at: Expiry) {
        if let Some(end) = expires_at {
            self.index.note_expiry(end.as_millis());
        }
    }

    /// Whether an entry may have expired that is not reaped yet.
    pub(crate) fn has_expired_entries(&self) -> bool {
        self.options.clock.now().as_millis() >= self.index.next_expiry()
    }

    /// The time until an entry may expire that is not reaped yet.
    pub(crate) fn until_next_expiry(&self) -> Duration {
        let now = self.options.clock.now().as_millis();
        Duration::from_millis(self.index.next_expiry().saturating_sub(now))
    }

    /// Evicts `count` entries that the policy selects. Returns how many it evicted.
    pub(crate) fn evict_coldest(&self, count: u64) -> u64 {
        self.evict_coldest_of(0..self.index.buckets_in_use(), |_| count)
    }

    /// Evicts entries in `buckets`: `count` computes how many, from the number of entries there.
    fn evict_coldest_of(&self, buckets: Range<u32>, count: impl FnOnce(u64) -> u64) -> u64 {
        let now = self.index.recency();
        let mut ages = Ages::new(self.options.eviction);
        self.index
            .entries(buckets.clone())
            .for_each(|(slot, _)| ages.add(self.hints.get(slot), now));
        let seen = ages.total();
        // The part of the probation share that falls to these buckets.
        let share = self.ghosts.as_ref().map_or(0, |ghosts| ghosts.share_of(seen));
        let choice = ages.choose(count(seen), share);
        let (mut evicted, mut left) = (0, Left::default());
        // Of equal ages, the entry that was written first is evicted first.
        let mut at_the_edge = [const { Vec::new() }; 2];
        for (slot, word) in self.index.entries(buckets) {
            let hint = self.hints.get(slot);
            match choice.fate(hint, now) {
                Fate::Kept => {}
                Fate::Evicted => evicted += u64::from(self.evict_selected(slot, word, &mut left)),
                Fate::AtTheEdge(edge) => {
                    at_the_edge[edge].push((Reverse(hint.age(now)), word.age(), slot, word));
                }
                Fate::Changed(changed) => self.hints.replace(slot, hint, changed),
            }
        }
        for (mut candidates, going) in at_the_edge.into_iter().zip(choice.at_the_edge()) {
            candidates.sort_unstable();
            for (.., slot, word) in candidates.into_iter().take(going as usize) {
                evicted += u64::from(self.evict_selected(slot, word, &mut left));
            }
        }
        self.counters.add(Counter::Evicted, evicted);
        evicted
    }

    /// Evicts an entry that the policy selected. Returns whether it was still there.
    fn evict_selected(&self, slot: Slot, word: Word, left: &mut Left) -> bool {
        if let Some(ghosts) = &self.ghosts {
            ghosts
                .remember(self.index.identity_of_slot(slot, word), self.hints.get(slot).is_main());
        }
        self.remove_in_pass(slot, word, true, left)
    }

    /// Evicts the coldest entries of a few buckets, of the next few at each call. If no bucket has
    /// an entry, the count is wrong and is corrected.
    fn evict_few(&self) {
        /// Enough buckets that their coldest entries are nearly as cold as the coldest of all.
        const BUCKETS: u32 = 256;
        /// One in this many of their entries is evicted: few, so that the cache is soon full again;
        /// enough that this seldom runs.
        const PART: u64 = 64;
        let buckets = self.index.buckets_in_use();
        for _ in 0..=buckets / BUCKETS {
            let start = self.next_few.fetch_add(BUCKETS, Ordering::Relaxed) % buckets;
            let few = start..start.saturating_add(BUCKETS).min(buckets);
            // There is also room if another thread or process evicted entries meanwhile.
            if self.evict_coldest_of(few, |seen| (seen / PART).max(1)) > 0
                || self.index.count() < self.max_entries()
            {
                return;
            }
        }
        self.count_again();
    }
}
