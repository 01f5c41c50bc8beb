//! What the directory takes on disk: one count among all processes, which never exceeds its bound.
//!
//! Segments count by the segment table, blobs by a count beside it. To these each process adds what it is about to
//! take, and what it keeps of segments that are removed: the kernel gives their blocks back when the last one lets go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::engine::index::busy;
use crate::engine::index::{Index, Role};
use crate::engine::shared::wait_queue::Queue;
use crate::error::Result;
use crate::sys::fork::Epoch;

/// The part of this process in what a directory takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpaceInUse(Arc<Usage>);

#[derive(Debug, Default)]
pub(crate) struct Usage {
    epoch: Epoch,
    own: Mutex<Own>,
    /// Held by the thread that has the turn to claim bytes, or waits for it.
    admission: Queue<()>,
    /// Syncs under way, each of which keeps its segment until it is done.
    syncs: AtomicU64,
    /// The bytes of segments of which the program holds values.
    pinned: Mutex<u64>,
}

#[derive(Debug, Clone, Default)]
struct Own {
    /// Where others see it; `None` while the directory is closed.
    index: Option<Arc<Index>>,
    /// Bytes that are about to be taken.
    claimed: u64,
    /// Bytes of segments that are removed and still mapped here.
    held: u64,
}

impl Own {
    fn publish(&self) {
        if let Some(index) = &self.index {
            index.set_own_bytes(self.held, self.claimed);
        }
    }

    /// The bytes that the directory takes.
    fn used(&self) -> u64 {
        self.index.as_ref().map_or(self.claimed + self.held, |index| index.used_bytes())
    }
}

/// A sync under way.
pub(crate) struct Syncing<'a>(&'a Usage);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.syncs.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SpaceInUse {
    /// The same count, for as long as anything is counted in it.
    pub(crate) fn downgrade(&self) -> Weak<Usage> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(count: &Weak<Usage>) -> Option<Self> {
        count.upgrade().map(Self)
    }

    /// Whether it is this process's, and not that of the one that it was forked from: then nothing is counted or given back
    /// any more, and no lock taken.
    pub(crate) fn is_ours(&self) -> bool {
        !self.0.epoch.is_over()
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows others what this process takes, and counts with what they do, until [`detach`](SpaceInUse::detach).
    pub(crate) fn attach(&self, index: Arc<Index>) {
        let mut own = self.own();
        own.index = Some(index);
        own.publish();
    }

    pub(crate) fn detach(&self) {
        self.own().index = None;
    }

    /// The bytes that the directory takes, those included that are unlinked and still mapped or about to be taken. What moves
    /// from one count to another at this moment may count twice.
    pub(crate) fn bytes(&self) -> u64 {
        // Of a copy, so that the lock is had for a moment only: readers take it, to let go of what was dropped.
        let own = self.own().clone();
        own.used()
    }

    /// The same, with nothing of this process counted twice.
    pub(crate) fn settled_bytes(&self) -> u64 {
        self.own().used()
    }

    fn index(&self) -> Option<Arc<Index>> {
        self.own().index.clone()
    }

    /// The bytes of segments of which the program holds values.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        *self.pinned()
    }

    pub(crate) fn pinned(&self) -> MutexGuard<'_, u64> {
        self.0.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sync keeps a segment that might be gone otherwise.
    pub(crate) fn is_syncing(&self) -> bool {
        self.0.syncs.load(Ordering::Acquire) > 0
    }

