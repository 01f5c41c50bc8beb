//! The protocol that processes share the index by, in every order and in many random ones.
//!
//! This compiles the source of the index itself, over a floor ([`sys`]) whose memory is loom's or shuttle's. Loom
//! runs small scenarios in every interleaving with a bounded number of preemptions, and has each load return each value
//! that its memory order allows. Shuttle runs a larger one in random orders, with a process that dies. `tests/protocol`
//! is about the order of the steps with log and disk; this is about the code and its memory orders.

#[expect(dead_code, reason = "shuttle has the chance; only the seed is ours")]
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
// Not under `cfg(test)`: the lints see the index as they do in the library.
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
