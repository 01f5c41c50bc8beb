//! The index that processes share, in every interleaving and in many random ones.
//!
//! These tests compile the source of the index itself over a replacement of [`sys`], whose memory
//! is that of loom or shuttle. Loom runs small scenarios in every interleaving with a bounded
//! number of preemptions, and each load returns each value that its memory order allows. Shuttle
//! runs a larger scenario in random orders, with a process that dies. `tests/protocol` checks the
//! order of the steps, with log and disk; these tests check the code and its memory orders.

#[expect(dead_code, reason = "shuttle has a generator of its own; only the seed is used")]
#[cfg(test)]
#[path = "../support/rng.rs"]
mod rng;

#[expect(dead_code, unreachable_pub, reason = "the index uses few of the errors")]
#[path = "../../src/error.rs"]
mod error;
mod limits {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Limits {
        pub(crate) max_entries: u64,
        pub(crate) cull_frequency: u64,
        pub(crate) max_bytes: u64,
    }
}
mod options {
    pub(crate) const INLINE_CULL_ENTRIES: u64 = 10_000;
}
// Not under `cfg(test)`, so that lints apply to the index as in the library.
mod engine;
#[cfg(test)]
mod every_order;
#[cfg(test)]
mod expected;
#[cfg(test)]
mod member;
#[cfg(test)]
mod random_orders;
mod sys;
