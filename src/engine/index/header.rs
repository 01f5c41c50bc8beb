//! Shared words of the header: whether a recount is wanted, what is swept, the next expiry, the
//! number of the last snapshot, the bytes logged since the last checkpoint, the bytes of blobs.

use super::Index;
use crate::engine::format::index_header::at;
use crate::sys::atomic::Ordering;

impl Index {
    /// Whether the entries must be counted again: an unreadable entry was removed, or a process
    /// died.
    pub(crate) fn wants_recount(&self) -> bool {
        self.words()[at::RECOUNT].load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_wants_recount(&self, wants: bool) {
        self.words()[at::RECOUNT].store(u64::from(wants), Ordering::Relaxed);
    }

    /// Whether entries of generations before `generation` have all been swept.
    pub(crate) fn is_swept(&self, generation: u32) -> bool {
        self.words()[at::SWEPT].load(Ordering::Acquire) >= u64::from(generation)
    }

    pub(crate) fn set_swept(&self, generation: u32) {
        self.words()[at::SWEPT].fetch_max(u64::from(generation), Ordering::AcqRel);
    }

    /// No entry expires before this time, in milliseconds since 1970.
    pub(crate) fn next_expiry(&self) -> u64 {
        self.words()[at::NEXT_EXPIRY].load(Ordering::SeqCst)
    }

    pub(crate) fn forget_next_expiry(&self) {
        self.words()[at::NEXT_EXPIRY].store(u64::MAX, Ordering::SeqCst);
    }

    pub(crate) fn note_expiry(&self, millis: u64) {
        let next = &self.words()[at::NEXT_EXPIRY];
        if millis < next.load(Ordering::SeqCst) {
            next.fetch_min(millis, Ordering::SeqCst);
        }
    }

    /// The number of the last snapshot that a checkpoint began.
    pub(crate) fn last_snapshot(&self) -> u64 {
        self.words()[at::SNAPSHOT].load(Ordering::Acquire)
    }

    pub(crate) fn set_last_snapshot(&self, number: u64) {
        self.words()[at::SNAPSHOT].store(number, Ordering::Release);
    }

    /// The bytes that the log has taken since the last checkpoint began.
    pub(crate) fn logged_since_checkpoint(&self) -> u64 {
        self.logged().wrapping_sub(self.words()[at::CHECKPOINTED].load(Ordering::Acquire))
    }

    /// Notes that a checkpoint began when the log had taken `logged` bytes.
    pub(crate) fn set_checkpointed(&self, logged: u64) {
        self.words()[at::CHECKPOINTED].store(logged, Ordering::Release);
    }

    /// The bytes of all blobs.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.words()[at::BLOB_BYTES].load(Ordering::Acquire)
    }

    /// Sets the bytes of all blobs to `now`, if they are still `was`. Returns whether they were.
    pub(crate) fn set_blob_bytes(&self, was: u64, now: u64) -> bool {
        let word = &self.words()[at::BLOB_BYTES];
        word.compare_exchange(was, now, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Adds `delta`, which may be negative, to the bytes of all blobs.
    pub(crate) fn add_blob_bytes(&self, delta: i64) {
        let word = &self.words()[at::BLOB_BYTES];
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |b| {
            Some(b.saturating_add_signed(delta))
        });
    }
}
