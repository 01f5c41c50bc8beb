//! What [`Eviction::Adaptive`](crate::options::Eviction) remembers of entries that it gave up, and what it learns when
//! they are asked for again: how many entries may be on trial.
//!
//! A ghost is the fingerprint of an entry that was given up, with how many others of its kind were before it. A new
//! entry whose ghost is among the last half `max_entries` is proven at once. If the ghost is among the last fifth, the
//! entry would still be there had its kind had that much more room, so the share moves by one in its favour.
//!
//! In the memory of this process alone: 6 bytes for each of `max_entries`, at most 32 MiB, and forgotten at the end.
//! A guide and no promise: what two threads do at once may be lost.

use std::sync::atomic::{AtomicU64, Ordering};

/// Places that a fingerprint may be in: a cache line of them.
const WAYS: usize = 8;
const MOST_SETS: u64 = (32 << 20) / (WAYS as u64 * 8);
const FINGERPRINT_BITS: u32 = 31;
const STAMP_BITS: u32 = 32;

pub(crate) struct GhostQueue {
    max_entries: u64,
    /// How many ghosts of each kind count.
    remembered: u64,
    /// `fingerprint (31) | was proven (1) | stamp (32)`; 0 for none.
    ghosts: Box<[AtomicU64]>,
    /// How many entries were given up, on trial and proven.
    given_up: [AtomicU64; 2],
    share: AtomicU64,
}

impl GhostQueue {
    pub(crate) fn new(max_entries: u64) -> Self {
        // Half as many places again as ghosts, since they do not fill all sets alike.
        let sets = (max_entries * 3 / 4).div_ceil(WAYS as u64).clamp(1, MOST_SETS);
        let places = sets as usize * WAYS;
        Self {
            max_entries,
            remembered: (max_entries / 2).min(places as u64 * 2 / 3),
            ghosts: (0..places).map(|_| AtomicU64::new(0)).collect(),
            given_up: [AtomicU64::new(0), AtomicU64::new(0)],
            share: AtomicU64::new(max_entries / 10),
        }
    }

    /// How many of so many entries may be on trial.
    pub(crate) fn share_of(&self, entries: u64) -> u64 {
        self.share() * entries / self.max_entries
    }

    /// How many entries may be on trial, of `max_entries`.
    fn share(&self) -> u64 {
        self.share.load(Ordering::Relaxed)
    }

    fn set(&self, mixed: u64) -> &[AtomicU64] {
        let sets = (self.ghosts.len() / WAYS) as u64;
        let set = ((u128::from(mixed) * u128::from(sets)) >> 64) as usize;
        &self.ghosts[set * WAYS..][..WAYS]
    }

    /// How many of its kind were given up since a ghost was.
    fn age(&self, ghost: u64) -> u64 {
        let given_up = self.given_up[(ghost >> STAMP_BITS & 1) as usize].load(Ordering::Relaxed);
        u64::from((given_up as u32).wrapping_sub(ghost as u32))
    }

    /// Remembers that an entry was given up. `identity` is what [`readmits`](GhostQueue::readmits) will be asked about.
    pub(crate) fn give_up(&self, identity: u64, was_proven: bool) {
        let mixed = mix(identity);
        let stamp = self.given_up[usize::from(was_proven)].fetch_add(1, Ordering::Relaxed) as u32;
        let ghost = fingerprint(mixed) << (STAMP_BITS + 1)
            | u64::from(was_proven) << STAMP_BITS
            | u64::from(stamp);
        let of_least_use = |place: &&AtomicU64| match place.load(Ordering::Relaxed) {
            0 => u64::MAX,
            there => self.age(there),
        };
        if let Some(place) = self.set(mixed).iter().max_by_key(of_least_use) {
            place.store(ghost, Ordering::Relaxed);
        }
    }

    /// Whether a new entry is one that was given up not long ago. Learns from it, and forgets it.
    pub(crate) fn readmits(&self, identity: u64) -> bool {
        let mixed = mix(identity);
        let is_same = |ghost: u64| ghost >> (STAMP_BITS + 1) == fingerprint(mixed);
        let found = self.set(mixed).iter().find_map(|place| {
            let ghost = place.load(Ordering::Relaxed);
            is_same(ghost).then_some((place, ghost))
        });
        let Some((place, ghost)) = found else { return false };
        place.store(0, Ordering::Relaxed);
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

/// Never 0, which is for no ghost at all.
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
    fn what_was_given_up_is_readmitted_once_and_not_for_ever() {
        let queue = GhostQueue::new(1000);
        assert!(!queue.readmits(7));
        queue.give_up(7, false);
        assert!(queue.readmits(7) && !queue.readmits(7));
        queue.give_up(7, false);
        (1000..1600).for_each(|other| queue.give_up(other, false));
        assert!(!queue.readmits(7));
        let readmitted = (1000..1600).filter(|other| queue.readmits(*other)).count();
        assert!((450..=501).contains(&readmitted), "{readmitted}");
    }

    #[test]
    fn the_share_moves_towards_what_would_have_paid_and_stays_within_its_limits() {
        let queue = GhostQueue::new(1000);
        let again = |was_proven| {
            queue.give_up(7, was_proven);
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
    fn a_ghost_that_more_room_would_not_have_saved_moves_nothing() {
        let queue = GhostQueue::new(1000);
        queue.give_up(7, false);
        (1000..1300).for_each(|other| queue.give_up(other, false));
        assert!(queue.readmits(7));
        assert_eq!(queue.share(), 100);
    }

    #[test]
    fn its_memory_is_bounded() {
        let large: &[u64] = if cfg!(miri) { &[1_000] } else { &[1_000_000, u32::MAX as u64 - 1] };
        for max_entries in [1, 2, 100].iter().chain(large).copied() {
            let queue = GhostQueue::new(max_entries);
            let bytes = queue.ghosts.len() as u64 * 8;
            assert!(bytes <= (max_entries * 6 + 64).min(32 << 20), "{max_entries}: {bytes}");
            queue.give_up(1, true);
            assert!(queue.readmits(1) || max_entries < 2);
        }
    }
}
