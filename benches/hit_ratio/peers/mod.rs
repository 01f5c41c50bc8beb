//! The policies that keepwarm is put beside, each exact, as its paper tells it. Keys are numbers from 0 on.

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
    /// Looks `key` up, and takes it in if it is not there. Says whether it was there.
    fn request(&mut self, key: u32) -> bool;
}
