//! Overflow buckets: which of them are in use, and how they are taken and given back.

use super::Index;
use super::bucket::{Bucket, Control, SLOTS};
use super::slot::Slot;
use crate::engine::format::index_header::at;
use crate::engine::format::word::Word;
use crate::sys::atomic::Ordering;

impl Index {
    /// How many buckets were ever in use, from the first on.
    pub(crate) fn buckets_in_use(&self) -> u32 {
        let next = self.words()[at::NEXT_OVERFLOW].load(Ordering::Relaxed);
        u32::try_from(next)
            .unwrap_or(u32::MAX)
            .clamp(self.geometry.primaries, self.geometry.buckets)
    }

    /// An overflow bucket that no chain uses, empty: one that was given back, or a new one.
    pub(super) fn take_overflow(&self) -> Option<u32> {
        let free = &self.words()[at::FREE_OVERFLOW];
        let mut head = free.load(Ordering::Acquire);
        // The upper half of the head counts changes, so that a head which was taken and put back in between is
        // not mistaken for one that stayed.
        while let Some(number) = (head as u32).checked_sub(1) {
            let Some(bucket) = self.bucket(number).filter(|_| number >= self.geometry.primaries)
            else {
                break;
            };
            let next = u64::from(bucket.control().primary());
            let changed = (head >> 32).wrapping_add(1) << 32 | next;
            match free.compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire) {
                // The list is not under any check: what holds something was not given back.
                Ok(_) if bucket.is_empty() => return Some(number),
                Ok(_) => head = changed,
                Err(now) => head = now,
            }
        }
        let bump = &self.words()[at::NEXT_OVERFLOW];
        let overflow = u64::from(self.geometry.primaries)..u64::from(self.geometry.buckets);
        if !overflow.contains(&bump.load(Ordering::Relaxed)) {
            return None;
        }
        let number = bump.fetch_add(1, Ordering::AcqRel);
        overflow.contains(&number).then_some(number as u32)
    }

    /// Puts an empty, unlinked overflow bucket on the free list. Its control word holds the next one's number
    /// plus one; the check of seven empty words is 0.
    pub(super) fn give_back_overflow(&self, number: u32, bucket: Bucket<'_>) {
        let free = &self.words()[at::FREE_OVERFLOW];
        let mut head = free.load(Ordering::Acquire);
        loop {
            bucket.set_control(Control::of_overflow(0, head as u32));
            let changed = (head >> 32).wrapping_add(1) << 32 | u64::from(number + 1);
            match free.compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Gives back the overflow buckets that are in no chain and on no list, as whoever was about to link or to list them died.
    /// What one of them holds is a copy of a word that is in its chain. Says whether it could see them: nobody may change
    /// anything meanwhile. One at a time does this.
    pub(crate) fn give_back_lost(&self) -> bool {
        let Some(before) = self.unlocks() else { return false };
        let lost = self.lost_overflow();
        if self.unlocks() != Some(before) {
            return false;
        }
        for number in lost {
            let first = Slot::new(number, SLOTS.start);
            let (Some(bucket), Ok(locked)) = (self.bucket(number), self.lock_slot(first)) else {
                continue;
            };
            // Under the lock that whoever has met the copy would take to evict it.
            SLOTS.for_each(|slot| locked.set(Slot::new(number, slot), Word::EMPTY));
            self.give_back_overflow(number, bucket);
        }
        true
    }

    /// The overflow buckets that nothing leads to, if nobody changes anything meanwhile.
    fn lost_overflow(&self) -> Vec<u32> {
        let primaries = self.geometry.primaries;
        let mut is_led_to = vec![false; (self.buckets_in_use() - primaries) as usize];
        let mut note = |number: u32| {
            let place = number.checked_sub(primaries).and_then(|at| is_led_to.get_mut(at as usize));
            place.is_some_and(|is| !std::mem::replace(is, true))
        };
        for mut bucket in (0..primaries).filter_map(|primary| self.bucket(primary)) {
            while let Some((_, next)) = self.next_of(bucket).filter(|(number, _)| note(*number)) {
                bucket = next;
            }
        }
        let mut listed = self.words()[at::FREE_OVERFLOW].load(Ordering::Acquire) as u32;
        while let Some(number) = listed.checked_sub(1).filter(|number| note(*number)) {
            listed = self.bucket(number).map_or(0, |bucket| bucket.control().primary());
        }
        let lost = is_led_to.iter().zip(primaries..).filter(|(is, _)| !**is);
        lost.map(|(_, number)| number).collect()
    }
}
