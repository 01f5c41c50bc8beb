//! The limits in the header. Every process reads them for each decision, so a change takes effect
//! in all processes at once.

use super::Index;
use crate::engine::format::index_header::at;
use crate::limits::Limits;
use crate::sys::atomic::Ordering;

impl Index {
    /// The limits in effect, for all processes.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_entries: self.max_entries(),
            cull_frequency: self.load(at::CULL_FREQUENCY),
            max_bytes: self.max_bytes(),
        }
    }

    /// The limits that were asked for. They take effect where the index is large enough, or when
    /// another index is created.
    pub(crate) fn asked_limits(&self) -> Limits {
        Limits {
            max_entries: self.load(at::ASKED_ENTRIES),
            cull_frequency: self.load(at::CULL_FREQUENCY),
            max_bytes: self.load(at::ASKED_BYTES),
        }
    }

    /// Sets the limits that were asked for, and those in effect.
    pub(crate) fn set_limits(&self, asked: Limits, effective: Limits) {
        for (at, value) in [
            (at::ASKED_ENTRIES, asked.max_entries),
            (at::ASKED_BYTES, asked.max_bytes),
            (at::MAX_ENTRIES, effective.max_entries),
            (at::CULL_FREQUENCY, effective.cull_frequency),
            (at::MAX_BYTES, effective.max_bytes),
        ] {
            self.words()[at].store(value, Ordering::Release);
        }
    }

    /// The bound on entries in effect.
    pub(crate) fn max_entries(&self) -> u64 {
        self.load(at::MAX_ENTRIES)
    }

    /// The bound on bytes in effect.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.load(at::MAX_BYTES)
    }

    fn load(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Relaxed)
    }
}
