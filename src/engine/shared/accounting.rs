//! The bytes that the directory takes on disk: one count among all processes, which never exceeds
//! its bound.
//!
//! Segments count by the segment table, blobs by a count in the index. Each process adds the bytes
//! that it has claimed and is about to take, and those of removed segments that it keeps mapped:
//! the kernel frees their blocks when the last process unmaps them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::engine::index::busy;
use crate::engine::index::{Index, Role};
use crate::engine::shared::wait_queue::WaitQueue;
use crate::error::Result;
use crate::sys::fork::Epoch;

/// The bytes that this process adds to the count of a directory. Clones share one count.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpaceInUse(Arc<Usage>);

#[derive(Debug, Default)]
pub(crate) struct Usage {
    epoch: Epoch,
    own: Mutex<Own>,
    /// Held by the thread that holds the admission role, or waits for it.
    admission: WaitQueue<()>,
    /// Syncs in progress; each keeps its segment mapped until it is done.
    syncs: AtomicU64,
    /// The bytes of segments in which the program holds values.
    pinned: Mutex<u64>,
}

#[derive(Debug, Clone, Default)]
struct Own {
    /// The index in which other processes see these counts; `None` while the directory is closed.
    index: Option<Arc<Index>>,
    /// Bytes that are claimed and not taken yet.
    claimed: u64,
    /// Bytes of removed segments that this process still has mapped.
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

/// A sync in progress.
pub(crate) struct Syncing<'a>(&'a Usage);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.syncs.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SpaceInUse {
    /// A reference to the count that does not keep it.
    pub(crate) fn downgrade(&self) -> Weak<Usage> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(count: &Weak<Usage>) -> Option<Self> {
        count.upgrade().map(Self)
    }

    /// Whether the count belongs to this process. In a forked child it is the parent's: then
    /// nothing is counted or released any more, and no lock is taken.
    pub(crate) fn is_ours(&self) -> bool {
        !self.0.epoch.is_over()
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows this process's bytes to other processes and counts theirs, until
    /// [`detach`](SpaceInUse::detach).
    pub(crate) fn attach(&self, index: Arc<Index>) {
        let mut own = self.own();
        own.index = Some(index);
        own.publish();
    }

    pub(crate) fn detach(&self) {
        self.own().index = None;
    }

    /// The bytes that the directory takes, including files that are unlinked and still mapped, and
    /// claims. Bytes that move from one count to another at this moment may count twice.
    pub(crate) fn bytes(&self) -> u64 {
        // On a copy, so that the lock is held only for a moment: readers take it when they unmap
        // dropped segments.
        let own = self.own().clone();
        own.used()
    }

    /// The same; no bytes of this process count twice.
    pub(crate) fn settled_bytes(&self) -> u64 {
        self.own().used()
    }

    fn index(&self) -> Option<Arc<Index>> {
        self.own().index.clone()
    }

    /// The bytes of segments in which the program holds values.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        *self.pinned()
    }

    pub(crate) fn pinned(&self) -> MutexGuard<'_, u64> {
        self.0.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a sync is in progress, which may keep a dropped segment mapped.
    pub(crate) fn is_syncing(&self) -> bool {
        self.0.syncs.load(Ordering::Acquire) > 0
    }

