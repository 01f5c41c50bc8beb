//! What segments and blobs take on disk: one count for a directory, which never exceeds its bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The bytes of all segments and blobs of an engine, those included that are unlinked and still mapped or open.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpaceInUse(Arc<Usage>);

#[derive(Debug, Default)]
pub(crate) struct Usage {
    bytes: AtomicU64,
    /// Of `bytes`, those of blobs that are whole.
    blobs: AtomicU64,
    /// Syncs under way, each of which keeps its segment until it is done.
    syncs: AtomicU64,
    /// Of `bytes`, those of segments of which the program holds values.
    pinned: Mutex<u64>,
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

    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Acquire)
    }

    /// Of them, the bytes of segments of which the program holds values.
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

    pub(crate) fn account(&self, bytes: u64) -> Account {
        self.0.bytes.fetch_add(bytes, Ordering::AcqRel);
        Account { space: self.clone(), bytes }
    }

    /// The same, unless more than `most` bytes would be in use then.
    pub(crate) fn account_within(&self, bytes: u64, most: u64) -> Option<Account> {
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        self.0.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(Account { space: self.clone(), bytes })
    }

    /// The bytes of all blobs that something names, or named until lately.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.0.blobs.load(Ordering::Acquire)
    }

    /// What `account` counted is a blob from now on, whoever made it, and counts until it is gone.
    pub(crate) fn blob_made(&self, mut account: Account) {
        self.0.blobs.fetch_add(std::mem::take(&mut account.bytes), Ordering::AcqRel);
    }

    /// A blob of so many bytes is gone. No more goes than is there: it may never have been counted, if whoever made it
    /// died.
    pub(crate) fn blob_gone(&self, bytes: u64) {
        let less = |all: u64| Some(all.saturating_sub(bytes));
        let counted = self.0.blobs.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).unwrap_or(0);
        self.0.bytes.fetch_sub(bytes.min(counted), Ordering::AcqRel);
    }

    /// Puts the bytes of blobs right, unless they are not `was` any more, which they were before somebody looked what
    /// blobs there are. The caller sees to it that none goes meanwhile.
    pub(crate) fn set_blob_bytes(&self, was: u64, now: u64) -> bool {
        let set = self.0.blobs.compare_exchange(was, now, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if set {
            self.0.bytes.fetch_add(now.wrapping_sub(was), Ordering::AcqRel);
        }
        set
    }
}

/// Bytes that are counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) space: SpaceInUse,
    bytes: u64,
}

impl Account {
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
        self.space.0.bytes.fetch_sub(over, Ordering::AcqRel);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.space.0.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
