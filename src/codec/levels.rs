//! How deep a value is nested. Serializers and deserializers recurse at each level, so the depth is
//! bounded before the recursion, in both directions alike.
//!
//! The depth is in a thread-local and not in the wrappers of [`bounded_ser`](super::bounded_ser)
//! and [`bounded_de`](super::bounded_de): rmp-serde recognizes a sequence of bytes by the size of
//! its elements.

use std::cell::Cell;
use std::fmt;

/// The most levels of sequences, tuples, maps, structs and variants with content.
pub(super) const MOST_LEVELS: u16 = 128;
/// A value may be read as a type in which some of its parts are a level deeper: bytes as a
/// sequence.
pub(super) const MOST_LEVELS_READ: u16 = MOST_LEVELS + 2;
/// The most options and newtypes on the way to any part. They are no levels in the encoded value.
const MOST_STEPS: u16 = 4 * MOST_LEVELS;

#[derive(Clone, Copy)]
struct Depth {
    levels_left: u16,
    steps_left: u16,
}

thread_local! {
    static DEPTH: Cell<Depth> =
        const { Cell::new(Depth { levels_left: MOST_LEVELS, steps_left: MOST_STEPS }) };
}

/// Why a value is refused.
pub(super) struct TooDeep;

impl fmt::Display for TooDeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the value is nested more than {MOST_LEVELS} levels deep, or has more than \
             {MOST_STEPS} options and newtypes within each other"
        )
    }
}

/// Restores the depth when it is dropped, also by a panic.
pub(super) struct Restored(Depth);

impl Drop for Restored {
    fn drop(&mut self) {
        DEPTH.set(self.0);
    }
}

/// Calls `work` for a value of its own, of at most `most` levels. A `Serialize` that uses the cache
/// nests calls.
pub(super) fn of_value<R>(most: u16, work: impl FnOnce() -> R) -> R {
    let _outer = Restored(DEPTH.get());
    DEPTH.set(Depth { levels_left: most, steps_left: MOST_STEPS });
    work()
}

/// Goes a level down, until the result is dropped.
#[inline]
pub(super) fn level<E>(refuse: impl FnOnce(TooDeep) -> E) -> Result<Restored, E> {
    let depth = DEPTH.get();
    match depth.levels_left.checked_sub(1) {
        Some(levels_left) => {
            DEPTH.set(Depth { levels_left, ..depth });
            Ok(Restored(depth))
        }
        None => Err(refuse(TooDeep)),
    }
}

/// Goes into an option or a newtype, until the result is dropped.
#[inline]
pub(super) fn step<E>(refuse: impl FnOnce(TooDeep) -> E) -> Result<Restored, E> {
    let depth = DEPTH.get();
    match depth.steps_left.checked_sub(1) {
        Some(steps_left) => {
            DEPTH.set(Depth { steps_left, ..depth });
            Ok(Restored(depth))
        }
        None => Err(refuse(TooDeep)),
    }
}
