//! Hints: for each slot of the index, how recently its entry was used, when it expires, of which generation it is,
//! and what [`Eviction::Adaptive`](crate::options::Eviction) notes of its uses. A file mapped beside the index, never synced, never believed: what a hint suggests is looked up in the
//! record before anything is removed for it.
//!
//! One word a slot: `expiry in seconds, rounded up (32) | generation, low bits (8) | proven | uses (2) | recency tick
//! (21)`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::format::geometry::Geometry;
use crate::engine::index::Slot;
use crate::entry::Expiry;
use crate::sys::map::Map;
use crate::sys::storage::{File, HUGE_PIECES};
use crate::time::Timestamp;

const TICK_BITS: u32 = 21;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;
/// The uses are counted up to this.
pub(crate) const MOST_USES: u8 = 3;
const ONE_USE: u64 = 1 << TICK_BITS;
const USES: u64 = MOST_USES as u64 * ONE_USE;
const MAIN: u64 = USES + ONE_USE;
const GENERATION_SHIFT: u32 = 24;
const NEVER: u32 = u32::MAX;

/// A hint as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    pub(crate) fn new(expires_at: Expiry, generation: u32, tick: u32) -> Self {
        let seconds = expires_at.map_or(NEVER, |t| {
            u32::try_from(t.as_millis().div_ceil(1000)).unwrap_or(NEVER - 1).min(NEVER - 1)
        });
        let generation = u64::from(generation as u8) << GENERATION_SHIFT;
        Self(u64::from(seconds) << 32 | generation | u64::from(tick & TICK_MASK))
    }

    /// The same, stamped with `tick`.
    pub(crate) fn stamped(self, tick: u32) -> Self {
        Self(self.0 & !u64::from(TICK_MASK) | u64::from(tick & TICK_MASK))
    }

    /// The same with one more use, if there is room to count it.
    fn used_once_more(self) -> Self {
        Self(if self.uses() < MOST_USES { self.0 + ONE_USE } else { self.0 })
    }

    /// The same for an entry that is proven, with so many uses to its credit.
    pub(crate) fn in_main(self, uses: u8) -> Self {
        let uses = u64::from(uses.min(MOST_USES)) * ONE_USE;
        Self(self.0 & !USES | MAIN | uses)
    }

    /// The same, with the uses of the entry that `before` was for, and one more.
    pub(crate) fn again(self, before: Self) -> Self {
        Self(self.0 | before.0 & (USES | MAIN)).used_once_more()
    }

    /// How often the entry was used since it came, or was last looked at by the culler; 3 at most.
    pub(crate) fn uses(self) -> u8 {
        (self.0 >> TICK_BITS) as u8 & MOST_USES
    }

    /// Whether the entry is one that was used again and again.
    pub(crate) fn is_main(self) -> bool {
        self.0 & MAIN != 0
    }

    /// How many ticks ago the entry was used. 0 if that was after `now`, as it may be where the clock was read before
    /// the hint; so what is nearly as old as the clock can tell is as good as new, and no entry gets that old.
    pub(crate) fn age(self, now: u32) -> u32 {
        const LATER: u32 = TICK_MASK - TICK_MASK / 8;
        let age = now.wrapping_sub(self.0 as u32) & TICK_MASK;
        if age > LATER { 0 } else { age }
    }

    /// The clock's tick when the entry was used, as far as it is kept.
    pub(crate) fn tick(self) -> u32 {
        self.0 as u32 & TICK_MASK
    }

    /// When the entry seems to expire, in milliseconds since 1970, at most a second late; the maximum for never.
    pub(crate) fn expiry_millis(self) -> u64 {
        let seconds = (self.0 >> 32) as u32;
        if seconds == NEVER { u64::MAX } else { u64::from(seconds) * 1000 }
    }

    /// Whether the entry seems to have expired.
    pub(crate) fn is_expired(self, now: Timestamp) -> bool {
        self.expiry_millis() <= now.as_millis()
    }

    /// Whether the entry seems to be of another generation.
    pub(crate) fn is_of_other(self, generation: u32) -> bool {
        (self.0 >> GENERATION_SHIFT) as u8 != generation as u8
    }
}

/// An onlooker has none: a map that no slot is in.
pub(crate) struct Hints(Map);