    pub(crate) fn syncing(&self) -> Syncing<'_> {
        self.0.syncs.fetch_add(1, Ordering::AcqRel);
        Syncing(&self.0)
    }

    /// Counts the bytes of a removed segment that this process still has mapped.
    pub(crate) fn hold(&self, bytes: u64) {
        let mut own = self.own();
        own.held += bytes;
        own.publish();
    }

    /// The bytes of a removed segment count no more: it is unmapped.
    pub(crate) fn unmap(&self, bytes: u64) {
        if !self.is_ours() {
            return;
        }
        let mut own = self.own();
        own.held -= bytes;
        own.publish();
    }

    /// Claims bytes regardless of the bound.
    pub(crate) fn reserve(&self, bytes: u64) -> Reservation {
        let mut own = self.own();
        own.claimed += bytes;
        own.publish();
        Reservation { space: self.clone(), bytes }
    }

    /// Claims bytes, unless more than `most` bytes would be in use then.
    ///
    /// # Errors
    /// If another process holds the admission role for too long, or the kernel refuses the lock.
    // Keeps invariant I4.
    pub(crate) fn reserve_within(&self, bytes: u64, most: u64) -> Result<Option<Reservation>> {
        // Not `own`: a thread that releases bytes, such as a reader, must not wait for another
        // process.
        let admission = &self.0.admission;
        let _thread = admission.enter().ok_or_else(|| busy("claim space"))?;
        let index = self.index();
        let admitted = index.as_ref().map(|index| index.acquire(Role::Admission)).transpose();
        let admitted = admission.share_timeout(admitted)?;
        if self.bytes().checked_add(bytes).is_none_or(|sum| sum > most) {
            return Ok(None);
        }
        let reservation = self.reserve(bytes);
        // Only now, or another process could claim the same bytes.
        drop(admitted);
        Ok(Some(reservation))
    }

    /// Transfers a reservation to another counter atomically: `count` adds its bytes there, or
    /// returns `None`, and then nothing changes.
    pub(crate) fn transfer<R>(
        &self,
        reservation: &mut Option<Reservation>,
        count: impl FnOnce() -> Option<R>,
    ) -> Option<R> {
        let mut own = self.own();
        // In this order, or another process could claim the same bytes.
        let counted = count()?;
        if let Some(mut reservation) = reservation.take() {
            own.claimed -= std::mem::take(&mut reservation.bytes);
            own.publish();
        }
        Some(counted)
    }

    fn release(&self, bytes: u64) {
        if !self.is_ours() {
            return;
        }
        let mut own = self.own();
        own.claimed -= bytes;
        own.publish();
    }

    /// The bytes of all complete blobs of all processes; 0 while the directory is closed.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.own().index.as_ref().map_or(0, |index| index.blob_bytes())
    }

    /// Transfers a reservation to the count of blobs. Any process may remove the blob later.
    pub(crate) fn blob_made(&self, reservation: Reservation) {
        let (index, bytes) = (self.index(), reservation.bytes);
        let count = || index.map(|index| index.add_blob_bytes(bytes as i64));
        self.transfer(&mut Some(reservation), count);
    }

    /// Subtracts a blob that was removed. The count stays at 0 or above: a blob may never have been
    /// counted, if the process that wrote it died.
    pub(crate) fn blob_gone(&self, bytes: u64) {
        if let Some(index) = &self.own().index {
            index.add_blob_bytes(-(bytes as i64));
        }
    }

    /// Corrects the bytes of blobs to `now`, unless the count has changed from `was`, its value
    /// before the caller listed the blobs. The caller ensures that no blob is removed meanwhile.
    /// Returns whether the count was stored.
    pub(crate) fn set_blob_bytes(&self, was: u64, now: u64) -> bool {
        self.own().index.as_ref().is_some_and(|index| index.set_blob_bytes(was, now))
    }
}

/// Claimed bytes. Dropping it releases them.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) space: SpaceInUse,
    bytes: u64,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over the bytes of `other`, a reservation of the same space.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Moves all bytes to a new reservation.
    pub(crate) fn take(&mut self) -> Self {
        Self { space: self.space.clone(), bytes: std::mem::take(&mut self.bytes) }
    }

    /// Releases all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let over = self.bytes.saturating_sub(bytes);
        self.bytes -= over;
        self.space.release(over);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.release(self.bytes);
        }
    }
}

#[cfg(test)]
impl SpaceInUse {
    /// The count of its parent, as a forked process finds it.
    pub(crate) fn inherited() -> Self {
        Self(Arc::new(Usage { epoch: Epoch::now().before(), ..Usage::default() }))
    }

    pub(crate) fn lock_own(&self) -> impl Sized + use<'_> {
        self.own()
    }
}
