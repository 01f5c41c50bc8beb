//! The atomics that processes share.
//!
//! The protocol of the index takes them, its memory ([`map`](super::map)), its knowledge of who lives
//! ([`lock`](super::lock)) and its waiting ([`wait`](super::wait)) from this floor and from nowhere else, so that
//! `tests/interleavings` can compile the same source over others, which run it in every order.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