    pub(crate) fn syncing(&self) -> Syncing<'_> {
        self.0.syncs.fetch_add(1, Ordering::AcqRel);
        Syncing(&self.0)
    }

    /// Counts bytes of a removed segment that is still mapped here.
    pub(crate) fn hold(&self, bytes: u64) {
        let mut own = self.own();
        own.held += bytes;
        own.publish();
    }

    pub(crate) fn unmap(&self, bytes: u64) {
        if !self.is_ours() {
            return;
        }
        let mut own = self.own();
        own.held -= bytes;
        own.publish();
    }

    /// Claims bytes that are to be taken whatever the bound.
    pub(crate) fn reserve(&self, bytes: u64) -> Reservation {
        let mut own = self.own();
        own.claimed += bytes;
        own.publish();
        Reservation { space: self.clone(), bytes }
    }

    /// The same, unless more than `most` bytes would be in use then.
    ///
    /// # Errors
    /// If another process that counts does not come to its end, or the kernel refuses the lock.
    // Keeps invariant I4.
    pub(crate) fn reserve_within(&self, bytes: u64, most: u64) -> Result<Option<Reservation>> {
        // Not `own`: whoever lets go of something, a reader perhaps, does not wait for another process.
        let admission = &self.0.admission;
        let _thread = admission.enter().ok_or_else(|| busy("claim space"))?;
        let index = self.index();
        let admitted = index.as_ref().map(|index| index.acquire(Role::Admission)).transpose();
        let admitted = admission.unless_given_up(admitted)?;
        if self.bytes().checked_add(bytes).is_none_or(|sum| sum > most) {
            return Ok(None);
        }
        let reservation = self.reserve(bytes);
        // After that, or another could claim the same bytes.
        drop(admitted);
        Ok(Some(reservation))
    }

    /// Claims no more what is in `reservation`, if `count` sees to it that it counts elsewhere.
    pub(crate) fn hand_over<R>(
        &self,
        reservation: &mut Option<Reservation>,
        count: impl FnOnce() -> Option<R>,
    ) -> Option<R> {
        let mut own = self.own();
        // In this order, or another could claim the same bytes.
        let counted = count()?;
        if let Some(mut reservation) = reservation.take() {
            own.claimed -= std::mem::take(&mut reservation.bytes);
            own.publish();
        }
        Some(counted)
    }

    fn give_back(&self, bytes: u64) {
        if !self.is_ours() {
            return;
        }
        let mut own = self.own();
        own.claimed -= bytes;
        own.publish();
    }

    /// The bytes of all blobs that are whole, whoever made them. Nothing while the directory is closed.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.own().index.as_ref().map_or(0, |index| index.blob_bytes())
    }

    /// What `reservation` claimed is a blob from now on, and counts until it is gone, whoever removes it.
    pub(crate) fn blob_made(&self, reservation: Reservation) {
        let (index, bytes) = (self.index(), reservation.bytes);
        let count = || index.map(|index| index.add_blob_bytes(bytes as i64));
        self.hand_over(&mut Some(reservation), count);
    }

    /// A blob of so many bytes is gone. No more goes than is there: it may never have been counted, if whoever made it
    /// died.
    pub(crate) fn blob_gone(&self, bytes: u64) {
        if let Some(index) = &self.own().index {
            index.add_blob_bytes(-(bytes as i64));
        }
    }

    /// Puts the bytes of blobs right, unless they are not `was` any more, which they were before somebody looked what
    /// blobs there are. The caller sees to it that none goes meanwhile. Says whether it did.
    pub(crate) fn set_blob_bytes(&self, was: u64, now: u64) -> bool {
        self.own().index.as_ref().is_some_and(|index| index.set_blob_bytes(was, now))
    }
}

/// Bytes that are claimed for as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) space: SpaceInUse,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts from now on what `other`, of the same space, counted.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Leaves nothing here; what is returned counts it.
    pub(crate) fn take(&mut self) -> Self {
        Self { space: self.space.clone(), bytes: std::mem::take(&mut self.bytes) }
    }

    /// Counts no more than `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let over = self.bytes.saturating_sub(bytes);
        self.bytes -= over;
        self.space.give_back(over);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
impl SpaceInUse {
    /// What a forked process has of its parent's.
    pub(crate) fn inherited() -> Self {
        Self(Arc::new(Usage { epoch: Epoch::now().before(), ..Usage::default() }))
    }

    pub(crate) fn lock_own(&self) -> impl Sized + use<'_> {
        self.own()
    }
}
