//! A bucket: one cache line with a control word and seven entry words.
//!
//! ```text
//! control, unlocked primary:  check (32) | version (30) | lost | 0
//! control, locked primary:    owner (32) | version (30) | lost | 1
//! control, overflow bucket:   check (32) | its primary (32)
//! ```
//!
//! The version changes at each unlock. The bit `lost` is set once the chain has lost an entry that
//! no caller asked to remove and whose record may still be in the log; it is never cleared.
//!
//! The check covers the entry words. A writer that changes them recomputes it. If a reader finds a
//! wrong check in a bucket that no process has locked or changed meanwhile, something outside the
//! engine wrote there. Then no word of the bucket is valid.

use super::process_slot::Owner;
use crate::engine::format::index_header::LINE;
use crate::engine::format::word::Word;
use crate::sys::atomic::{AtomicU64, Ordering};

const LOCKED: u64 = 1;
const LOST: u64 = 2;
const VERSION_STEP: u64 = 4;
const LOW: u64 = 0xffff_ffff;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket<'a>(&'a [AtomicU64; LINE]);

/// A control word, as read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control(pub(super) u64);

impl Control {
    pub(crate) fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Whether the chain lost an entry that a recovery may bring back.
    pub(crate) fn has_lost(self) -> bool {
        self.0 & LOST != 0
    }

    /// The check of an unlocked primary or of an overflow bucket. A locked word has none.
    pub(super) fn check(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The owner of a locked word. An unlocked word has none.
    pub(super) fn owner(self) -> Owner {
        Owner::from_bits((self.0 >> 32) as u32)
    }

    /// Changes at each unlock; locking keeps it.
    pub(super) fn version(self) -> u64 {
        (self.0 & LOW) >> 1
    }

    /// The primary bucket of an overflow bucket.
    pub(super) fn primary(self) -> u32 {
        self.0 as u32
    }

    /// The same version, locked by `owner`.
    pub(super) fn locked_by(self, owner: Owner) -> Self {
        Self(u64::from(owner.bits()) << 32 | (self.0 & LOW) | LOCKED)
    }

    /// The word that replaces this locked one at the unlock.
    pub(super) fn unlocked(self, check: u32, lost: bool) -> Self {
        let low = (self.0 & LOW & !LOCKED).wrapping_add(VERSION_STEP) & LOW;
        Self(u64::from(check) << 32 | low | if lost { LOST } else { 0 })
    }

    /// The word of a primary that was never locked.
    pub(super) fn unlocked_first(check: u32) -> Self {
        Self(u64::from(check) << 32)
    }

    pub(super) fn of_overflow(check: u32, primary: u32) -> Self {
        Self(u64::from(check) << 32 | u64::from(primary))
    }
}

/// Odd factors for the check, one a word: the products do not depend on each other, so the CPU
/// computes them in parallel.
const FACTORS: [u64; LINE - 1] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
    0xff51_afd7_ed55_8ccd,
    0xc4ce_b9fe_1a85_ec53,
];

/// The slots that hold entries. The last one may hold a link instead.
pub(crate) const SLOTS: std::ops::Range<usize> = 1..LINE;
pub(super) const LAST_SLOT: usize = LINE - 1;

impl<'a> Bucket<'a> {
    pub(super) fn new(line: &'a [AtomicU64; LINE]) -> Self {
        Self(line)
    }

    pub(super) fn control(self) -> Control {
        Control(self.0[0].load(Ordering::Acquire))
    }

    pub(super) fn set_control(self, control: Control) {
        self.0[0].store(control.0, Ordering::Release);
    }

    pub(super) fn swap_control(self, from: Control, to: Control) -> bool {
        self.0[0].compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(super) fn word(self, slot: usize) -> Word {
        Word(self.0[slot].load(Ordering::Acquire))
    }

    pub(super) fn set_word(self, slot: usize, word: Word) {
        self.0[slot].store(word.0, Ordering::Release);
    }

    /// The bucket that the last slot links to, if it does.
    pub(super) fn link(self) -> Option<u32> {
        let word = self.word(LAST_SLOT);
        (word.0 != 0 && !word.is_entry()).then_some(word.0 as u32)
    }

    pub(super) fn is_empty(self) -> bool {
        SLOTS.into_iter().all(|slot| self.word(slot) == Word::EMPTY)
    }

    /// The check of the entry words as they are. If a word changes while this reads, the control
    /// word shows that the bucket was locked.
    pub(super) fn computed_check(self) -> u32 {
        let sum = FACTORS.iter().zip(&self.0[1..]).fold(0u64, |sum, (factor, word)| {
            sum.wrapping_add(word.load(Ordering::Acquire).wrapping_mul(*factor))
        });
        (sum >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_byte_in_any_word_changes_the_check() {
        let line: [AtomicU64; LINE] =
            std::array::from_fn(|i| AtomicU64::new(i as u64 * 0x0123_4567_89ab_cdef));
        let bucket = Bucket::new(&line);
        let check = bucket.computed_check();
        for slot in SLOTS {
            for byte in 0..8 {
                for flip in (1..=255u64).step_by(if cfg!(miri) { 50 } else { 1 }) {
                    let before = bucket.word(slot);
                    bucket.set_word(slot, Word(before.0 ^ flip << (8 * byte)));
                    assert_ne!(
                        bucket.computed_check(),
                        check,
                        "slot {slot} byte {byte} flip {flip:#x}"
                    );
                    bucket.set_word(slot, before);
                }
            }
        }
    }

    #[test]
    fn unlocking_changes_the_version_and_keeps_the_check() {
        let free = Control(7 << 32 | 8);
        let locked = free.locked_by(Owner::from_bits(42));
        assert!(locked.is_locked() && !free.is_locked());
        assert_eq!(locked.owner(), Owner::from_bits(42));
        let again = locked.unlocked(9, false);
        assert_eq!((again.check(), again.is_locked(), again.0 as u32), (9, false, 12));
        let lost = locked.unlocked(9, true);
        assert!(lost.has_lost() && !again.has_lost());
        assert!(lost.locked_by(locked.owner()).unlocked(9, false).has_lost(), "never cleared");
        assert_eq!(
            Control(LOW & !3).locked_by(Owner::from_bits(1)).unlocked(0, false),
            Control(0),
            "the version wraps"
        );
    }
}