impl Hints {
    pub(crate) fn create(file: &File, geometry: Geometry) -> io::Result<Self> {
        file.reset(geometry.hint_bytes(), HUGE_PIECES)?;
        Map::new(file, geometry.hint_bytes() as usize).map(Self)
    }

    pub(crate) fn open(file: &File, geometry: Geometry) -> io::Result<Option<Self>> {
        if file.len()? != geometry.hint_bytes() {
            return Ok(None);
        }
        // A copy may have holes, and a store into one can fail.
        file.allocate(geometry.hint_bytes())?;
        Map::new(file, geometry.hint_bytes() as usize).map(|map| Some(Self(map)))
    }

    /// Of no slot: what is noted is forgotten.
    pub(crate) fn none() -> io::Result<Self> {
        // The first word of a bucket is no slot's.
        Map::anonymous(8).map(Self)
    }

    fn word(&self, slot: Slot) -> Option<&AtomicU64> {
        self.0.words().get(slot.number())
    }

    /// Fetches the hints of a bucket ahead of their use.
    pub(crate) fn prefetch(&self, bucket: u32) {
        self.0.prefetch(bucket as usize * crate::engine::format::index_header::LINE * 8);
    }

    pub(crate) fn get(&self, slot: Slot) -> Hint {
        Hint(self.word(slot).map_or(0, |w| w.load(Ordering::Relaxed)))
    }

    pub(crate) fn set(&self, slot: Slot, hint: Hint) {
        if let Some(word) = self.word(slot) {
            word.store(hint.0, Ordering::Relaxed);
        }
    }

    /// Replaces the hint in `slot` if it is still `seen`.
    pub(crate) fn replace(&self, slot: Slot, seen: Hint, hint: Hint) {
        if let Some(word) = self.word(slot) {
            let _ = word.compare_exchange(seen.0, hint.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Notes that the entry in `slot` was used at `tick`, and counts the use if `counted`. Writes nothing if all
    /// that was noted already.
    pub(crate) fn touch(&self, slot: Slot, tick: u32, counted: bool) {
        let seen = self.get(slot);
        let mut used = seen.stamped(tick);
        if counted {
            used = used.used_once_more();
        }
        if used != seen {
            // A writer who changed the hint meanwhile stamped it too.
            self.replace(slot, seen, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_keeps_its_parts_apart() {
        let hint = Hint::new(Some(Timestamp::from_millis(5001)), 0x1ff, 0x0312_3456);
        assert_eq!(hint.age(0x12_3458), 2);
        assert!(!hint.is_of_other(0xff) && hint.is_of_other(0));
        assert!(
            !hint.is_expired(Timestamp::from_millis(5999))
                && hint.is_expired(Timestamp::from_millis(6000))
        );
        assert!(!Hint::new(None, 0, 0).is_expired(Timestamp::MAX));
    }

    #[test]
    fn uses_are_counted_beside_the_rest() {
        let fresh = Hint::new(Some(Timestamp::from_millis(5001)), 0xff, 7);
        assert_eq!((fresh.uses(), fresh.is_main()), (0, false));
        let used = (0..5).fold(fresh, |hint, _| hint.used_once_more());
        assert_eq!((used.uses(), used.is_main(), used.age(9)), (MOST_USES, false, 2));
        let proven = used.in_main(1).stamped(8);
        assert_eq!((proven.uses(), proven.is_main(), proven.age(9)), (1, true, 1));
        assert!(!proven.is_of_other(0xff) && proven.expiry_millis() == 6000);
        let again = Hint::new(None, 3, 12).again(proven);
        assert_eq!((again.uses(), again.is_main(), again.age(12)), (2, true, 0));
        assert!(!again.is_of_other(3));
    }

    #[test]
    fn the_recency_clock_may_wrap() {
        assert_eq!(Hint::new(None, 0, TICK_MASK).age(1), 2);
        assert_eq!(Hint::new(None, 0, 0).age(TICK_MASK / 2), TICK_MASK / 2);
    }

    #[test]
    fn what_was_used_since_the_clock_was_read_is_new() {
        assert_eq!(Hint::new(None, 0, 107).age(100), 0);
        assert_eq!(Hint::new(None, 0, 3).age(TICK_MASK - 1), 0);
    }
}
