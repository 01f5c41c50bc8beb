//! Values that name who wrote them.

use crate::rng::Rng;

/// The write that stored a value: its thread and its number among the operations of that thread. No two are
/// equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(pub(crate) u64);

/// Operations of one thread; the bits above are the thread's.
const INDEX_BITS: u32 = 23;
/// Increments since a counter came to be; the bits above name who made it.
const COUNT_BITS: u32 = 20;

impl Name {
    pub(crate) fn new(thread: u32, index: usize) -> Self {
        assert!(index < 1 << INDEX_BITS && u64::from(thread) < 1 << (63 - INDEX_BITS - COUNT_BITS));
        Self(u64::from(thread) << INDEX_BITS | index as u64)
    }

    pub(crate) fn thread(self) -> u64 {
        self.0 >> INDEX_BITS
    }

    /// From what a counter starts that this operation makes. No two counters, nor two that were one after the
    /// other, ever show the same number.
    pub(crate) fn counts_from(self) -> i64 {
        (self.0 << COUNT_BITS) as i64
    }
}

/// What a counter showed before it showed `count`; none if that was its first.
pub(crate) fn before(count: u64) -> Option<u64> {
    let nth = count & ((1 << COUNT_BITS) - 1);
    (nth > 1).then(|| count - 1)
}

/// What is stored for `name`: most are small, some take pages, and if `large`, a few are files of their own.
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

/// Who wrote `bytes`, if they are whole.
pub(crate) fn name(read: &[u8], large: bool) -> Option<Name> {
    let name = Name(u64::from_le_bytes(*read.first_chunk()?));
    (*read == *bytes(name, large)).then_some(name)
}
