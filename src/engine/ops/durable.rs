//! What `Durability::Sync` adds to a call: it returns when its change, or what it found in place of
//! one, is on the disk.

use crate::engine::Engine;
use crate::engine::log::append::RecordReservation;
use crate::engine::log::segment::Segment;
use crate::engine::ops::lookup::Current;
use crate::entry::Outcome;
use crate::error::Result;
use crate::sys::planted;

impl Engine {
    /// Syncs the segment of a stamped record, if each write must be durable.
    ///
    /// # Errors
    /// `UnknownOutcome` if the sync fails. Before, `take_back` must undo the change as far as that
    /// is possible: parts of the record may be on the disk.
    #[inline]
    pub(crate) fn sync_if_asked(
        &self,
        reservation: RecordReservation,
        take_back: impl FnOnce(&Segment, u32),
    ) -> Result<()> {
        if !self.syncs_each_write() || planted!("sync of a write") {
            return Ok(());
        }
        let (segment, offset) = (reservation.segment.clone(), reservation.offset);
        drop(reservation);
        segment.sync().map_err(|error| {
            self.index.set_segment_failed(segment.id);
            take_back(&segment, offset);
            error.of_unsynced_change(&self.dir)
        })
    }

    /// Ends a commit that changes nothing, because of the entry that it found or did not find.
    #[inline]
    pub(crate) fn report(&self, outcome: Outcome, found: Option<Current>) -> Result<Outcome> {
        if self.syncs_each_write() {
            self.sync_found(found)?;
        }
        Ok(outcome)
    }

    /// Waits until what was found is on the disk: another thread or process may have published it
    /// and not synced it yet. Keeps invariant I36.
    #[cold]
    fn sync_found(&self, found: Option<Current>) -> Result<()> {
        match found {
            Some(current) => self.log.sync_segment(current.word.segment()),
            // What removed the entry may be in any segment.
            None => self.log.sync(true),
        }
    }
}
