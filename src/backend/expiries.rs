//! Which entries of a table in memory have expired: a heap of their expiries, soonest first.
//!
//! An entry that changes leaves its old pair of expiry and slot in the heap. A pair counts only if
//! the entry in its slot still expires then. If most pairs do not count, the heap is built again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Expiry;
use crate::time::Timestamp;

/// The heap is built again if it has more than twice as many pairs as there are entries, and this
/// many more.
const SLACK: usize = 64;

#[derive(Default)]
pub(super) struct Expiries(BinaryHeap<Reverse<(Timestamp, usize)>>);

impl Expiries {
    /// Notes when the entry in `slot` expires. `of` says when the entry in a slot expires, if there
    /// is one that does; there are `entries` of them.
    pub(super) fn note(
        &mut self,
        slot: usize,
        expires_at: Expiry,
        entries: usize,
        of: impl Fn(usize) -> Expiry,
    ) {
        let Some(end) = expires_at else { return };
        if self.0.len() > 2 * entries + SLACK {
            let mut pairs = std::mem::take(&mut self.0).into_vec();
            pairs.retain(|Reverse((end, slot))| of(*slot) == Some(*end));
            pairs.sort_unstable();
            pairs.dedup();
            self.0 = pairs.into();
        }
        self.0.push(Reverse((end, slot)));
    }

    /// Takes the slot of an entry that has expired, if there is one. The caller removes the entry,
    /// or notes its expiry again.
    pub(super) fn take_expired(
        &mut self,
        now: Timestamp,
        of: impl Fn(usize) -> Expiry,
    ) -> Option<usize> {
        while let Some(Reverse((end, slot))) = self.0.peek().copied().filter(|p| p.0.0 <= now) {
            self.0.pop();
            if of(slot) == Some(end) {
                return Some(slot);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn what_expired_is_taken_soonest_first_and_once() {
        let ends = [Some(at(30)), Some(at(10)), None, Some(at(20))];
        let mut expiries = Expiries::default();
        for (slot, end) in ends.into_iter().enumerate() {
            expiries.note(slot, end, 4, |slot| ends[slot]);
        }
        let mut take = |now| expiries.take_expired(at(now), |slot| ends[slot]);
        assert_eq!([9, 20, 20, 29].map(&mut take), [None, Some(1), Some(3), None]);
        assert_eq!([30, 99].map(&mut take), [Some(0), None]);
    }

    #[test]
    fn changes_of_one_entry_do_not_pile_up() {
        let mut expiries = Expiries::default();
        for n in 0..10_000 {
            let end = Some(at(n / 2));
            expiries.note(0, end, 1, |_| end);
            assert!(expiries.0.len() <= 2 + SLACK + 1);
        }
        assert_eq!(expiries.take_expired(at(4_998), |_| Some(at(4_999))), None);
        assert_eq!(expiries.take_expired(at(4_999), |_| Some(at(4_999))), Some(0));
    }
}
