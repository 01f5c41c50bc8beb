//! The atomics that processes share.
//!
//! The protocol of the index gets four things from `sys` and from nowhere else: these atomics, its
//! memory ([`map`](super::map)), which process is alive ([`lock`](super::lock)), and its waits
//! ([`wait`](super::wait)). So `tests/interleavings` can compile the same source over replacements
//! that run it in every order.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
