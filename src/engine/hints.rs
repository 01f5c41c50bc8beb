//! Hints: for each slot of the index, when its entry was last used, when it expires, its
//! generation, and the state of [`Eviction::Adaptive`](crate::options::Eviction).
//!
//! A mapped file beside the index. It is never synced, and a hint is never believed: before an
//! entry is removed because of its hint, its record is read.
//!
//! Each slot has a word: `expiry in seconds, rounded up (32) | generation, low bits (8) | main |
//! uses (2) | recency tick (21)`. The bit `main` says that the entry is in the main queue and not
//! on probation.

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
/// The count of uses stops here.
pub(crate) const MOST_USES: u8 = 3;
const ONE_USE: u64 = 1 << TICK_BITS;
const USES: u64 = MOST_USES as u64 * ONE_USE;
const MAIN: u64 = USES + ONE_USE;
const GENERATION_SHIFT: u32 = 24;
const NEVER: u32 = u32::MAX;

/// A hint, as read at one moment.
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

    /// The same with one more use, up to [`MOST_USES`].
    fn used_once_more(self) -> Self {
        Self(if self.uses() < MOST_USES { self.0 + ONE_USE } else { self.0 })
    }

    /// The same for an entry in the main queue with so many uses.
    pub(crate) fn in_main(self, uses: u8) -> Self {
        let uses = u64::from(uses.min(MOST_USES)) * ONE_USE;
        Self(self.0 & !USES | MAIN | uses)
    }

    /// The same with queue and uses of `before`, the hint of the replaced entry, and one more use.
    pub(crate) fn again(self, before: Self) -> Self {
        Self(self.0 | before.0 & (USES | MAIN)).used_once_more()
    }

    /// How often the entry was used since it was inserted or last examined by a cull; at most 3.
    pub(crate) fn uses(self) -> u8 {
        (self.0 >> TICK_BITS) as u8 & MOST_USES
    }

    /// Whether the entry is in the main queue.
    pub(crate) fn is_main(self) -> bool {
        self.0 & MAIN != 0
    }

    /// How many ticks before `now` the entry was used. 0 if it was used after `now`, which happens
    /// if the clock was read before the hint. Therefore the oldest eighth of the ages that the
    /// clock can tell apart counts as 0; no entry becomes that old.
    pub(crate) fn age(self, now: u32) -> u32 {
        const LATER: u32 = TICK_MASK - TICK_MASK / 8;
        let age = now.wrapping_sub(self.0 as u32) & TICK_MASK;
        if age > LATER { 0 } else { age }
    }

    /// The low bits of the recency clock when the entry was used.
    pub(crate) fn tick(self) -> u32 {
        self.0 as u32 & TICK_MASK
    }

    /// When the entry expires, according to the hint: milliseconds since 1970, at most a second too
    /// late; the maximum for never.
    pub(crate) fn expiry_millis(self) -> u64 {
        let seconds = (self.0 >> 32) as u32;
        if seconds == NEVER { u64::MAX } else { u64::from(seconds) * 1000 }
    }

    /// Whether the entry has expired, according to the hint.
    pub(crate) fn is_expired(self, now: Timestamp) -> bool {
        self.expiry_millis() <= now.as_millis()
    }

    /// Whether the entry is of another generation, according to the hint.
    pub(crate) fn is_of_other(self, generation: u32) -> bool {
        (self.0 >> GENERATION_SHIFT) as u8 != generation as u8
    }
}

/// The mapped hints. An observer has none.
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
        // The file may be a copy with holes. A store into a hole fails if the disk is full.
        file.allocate(geometry.hint_bytes())?;
        Map::new(file, geometry.hint_bytes() as usize).map(|map| Some(Self(map)))
    }

    /// Hints for no slot: every store is ignored.
    pub(crate) fn none() -> io::Result<Self> {
        // The first word of a bucket belongs to no slot.
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

    /// Notes that the entry in `slot` was used at `tick`, and counts the use if `counted`. Stores
    /// nothing if the hint does not change.
    pub(crate) fn touch(&self, slot: Slot, tick: u32, counted: bool) {
        let seen = self.get(slot);
        let mut used = seen.stamped(tick);
        if counted {
            used = used.used_once_more();
        }
        if used != seen {
            // A writer that changed the hint meanwhile has stamped it too.
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
        let main = used.in_main(1).stamped(8);
        assert_eq!((main.uses(), main.is_main(), main.age(9)), (1, true, 1));
        assert!(!main.is_of_other(0xff) && main.expiry_millis() == 6000);
        let again = Hint::new(None, 3, 12).again(main);
        assert_eq!((again.uses(), again.is_main(), again.age(12)), (2, true, 0));
        assert!(!again.is_of_other(3));
    }

    #[test]
    fn the_recency_clock_may_wrap() {
        assert_eq!(Hint::new(None, 0, TICK_MASK).age(1), 2);
        assert_eq!(Hint::new(None, 0, 0).age(TICK_MASK / 2), TICK_MASK / 2);
    }

    #[test]
    fn a_use_after_the_clock_was_read_has_age_zero() {
        assert_eq!(Hint::new(None, 0, 107).age(100), 0);
        assert_eq!(Hint::new(None, 0, 3).age(TICK_MASK - 1), 0);
    }
}
