//! The end of the log in one process: its segments are orphaned or sealed, and unmapped.

use crate::engine::format::segment_header;
use crate::engine::log::append::Tail;
use crate::engine::log::{Log, drain, lock};

impl Log {
    /// Stops appending, and orphans the segments that this process appended to: other processes
    /// stay attached.
    pub(crate) fn orphan_all(&self) {
        for tail in self.take_tails().into_iter().flatten() {
            drain(&tail.segment);
            self.orphan(&tail);
        }
    }

    /// Stops appending in the last process: seals all segments that are appended to, and notes
    /// where the next life continues the log.
    pub(crate) fn seal_all(&self) {
        let [active, copies, spare] = self.take_tails();
        match spare {
            Some(unused) if unused.end == segment_header::LEN as u32 => {
                self.free_unused(unused.segment.id)
            }
            // It was adopted with records in it.
            adopted => adopted.into_iter().for_each(|spare| self.seal(spare)),
        }
        let end = active.as_ref().map(|tail| (tail.segment.id, tail.end));
        let orphan = || self.index.orphans().last().map(|orphan| (orphan.id, orphan.tail));
        // Without either, the next life creates a segment: what an earlier life noted is out of
        // date.
        let (id, tail) = end.or_else(orphan).unwrap_or((0, 0));
        self.index.set_end_of_log(id, tail);
        for tail in [active, copies].into_iter().flatten() {
            drain(&tail.segment);
            self.seal(tail);
        }
        self.seal_orphans(0);
    }

    /// The tails of the active segment, of the copies and of the spare.
    fn take_tails(&self) -> [Option<Tail>; 3] {
        let [active, copies] = [&self.active, &self.copies].map(|tail| lock(tail).take());
        [active, copies, self.spare.wait().take()]
    }

    /// Makes a segment that this process appended to an orphan.
    pub(super) fn orphan(&self, tail: &Tail) {
        self.index.orphan_segment(tail.segment.id);
    }

    /// Unmaps all segments: afterwards nothing can be read or written. Segments with values that
    /// the program holds stay mapped. They count as this process's bytes, also after it attaches
    /// again, because others may remove the files in between.
    pub(crate) fn unmap_all(&self) {
        for tail in [&self.active, &self.copies] {
            *lock(tail) = None;
        }
        *self.spare.wait() = None;
        lock(&self.unsynced).clear();
        self.map
            .drain()
            .filter(|segment| segment.is_pinned())
            .for_each(|segment| segment.count_as_held());
    }

    /// The same in a process that was forked from the log's process. Takes no lock that is held:
    /// what is behind such a lock stays mapped.
    pub(crate) fn unmap_after_fork(&self) {
        let tails =
            [self.active.try_lock().ok(), self.copies.try_lock().ok(), self.spare.try_enter()];
        for mut tail in tails.into_iter().flatten() {
            *tail = None;
        }
        if let Ok(mut unsynced) = self.unsynced.try_lock() {
            unsynced.clear();
        }
        self.map.drain().for_each(drop);
    }
}
