//! The policies that keepwarm is compared with, each implemented exactly as its paper describes it.
//! Keys are integers from 0.

mod belady;
mod list;
mod lru;
mod s3_fifo;
mod sieve;
mod tiny_lfu;

pub(crate) use belady::Belady;
pub(crate) use lru::Lru;
pub(crate) use s3_fifo::S3Fifo;
pub(crate) use sieve::Sieve;
pub(crate) use tiny_lfu::WTinyLfu;

/// A cache that holds keys.
pub(crate) trait Policy {
    /// Looks `key` up and admits it if it is absent. Returns whether it was a hit.
    fn request(&mut self, key: u32) -> bool;
}
