//! The end of a segment: emptied, dropped with its file removed, unmapped by each process, freed.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, MutexGuard};

use super::{Log, lock};
use crate::engine::index::SegmentState;
use crate::engine::log::segment::Segment;
use crate::sys::step;

impl Log {
    /// Marks segment `id` as emptied: no entry names it any more. The next checkpoint that begins
    /// removes its file.
    pub(crate) fn empty(&self, id: u32) {
        if self.index.empty_segment(id) {
            step!("log::emptied");
        }
    }

    pub(crate) fn emptied_bytes(&self) -> u64 {
        self.index.segments_in(SegmentState::Emptied).iter().map(|segment| segment.len).sum()
    }

    /// The ids of all emptied segments.
    pub(crate) fn emptied_ids(&self) -> Vec<u32> {
        self.index.segments_in(SegmentState::Emptied).iter().map(|segment| segment.id).collect()
    }

    /// Drops emptied segments: removes their files. A checkpoint that began after they were emptied
    /// is on the disk. A file that cannot be removed stays, and counts.
    pub(crate) fn drop_emptied(&self, ids: &[u32]) {
        for id in ids {
            if let Err(error) = self.remove_file(*id) {
                self.warn_of_kept_file(*id, &error);
                continue;
            }
            step!("log::removed");
            self.index.drop_segment(*id);
        }
        self.free_dropped();
    }

    /// Unmaps dropped segments, if any were dropped since the last time. Called by each read and
    /// write: the blocks of a removed file are free only when the last process has unmapped it.
    #[inline]
    pub(crate) fn unmap_new_drops(&self) {
        if self.drops_seen.load(Ordering::Relaxed) != self.index.drops() {
            self.unmap_dropped();
        }
    }

    /// Unmaps the segments that are dropped, and acknowledges the drops.
    #[cold]
    pub(crate) fn unmap_dropped(&self) {
        let unmapping = lock(&self.unmapping);
        let seen = self.index.drops();
        self.drops_seen.store(seen, Ordering::Relaxed);
        // Another thread may be mapping a dropped segment: see `open`.
        fence(Ordering::SeqCst);
        // An observer may come so late that the row is free, or serves another segment.
        for id in self.map.ids().filter(|id| !self.is_listed(*id)) {
            self.unmap(id, &unmapping);
        }
        self.index.acknowledge_drops(seen);
    }

    /// Whether segment `id` has a file, or is about to get one.
    fn is_listed(&self, id: u32) -> bool {
        // One load: its state may change at this moment.
        self.index.segment_state(id).is_some_and(|state| state != SegmentState::Dropped)
    }

    /// Frees the lines, and with them the bytes, of dropped segments that no process has mapped any
    /// more.
    pub(crate) fn free_dropped(&self) {
        self.unmap_dropped();
        self.index.free_dropped(self.index.drops_seen_by_all());
    }

    /// Unmaps a dropped segment. If the program holds a value in it, it stays mapped and its bytes
    /// count as this process's own, before another thread can acknowledge the drop.
    pub(super) fn unmap(&self, id: u32, _unmapping: &MutexGuard<'_, ()>) {
        let Some(segment) = self.map.remove(id) else { return };
        lock(&self.unsynced).retain(|unsynced| unsynced.id != id);
        // Without another reference it is unmapped at once, and no thread can get it any more.
        if let Err(kept) = Arc::try_unwrap(segment) {
            kept.count_as_held();
        }
    }

    /// Removes the file of an active segment that no entry ever named, and frees its row.
    pub(super) fn free_unused(&self, id: u32) {
        self.map.remove(id);
        match self.remove_file(id) {
            Ok(()) => self.index.free_segment(id),
            Err(error) => {
                self.warn_of_kept_file(id, &error);
            }
        }
    }

    fn warn_of_kept_file(&self, id: u32, error: &io::Error) {
        let dir = self.dir.display();
        tracing::warn!(%dir, segment = id, %error, "cannot remove the file of a segment");
    }

    /// Removes a file by its name, after a check that the directory was not replaced by another
    /// one.
    fn remove_file(&self, id: u32) -> io::Result<()> {
        self.held.check_in_place()?;
        match self.held.storage().remove(&self.dir.join(Segment::file_name(id))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}
