//! Syncs: which segments must be synced, and through which object.

use std::sync::{Arc, Weak};

use super::{Log, lock};
use crate::engine::index::{SegmentInfo, SegmentState};
use crate::engine::log::append::Tail;
use crate::engine::log::segment::Segment;
use crate::error::Result;

impl Log {
    /// Waits until everything that any process stamped is on the disk; with `all`, also in emptied
    /// segments.
    pub(crate) fn sync(&self, all: bool) -> Result<()> {
        self.sync_each(all, || ())
    }

    /// The same, and calls `after_each` after each segment: on a slow disk, the whole takes long.
    pub(crate) fn sync_each(&self, all: bool, after_each: impl Fn()) -> Result<()> {
        use SegmentState::{Active, Emptied, Sealed};
        let mut flushed = Ok(());
        for info in self.index.segments().filter(|info| !info.synced) {
            let concerns = matches!(info.state, Active | Sealed) || (all && info.state == Emptied);
            if concerns && let Some(segment) = self.fetch(info.id)?.get() {
                // A failure of one segment does not keep the others from being synced.
                flushed = flushed.and(self.sync_one(segment, &info));
                after_each();
            }
        }
        flushed
    }

    /// Waits until everything that this process stamped is on the disk.
    pub(crate) fn sync_own(&self) -> Result<()> {
        // Weak: a sync in progress must not keep a removed segment mapped.
        let mut own: Vec<_> = lock(&self.unsynced).iter().map(Arc::downgrade).collect();
        // One lock after the other. A segment that is sealed in between was found as sealed by an
        // earlier call, or is found by the next one.
        own.extend(lock(&self.active).as_ref().map(|tail| Arc::downgrade(&tail.segment)));
        own.extend(lock(&self.copies).as_ref().map(|tail| Arc::downgrade(&tail.segment)));
        let mut flushed = Ok(());
        for segment in own.iter().filter_map(Weak::upgrade) {
            if let Some(info) = self.index.segment(segment.id) {
                flushed = flushed.and(self.sync_one(&segment, &info));
            }
        }
        flushed
    }

    /// Syncs one segment. `info` was read before the sync begins.
    fn sync_one(&self, segment: &Arc<Segment>, info: &SegmentInfo) -> Result<()> {
        let synced = match info.failed {
            true => Err(segment.refused()),
            // Its dirty mark covers only what was written through this object.
            false if self.index.is_own(info.owner) && self.is_written_through(segment) => {
                segment.sync_if_dirty()
            }
            false => segment.sync(),
        };
        if synced.is_err() {
            self.index.set_segment_failed(segment.id);
        } else if info.state != SegmentState::Active {
            self.index.set_segment_synced(segment.id);
            lock(&self.unsynced).retain(|unsynced| unsynced.id != segment.id);
        }
        synced
    }

    /// Whether this process appends, or appended, through this very object, which then knows
    /// whether it is dirty.
    fn is_written_through(&self, segment: &Arc<Segment>) -> bool {
        let is_it = |tail: &Option<Tail>| {
            tail.as_ref().is_some_and(|tail| Arc::ptr_eq(&tail.segment, segment))
        };
        // In the order in which a segment moves on. The locks of the spare and of the copies may be
        // held for long, so they are only tried: an unneeded sync does no harm.
        self.spare.try_enter().is_some_and(|tail| is_it(&tail))
            || self.copies.try_lock().is_ok_and(|tail| is_it(&tail))
            || is_it(&lock(&self.active))
            || lock(&self.unsynced).iter().any(|unsynced| Arc::ptr_eq(unsynced, segment))
    }
}
