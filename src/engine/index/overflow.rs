//! Overflow buckets: how they are allocated and freed.
//!
//! Freed buckets form a list through their control words; its head is a word of the header. If the
//! list is empty, the next bucket that was never used is taken. A process that dies between the
//! allocation and the link, or between the unlink and the list, loses the bucket;
//! [`free_lost_overflow`](Index::free_lost_overflow) finds it.

use super::Index;
use super::bucket::{Bucket, Control, SLOTS};
use super::slot::Slot;
use crate::engine::format::index_header::at;
use crate::engine::format::word::Word;
use crate::sys::atomic::Ordering;

impl Index {
    /// How many buckets were ever in use. They are the first ones of the index.
    pub(crate) fn buckets_in_use(&self) -> u32 {
        let next = self.words()[at::NEXT_OVERFLOW].load(Ordering::Relaxed);
        u32::try_from(next)
            .unwrap_or(u32::MAX)
            .clamp(self.geometry.primaries, self.geometry.buckets)
    }

    /// An empty overflow bucket that no chain uses: a freed one, or one that was never used.
    pub(super) fn allocate_overflow(&self) -> Option<u32> {
        let free = &self.words()[at::FREE_OVERFLOW];
        let mut head = free.load(Ordering::Acquire);
        // The upper half of the head counts changes, against ABA: a bucket that was taken and freed
        // again in between.
        while let Some(number) = (head as u32).checked_sub(1) {
            let Some(bucket) = self.bucket(number).filter(|_| number >= self.geometry.primaries)
            else {
                break;
            };
            let next = u64::from(bucket.control().primary());
            let changed = (head >> 32).wrapping_add(1) << 32 | next;
            match free.compare_exchange_weak(head, changed, Ordering::AcqRel, Ordering::Acquire) {
                // No check covers the list. A bucket that is not empty was never freed: damage.
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

    /// Puts an empty, unlinked overflow bucket on the free list. Its control word holds the number
    /// of the next one plus one. The check of seven empty words is 0.
    pub(super) fn free_overflow(&self, number: u32, bucket: Bucket<'_>) {
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

    /// Frees the overflow buckets that are in no chain and not on the list: a process died while it
    /// was about to link or to list them. A word in such a bucket is a copy of one in its chain.
    /// Returns whether it could find them: no chain may change meanwhile. One process at a time
    /// does this.
    pub(crate) fn free_lost_overflow(&self) -> bool {
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
            // Under the lock of the chain: a process that has read the copy takes it to evict.
            SLOTS.for_each(|slot| locked.set(Slot::new(number, slot), Word::EMPTY));
            self.free_overflow(number, bucket);
        }
        true
    }

    /// The overflow buckets that are in no chain and not on the list, if no chain changes
    /// meanwhile.
    fn lost_overflow(&self) -> Vec<u32> {
        let primaries = self.geometry.primaries;
        let mut is_reached = vec![false; (self.buckets_in_use() - primaries) as usize];
        let mut note = |number: u32| {
            let at = number.checked_sub(primaries);
            let flag = at.and_then(|at| is_reached.get_mut(at as usize));
            flag.is_some_and(|flag| !std::mem::replace(flag, true))
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
        let lost = is_reached.iter().zip(primaries..).filter(|(is, _)| !**is);
        lost.map(|(_, number)| number).collect()
    }
}
