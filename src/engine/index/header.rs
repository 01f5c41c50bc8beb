//! Shared words of the header: whether a recount is wanted, what is swept, the next expiry, the
//! number of the last snapshot, the bytes logged since the last checkpoint, the bytes of blobs.

use super::Index;
use crate::engine::format::index_header::at;
use crate::sys::atomic::Ordering;

/// The bit of `NEXT_EXPIRY` that says that a pass is under way. The rest is then what was noted
/// since it began. A pass of a process that died leaves the bit to the next pass.
const PASSING: u64 = 1 << 63;
/// No entry expires.
const NO_EXPIRY: u64 = PASSING - 1;

impl Index {
    /// Whether a process stopped using this index, and all others must: a file of the directory was
    /// removed or replaced.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.words()[at::ABANDONED].load(Ordering::Acquire) != 0
    }

    /// Stops the use of this index by all processes: each notices within a second, and no other
    /// process joins them. Observers notice at once.
    pub(crate) fn abandon(&self) {
        self.words()[at::ABANDONED].store(1, Ordering::Release);
        self.words()[at::RETIRED].fetch_add(1, Ordering::AcqRel);
    }

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

    /// No entry expires before this time, in milliseconds since 1970. 0 while a pass is under way,
    /// because what it has not reached yet may have expired long ago.
    pub(crate) fn next_expiry(&self) -> u64 {
        let next = self.words()[at::NEXT_EXPIRY].load(Ordering::SeqCst);
        if next & PASSING == 0 { next } else { 0 }
    }

    /// No entry expires, as far as is known.
    pub(crate) fn forget_next_expiry(&self) {
        self.words()[at::NEXT_EXPIRY].store(NO_EXPIRY, Ordering::SeqCst);
    }

    /// Forgets the next expiry until a pass that begins now has found it.
    pub(crate) fn begin_expiry_pass(&self) {
        self.words()[at::NEXT_EXPIRY].store(PASSING | NO_EXPIRY, Ordering::SeqCst);
    }

    /// A pass is over: no entry that it saw expires before `next`.
    pub(crate) fn end_expiry_pass(&self, next: u64) {
        let _ = self.words()[at::NEXT_EXPIRY].fetch_update(
            Ordering::SeqCst,
            Ordering::SeqCst,
            |noted| Some((noted & !PASSING).min(next).min(NO_EXPIRY)),
        );
    }

    /// Notes that an entry expires at this time, in milliseconds since 1970.
    pub(crate) fn note_expiry(&self, millis: u64) {
        let word = &self.words()[at::NEXT_EXPIRY];
        let is_sooner = |noted: u64| millis < noted & !PASSING;
        if is_sooner(word.load(Ordering::SeqCst)) {
            let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |noted| {
                is_sooner(noted).then_some(noted & PASSING | millis)
            });
        }
    }

    /// The number of the last snapshot that a checkpoint began.
    pub(crate) fn last_snapshot(&self) -> u64 {
        self.words()[at::SNAPSHOT].load(Ordering::Acquire)
    }

    pub(crate) fn set_last_snapshot(&self, number: u64) {
        self.words()[at::SNAPSHOT].store(number, Ordering::Release);
    }

    /// Notes that snapshot `number` counts. Comes before anything is removed that an older one
    /// needs.
    pub(crate) fn set_counted(&self, number: u64) {
        self.words()[at::COUNTED].store(number, Ordering::Release);
    }

    /// Notes that the index is complete, and in which page cache it is: see
    /// [`Evidence`](crate::engine::lifecycle::evidence).
    pub(crate) fn set_page_cache(&self, id: u64) {
        self.words()[at::PAGE_CACHE].store(id, Ordering::Release);
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
