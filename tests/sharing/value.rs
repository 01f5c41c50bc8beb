//! Values that identify the write that stored them.

use crate::rng::Rng;

/// The id of a write: its thread, and its number among the operations of that thread. Ids are
/// unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(pub(crate) u64);

/// Bits for the operations of one thread; the bits above them hold the thread.
const INDEX_BITS: u32 = 23;
/// Bits for the increments since a counter was created; the bits above them hold its creator.
const COUNT_BITS: u32 = 20;

impl Name {
    pub(crate) fn new(thread: u32, index: usize) -> Self {
        assert!(index < 1 << INDEX_BITS && u64::from(thread) < 1 << (63 - INDEX_BITS - COUNT_BITS));
        Self(u64::from(thread) << INDEX_BITS | index as u64)
    }

    pub(crate) fn thread(self) -> u64 {
        self.0 >> INDEX_BITS
    }

    /// The start value of a counter that this operation creates. No two counters ever show the same
    /// number, and neither do two incarnations of one counter.
    pub(crate) fn counts_from(self) -> i64 {
        (self.0 << COUNT_BITS) as i64
    }
}

/// The value of a counter before it was `count`; `None` if `count` was its first value.
pub(crate) fn before(count: u64) -> Option<u64> {
    let nth = count & ((1 << COUNT_BITS) - 1);
    (nth > 1).then(|| count - 1)
}

/// The bytes that the write `name` stores. Most are small and some take pages; with `large`, a few
/// are so large that each is a file of its own.
pub(crate) fn bytes(name: Name, large: bool) -> Vec<u8> {
    let mut rng = Rng::new(name.0);
    let words = match rng.below(100) {
        0 if large => rng.below(2) * 17_000 + rng.below(1000),
        0..12 => rng.below(1200),
        _ => rng.below(25),
    };
    let first = rng.next();
    let filling = (0..words).flat_map(|n| first.wrapping_mul(n | 1).to_le_bytes());
    name.0.to_le_bytes().into_iter().chain(filling).collect()
}

/// The write that stored `bytes`, if they are complete and unchanged.
pub(crate) fn name(read: &[u8], large: bool) -> Option<Name> {
    let name = Name(u64::from_le_bytes(*read.first_chunk()?));
    (*read == *bytes(name, large)).then_some(name)
}
