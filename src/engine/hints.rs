//! Hints: for each slot of the index, how recently its entry was used, when it expires, and of which generation
//! it is. A file mapped beside the index, never synced, never believed: what a hint suggests is looked up in the
//! record before anything is removed for it.
//!
//! One word a slot: `expiry in seconds, rounded up (32) | generation, low bits (8) | recency tick (24)`.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::index::{Geometry, Slot};
use crate::entry::Expiry;
use crate::sys::{file, map::Map};
use crate::time::Timestamp;

const TICK_BITS: u32 = 24;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;
const NEVER: u32 = u32::MAX;

/// A hint as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    pub(crate) fn new(expires_at: Expiry, generation: u32, tick: u32) -> Self {
        let seconds = expires_at.map_or(NEVER, |t| {
            u32::try_from(t.as_millis().div_ceil(1000)).unwrap_or(NEVER - 1).min(NEVER - 1)
        });
        Self(
            u64::from(seconds) << 32 | u64::from(generation as u8) << TICK_BITS | u64::from(tick & TICK_MASK),
        )
    }

    /// How many ticks ago the entry was used, up to half of the clock's range; what is beyond is as old as can be.
    pub(crate) fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.0 as u32) & TICK_MASK
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
        (self.0 >> TICK_BITS) as u8 != generation as u8
    }
}

pub(crate) struct Hints(Map);

impl Hints {
    pub(crate) fn create(file: &File, geometry: Geometry) -> io::Result<Self> {
        file::reset(file, geometry.hint_bytes())?;
        Map::new(file, geometry.hint_bytes() as usize).map(Self)
    }

    pub(crate) fn open(file: &File, geometry: Geometry) -> io::Result<Option<Self>> {
        if file.metadata()?.len() != geometry.hint_bytes() {
            return Ok(None);
        }
        // A copy may have holes, and a store into one can fail.
        file::allocate(file, geometry.hint_bytes())?;
        Map::new(file, geometry.hint_bytes() as usize).map(|map| Some(Self(map)))
    }

    fn word(&self, slot: Slot) -> Option<&AtomicU64> {
        self.0.words().get(slot.number())
    }

    /// Fetches the hints of a bucket ahead of their use.
    pub(crate) fn prefetch(&self, bucket: u32) {
        self.0.prefetch(bucket as usize * super::index::LINE * 8);
    }

    pub(crate) fn get(&self, slot: Slot) -> Hint {
        Hint(self.word(slot).map_or(0, |w| w.load(Ordering::Relaxed)))
    }

    pub(crate) fn set(&self, slot: Slot, hint: Hint) {
        if let Some(word) = self.word(slot) {
            word.store(hint.0, Ordering::Relaxed);
        }
    }

    /// Notes that the entry in `slot` was used at `tick`. Writes nothing if it was noted already.
    pub(crate) fn touch(&self, slot: Slot, tick: u32) {
        let Some(word) = self.word(slot) else { return };
        let seen = word.load(Ordering::Relaxed);
        if seen as u32 & TICK_MASK != tick & TICK_MASK {
            let stamped = seen & !u64::from(TICK_MASK) | u64::from(tick & TICK_MASK);
            // A writer who changed the hint meanwhile stamped it too.
            let _ = word.compare_exchange(seen, stamped, Ordering::Relaxed, Ordering::Relaxed);
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
            !hint.is_expired(Timestamp::from_millis(5999)) && hint.is_expired(Timestamp::from_millis(6000))
        );
        assert!(!Hint::new(None, 0, 0).is_expired(Timestamp::MAX));
    }

    #[test]
    fn the_recency_clock_may_wrap() {
        assert_eq!(Hint::new(None, 0, TICK_MASK).age(1), 2);
    }
}
