//! The limits in the header: all processes read them for each decision, so a change is seen by all at once.

use super::Index;
use crate::engine::format::index_header::at;
use crate::limits::Limits;
use crate::sys::atomic::Ordering;

impl Index {
    /// The limits that count for all processes.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_entries: self.max_entries(),
            cull_frequency: self.load(at::CULL_FREQUENCY),
            max_bytes: self.max_bytes(),
        }
    }

    /// Those that were asked for: what counts where the index is large enough, or another one is made.
    pub(crate) fn asked_limits(&self) -> Limits {
        Limits {
            max_entries: self.load(at::ASKED_ENTRIES),
            cull_frequency: self.load(at::CULL_FREQUENCY),
            max_bytes: self.load(at::ASKED_BYTES),
        }
    }

    /// Sets what counts from now on, and what of it was asked for.
    pub(crate) fn set_limits(&self, asked: Limits, counts: Limits) {
        for (at, value) in [
            (at::ASKED_ENTRIES, asked.max_entries),
            (at::ASKED_BYTES, asked.max_bytes),
            (at::MAX_ENTRIES, counts.max_entries),
            (at::CULL_FREQUENCY, counts.cull_frequency),
            (at::MAX_BYTES, counts.max_bytes),
        ] {
            self.words()[at].store(value, Ordering::Release);
        }
    }

    /// The most entries at any time.
    pub(crate) fn max_entries(&self) -> u64 {
        self.load(at::MAX_ENTRIES)
    }

    /// The most bytes at any time.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.load(at::MAX_BYTES)
    }

    fn load(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Relaxed)
    }
}
