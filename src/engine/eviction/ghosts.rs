//! The ghost queue of [`Eviction::Adaptive`](crate::options::Eviction): remembers evicted entries,
//! and adapts the probation share, which is how many entries may be on probation.
//!
//! A ghost is the fingerprint of an evicted entry, its queue (probation or main), and a stamp: how
//! many entries were evicted from that queue before it. The age of a ghost is the number of
//! evictions from its queue since then. When an entry is inserted whose ghost is not older than
//! half of `max_entries`, it enters the main queue at once. If the ghost is not older than a fifth,
//! the entry would still be there if its queue had been that much longer. So the share changes by
//! one in favour of that queue.
//!
//! The queue is in the memory of this process only and is lost at the close: 6 bytes for each of
//! `max_entries`, at most 32 MiB. It is approximate: of two concurrent changes, one may be lost.

use std::sync::atomic::{AtomicU64, Ordering};

/// The cells in which a fingerprint can be: a cache line.
const WAYS: usize = 8;
const MOST_SETS: u64 = (32 << 20) / (WAYS as u64 * 8);
const FINGERPRINT_BITS: u32 = 31;
const STAMP_BITS: u32 = 32;

pub(crate) struct GhostQueue {
    max_entries: u64,
    /// The highest age at which a ghost admits its entry to the main queue.
    remembered: u64,
    /// `fingerprint (31) | was in main (1) | stamp (32)`; 0 for none.
    ghosts: Box<[AtomicU64]>,
    /// How many entries were evicted from probation and from main.
    evicted: [AtomicU64; 2],
    /// How many of `max_entries` entries may be on probation.
    share: AtomicU64,
}

impl GhostQueue {
    pub(crate) fn new(max_entries: u64) -> Self {
        // One and a half times as many cells as ghosts, because the sets do not fill evenly.
        let sets = (max_entries * 3 / 4).div_ceil(WAYS as u64).clamp(1, MOST_SETS);
        let cells = sets as usize * WAYS;
        Self {
            max_entries,
            remembered: (max_entries / 2).min(cells as u64 * 2 / 3),
            ghosts: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            evicted: [AtomicU64::new(0), AtomicU64::new(0)],
            share: AtomicU64::new(max_entries / 10),
        }
    }

    /// How many of `entries` may be on probation.
    pub(crate) fn share_of(&self, entries: u64) -> u64 {
        self.share() * entries / self.max_entries
    }

    fn share(&self) -> u64 {
        self.share.load(Ordering::Relaxed)
    }

    fn set(&self, mixed: u64) -> &[AtomicU64] {
        let sets = (self.ghosts.len() / WAYS) as u64;
        let set = ((u128::from(mixed) * u128::from(sets)) >> 64) as usize;
        &self.ghosts[set * WAYS..][..WAYS]
    }

    /// The age of a ghost: how many entries were evicted from its queue since then.
    fn age(&self, ghost: u64) -> u64 {
        let evicted = self.evicted[(ghost >> STAMP_BITS & 1) as usize].load(Ordering::Relaxed);
        u64::from((evicted as u32).wrapping_sub(ghost as u32))
    }

    /// Remembers an evicted entry, in place of the oldest ghost of its set. `identity` is the
    /// argument of a later [`readmits`](GhostQueue::readmits).
    pub(crate) fn remember(&self, identity: u64, was_main: bool) {
        let mixed = mix(identity);
        let stamp = self.evicted[usize::from(was_main)].fetch_add(1, Ordering::Relaxed) as u32;
        let ghost = fingerprint(mixed) << (STAMP_BITS + 1)
            | u64::from(was_main) << STAMP_BITS
            | u64::from(stamp);
        let age_or_free = |cell: &&AtomicU64| match cell.load(Ordering::Relaxed) {
            0 => u64::MAX,
            there => self.age(there),
        };
        if let Some(cell) = self.set(mixed).iter().max_by_key(age_or_free) {
            cell.store(ghost, Ordering::Relaxed);
        }
    }

    /// Whether a new entry was evicted not long ago, so that it enters the main queue. Adapts the
    /// share, and removes the ghost.
    pub(crate) fn readmits(&self, identity: u64) -> bool {
        let mixed = mix(identity);
        let is_same = |ghost: u64| ghost >> (STAMP_BITS + 1) == fingerprint(mixed);
        let found = self.set(mixed).iter().find_map(|cell| {
            let ghost = cell.load(Ordering::Relaxed);
            is_same(ghost).then_some((cell, ghost))
        });
        let Some((cell, ghost)) = found else { return false };
        cell.store(0, Ordering::Relaxed);
        let age = self.age(ghost);
        if age <= self.max_entries / 5 {
            self.move_share(ghost >> STAMP_BITS & 1 == 1);
        }
        age <= self.remembered
    }

    fn move_share(&self, down: bool) {
        let share = self.share();
        let most = self.max_entries / 10 * 9;
        let moved = if down { share.saturating_sub(1) } else { (share + 1).min(most.max(1)) };
        self.share.store(moved, Ordering::Relaxed);
    }
}

/// Never 0, which means no ghost.
fn fingerprint(mixed: u64) -> u64 {
    (mixed & ((1 << FINGERPRINT_BITS) - 1)).max(1)
}

fn mix(identity: u64) -> u64 {
    let x = identity.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_entry_is_readmitted_once_and_not_forever() {
        let queue = GhostQueue::new(1000);
        assert!(!queue.readmits(7));
        queue.remember(7, false);
        assert!(queue.readmits(7) && !queue.readmits(7));
        queue.remember(7, false);
        (1000..1600).for_each(|other| queue.remember(other, false));
        assert!(!queue.readmits(7));
        let readmitted = (1000..1600).filter(|other| queue.readmits(*other)).count();
        assert!((450..=501).contains(&readmitted), "{readmitted}");
    }

    #[test]
    fn the_share_moves_towards_the_queue_with_hits_within_limits() {
        let queue = GhostQueue::new(1000);
        let again = |was_main| {
            queue.remember(7, was_main);
            queue.readmits(7);
            queue.share()
        };
        assert_eq!(again(false), 101);
        assert_eq!(again(true), 100);
        (0..2000).for_each(|_| _ = again(true));
        assert_eq!(queue.share(), 0);
        (0..2000).for_each(|_| _ = again(false));
        assert_eq!(queue.share(), 900);
    }

    #[test]
    fn an_old_ghost_does_not_move_the_share() {
        let queue = GhostQueue::new(1000);
        queue.remember(7, false);
        (1000..1300).for_each(|other| queue.remember(other, false));
        assert!(queue.readmits(7));
        assert_eq!(queue.share(), 100);
    }

    #[test]
    fn the_memory_of_ghosts_is_bounded() {
        let large: &[u64] = if cfg!(miri) { &[1_000] } else { &[1_000_000, u32::MAX as u64 - 1] };
        for max_entries in [1, 2, 100].iter().chain(large).copied() {
            let queue = GhostQueue::new(max_entries);
            let bytes = queue.ghosts.len() as u64 * 8;
            assert!(bytes <= (max_entries * 6 + 64).min(32 << 20), "{max_entries}: {bytes}");
            queue.remember(1, true);
            assert!(queue.readmits(1) || max_entries < 2);
        }
    }
}
