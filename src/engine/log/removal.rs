//! How segments go: emptied, removed with a checkpoint, dropped until all processes have let go of them.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, MutexGuard};

use super::{Log, lock};
use crate::engine::index::SegmentState;
use crate::engine::log::segment::Segment;
use crate::sys::step;

impl Log {
    /// Says that no entry names segment `id` any more. Its file goes with the next checkpoint that begins.
    pub(crate) fn set_emptied(&self, id: u32) {
        if self.index.move_segment(id, SegmentState::Sealed, SegmentState::Emptied) {
            step!("log::emptied");
        }
    }

    pub(crate) fn emptied_bytes(&self) -> u64 {
        self.index.segments_in(SegmentState::Emptied).iter().map(|segment| segment.len).sum()
    }

    /// The segments that are emptied now.
    pub(crate) fn emptied_ids(&self) -> Vec<u32> {
        self.index.segments_in(SegmentState::Emptied).iter().map(|segment| segment.id).collect()
    }

    /// Removes emptied segments. A checkpoint that began after they were emptied is on the disk. What cannot be removed
    /// stays, and counts.
    pub(crate) fn release(&self, ids: &[u32]) {
        for id in ids {
            if let Err(error) = self.remove_file(*id) {
                tracing::warn!(dir = %self.dir.display(), segment = id, %error, "cannot remove a segment");
                continue;
            }
            step!("log::removed");
            self.index.drop_segment(*id);
        }
        self.free_dropped();
    }

    /// Lets go of what others have dropped, if anything was since the last time. Whoever reads or writes does: the space
    /// of a removed segment comes back when the last process has let go of it.
    #[inline]
    pub(crate) fn keep_up(&self) {
        if self.drops_seen.load(Ordering::Relaxed) != self.index.drops() {
            self.let_go_of_dropped();
        }
    }

    /// Lets go of the segments that were dropped, says so, and frees the places of those that all have let go of.
    #[cold]
    pub(crate) fn let_go_of_dropped(&self) {
        let letting_go = lock(&self.letting_go);
        let seen = self.index.drops();
        self.drops_seen.store(seen, Ordering::Relaxed);
        // One that another thread is opening: see `open`.
        fence(Ordering::SeqCst);
        // An onlooker may come so late that a segment's place is free, or another's.
        for id in self.table.ids().filter(|id| !self.is_made(*id)) {
            self.forget(id, &letting_go);
        }
        self.index.acknowledge_drops(seen);
    }

    /// Whether segment `id` has a file, or is about to get one.
    fn is_made(&self, id: u32) -> bool {
        // Looked at once: it may be made at this moment.
        self.index.segment_state(id).is_some_and(|state| state != SegmentState::Dropped)
    }

    /// Frees the places, and the bytes, of dropped segments that nobody has mapped any more.
    pub(crate) fn free_dropped(&self) {
        self.let_go_of_dropped();
        self.index.free_dropped(self.index.drops_seen_by_all());
    }

    /// Lets go of a segment that is removed. What the program holds of it counts as this process's own, before another thread
    /// finds that it is gone and says so.
    pub(super) fn forget(&self, id: u32, _letting_go: &MutexGuard<'_, ()>) {
        let Some(segment) = self.table.forget(id) else { return };
        lock(&self.unsynced).retain(|unsynced| unsynced.id != id);
        // What nobody else has is unmapped here and now, and nobody gets it any more.
        if let Err(kept) = Arc::try_unwrap(segment) {
            kept.count_as_held();
        }
    }

    /// Takes a segment that no entry ever named out of the table and off the disk.
    pub(super) fn discard(&self, id: u32) {
        self.table.forget(id);
        match self.remove_file(id) {
            Ok(()) => self.index.free_segment(id),
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), segment = id, %error, "cannot remove a segment");
            }
        }
    }

    /// By name: a file of that name in another directory, put in the place of this one, is none of ours.
    fn remove_file(&self, id: u32) -> io::Result<()> {
        self.held.check_in_place()?;
        match self.held.storage().remove(&self.dir.join(Segment::file_name(id))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
