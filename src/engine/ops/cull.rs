//! The culler: keeps the number of entries within `max_entries`.
//!
//! Which entries go is a pure function of their ages ([`choice`](crate::engine::eviction::policy)); the rest is walking the hints
//! twice. Up to 10,000 entries the inserting call culls, with exact counts. Above, the background does, from a mark a little
//! below the bound; an insert that reaches the bound all the same makes room for itself and a few others.

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

/// How long after a pass that had to leave something the next one comes for it. It has to wait for whoever is stopped, as the
/// one before did.
pub(crate) const COME_BACK: Duration = Duration::from_secs(10);

impl Engine {
    /// From how many entries on the background culls.
    fn crowded_at(&self) -> u64 {
        self.max_entries() - (self.max_entries() / 256).max(1)
    }

    /// Wakes the culler if the cache is nearly full and the culling is its business.
    pub(crate) fn ring_if_crowded(&self) {
        if !self.culls_inline() && self.index.count() >= self.crowded_at() {
            self.bell.ring();
        }
    }

    /// Makes room for one more entry, at least.
    pub(crate) fn make_room(&self) -> Result<()> {
        self.tell_once(&self.told_of_entries, "max_entries");
        if !self.culls_inline() {
            self.bell.ring();
            self.evict_few();
            return Ok(());
        }
        let culling = self.culling.enter();
        let turn =
            culling.as_ref().map(|_| self.culling.share_timeout(self.index.acquire(Role::Cull)));
        let _turn = match turn {
            Some(Ok(turn)) => turn,
            Some(Err(e)) if e.kind() != ErrorKind::Busy => return Err(e),
            // Who culls does not come to its end. Without it the count of what goes is not exact.
            Some(Err(_)) | None => {
                self.evict_few();
                return Ok(());
            }
        };
        // Somebody else may have made room while this call waited.
        if self.index.count() >= self.max_entries() {
            self.cull()?;
        }
        Ok(())
    }

    /// Culls if the cache is nearly full and the culling is the background's business.
    pub(crate) fn cull_if_crowded(&self) -> Result<()> {
        if self.culls_inline() || self.index.count() < self.crowded_at() {
            return Ok(());
        }
        self.tell_once(&self.told_of_entries, "max_entries");
        let Some(_culling) = self.culling.try_enter() else { return Ok(()) };
        let Some(_turn) = self.index.try_acquire(Role::Cull)? else { return Ok(()) };
        if self.index.count() >= self.crowded_at() { self.cull() } else { Ok(()) }
    }

    /// Removes one in `cull_frequency` entries, or all for 0. Expired ones go first and count.
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

    /// Removes all entries that are expired or of an older generation, and says how many counted. What is in a chain that
    /// somebody holds for long stays; a later pass comes for it.
    pub(crate) fn reap_all(&self) -> u64 {
        let (now, generation) = (self.options.clock.now(), self.index.generation());
        let (mut reaped, mut next, mut left) = (0, u64::MAX, Left::default());
        // A commit notes its expiry after its hint is there, so either this pass or the note sees to it.
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
            self.note_expiry(now.checked_add(COME_BACK));
        } else {
            self.index.set_swept(generation);
        }
        self.passed_over.fetch_max(generation, Ordering::AcqRel);
        reaped
    }

    /// Whether what a clear left behind has been swept, or this process has tried to. Whoever stands still with a chain locked
    /// does not have each call for room try again.
    pub(crate) fn has_swept(&self) -> bool {
        let generation = self.index.generation();
        self.index.is_swept(generation) || self.passed_over.load(Ordering::Acquire) >= generation
    }

    /// Notes that an entry expires then.
    pub(crate) fn note_expiry(&self, expires_at: Expiry) {
        if let Some(end) = expires_at {
            self.index.note_expiry(end.as_millis());
        }
    }

    /// Whether an entry may have expired that was not reaped.
    pub(crate) fn has_expired_entries(&self) -> bool {
        self.options.clock.now().as_millis() >= self.index.next_expiry()
    }

    /// Evicts `count` entries, those that the policy chooses. Says how many it did.
    pub(crate) fn evict_coldest(&self, count: u64) -> u64 {
        self.evict_coldest_of(0..self.index.buckets_in_use(), |_| count)
    }

    /// Evicts as many of the entries in `buckets` as `count` says of how many there are.
    fn evict_coldest_of(&self, buckets: Range<u32>, count: impl FnOnce(u64) -> u64) -> u64 {
        let now = self.index.recency();
        let mut ages = Ages::new(self.options.eviction);
        self.index
            .entries(buckets.clone())
            .for_each(|(slot, _)| ages.add(self.hints.get(slot), now));
        let seen = ages.total();
        // The part of the share that falls to these buckets.
        let share = self.ghosts.as_ref().map_or(0, |ghosts| ghosts.share_of(seen));
        let choice = ages.choose(count(seen), share);
        let (mut evicted, mut left) = (0, Left::default());
        // Of one age, what was written first goes first.
        let mut at_the_edge = [const { Vec::new() }; 2];
        for (slot, word) in self.index.entries(buckets) {
            let hint = self.hints.get(slot);
            match choice.fate(hint, now) {
                Fate::Stays => {}
                Fate::Goes => evicted += u64::from(self.give_up(slot, word, &mut left)),
                Fate::AtTheEdge(edge) => {
                    at_the_edge[edge].push((Reverse(hint.age(now)), word.age(), slot, word));
                }
                Fate::Becomes(changed) => self.hints.replace(slot, hint, changed),
            }
        }
        for (mut candidates, going) in at_the_edge.into_iter().zip(choice.at_the_edge()) {
            candidates.sort_unstable();
            for (.., slot, word) in candidates.into_iter().take(going as usize) {
                evicted += u64::from(self.give_up(slot, word, &mut left));
            }
        }
        self.counters.add(Counter::Evicted, evicted);
        evicted
    }

    /// Evicts an entry that the policy chose. Says whether it was still there.
    fn give_up(&self, slot: Slot, word: Word, left: &mut Left) -> bool {
        if let Some(ghosts) = &self.ghosts {
            ghosts
                .remember(self.index.identity_of_slot(slot, word), self.hints.get(slot).is_main());
        }
        self.remove_in_pass(slot, word, true, left)
    }

    /// Evicts the coldest of the entries in a few buckets, the next ones each time. If there are none in any, the
    /// count is wrong.
    fn evict_few(&self) {
        /// Enough that the coldest of them are nearly as cold as the coldest of all.
        const BUCKETS: u32 = 256;
        /// The part of them that goes: so little that they are soon as many again, so much that it seldom happens.
        const PART: u64 = 64;
        let buckets = self.index.buckets_in_use();
        for _ in 0..=buckets / BUCKETS {
            let start = self.next_few.fetch_add(BUCKETS, Ordering::Relaxed) % buckets;
            let few = start..start.saturating_add(BUCKETS).min(buckets);
            // Where somebody else was faster there is room as well.
            if self.evict_coldest_of(few, |seen| (seen / PART).max(1)) > 0
                || self.index.count() < self.max_entries()
            {
                return;
            }
        }
        self.count_again();
    }
}
