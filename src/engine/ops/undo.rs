//! Undo: withdraws a record of which a page could not be written, and reverts a published change
//! that the disk refused to sync, as far as that is possible. The caller gets an error; of a change
//! that was not synced `UnknownOutcome`, because parts of the record may be on the disk, and come
//! back after a power cut.
//!
//! Other threads and processes may have read the change, or have changed the key again since. Their
//! changes stay. So does a change in place of a record that cannot be named again: without it the
//! key would have nothing.

use crate::engine::Engine;
use crate::engine::format::record::{Draft, Prepared, Stamp};
use crate::engine::format::word::Word;
use crate::engine::hints::Hint;
use crate::engine::index::{CountUp, SegmentState, Vacancy};
use crate::engine::log::append::RecordReservation;
use crate::engine::log::segment::Segment;
use crate::engine::ops::commit::AppliedChange;
use crate::error::{Error, Result};

impl Engine {
    /// Copies key and body to the space that is reserved for them.
    ///
    /// # Errors
    /// If a page of the segment could not be written.
    #[inline]
    pub(crate) fn prepare(
        &self,
        reservation: &RecordReservation,
        draft: Draft,
        key: &[u8],
        body: [&[u8]; 2],
    ) -> Result<Prepared> {
        let RecordReservation { segment, offset, len } = reservation;
        let prepared = segment.prepare(*offset, *len, draft, key, body);
        if segment.has_faulted() {
            return Err(self.withdraw(reservation));
        }
        Ok(prepared)
    }

    /// Stamps a record, which is then part of the log.
    ///
    /// # Errors
    /// If a page of its segment could not be written. Then it is not.
    #[inline]
    pub(crate) fn stamp(
        &self,
        reservation: &RecordReservation,
        prepared: &Prepared,
        stamp: Stamp,
    ) -> Result<()> {
        reservation.segment.stamp(reservation.offset, prepared, stamp);
        if reservation.segment.has_faulted() {
            return Err(self.withdraw(reservation));
        }
        Ok(())
    }

    /// Gives up a record of whose segment a page could not be written.
    #[cold]
    fn withdraw(&self, reservation: &RecordReservation) -> Error {
        self.index.set_segment_failed(reservation.segment.id);
        reservation.segment.withdraw(reservation.offset)
    }

    /// Restores what the key had before, if it still names the published record or a copy of it,
    /// and voids these records in the log.
    pub(crate) fn take_back(&self, segment: &Segment, published: AppliedChange) {
        // The previous record must not be in a segment that is just being removed, and the
        // published one must not be copied meanwhile, so this holds the space role.
        let role = self.space_role();
        let is_there = |word: Word| {
            use SegmentState::{Active, Sealed};
            matches!(self.index.segment_state(word.segment()), Some(Active | Sealed))
                && self.header_of(word).is_some()
        };
        // Read before the lock is taken, because the page may have to be read from the disk.
        let before = published.before.filter(|current| role.is_ok() && is_there(current.word));
        if published.before.is_some() && before.is_none() {
            return;
        }
        let Ok(locked) = self.index.lock(published.hash) else { return };
        self.note_wiped(locked.wiped());
        let holds = |word| self.index.slot_of(published.hash, word);
        let copy = published.word.filter(|word| holds(*word).is_none()).and_then(|_| {
            // What is alive in a segment that cannot be synced is copied to another one.
            let record = segment.record(published.offset)?;
            let current = self.look_locked(published.hash, record.key)?.current?;
            (current.sequence == record.sequence).then_some(current.word)
        });
        let slot = match published.word {
            Some(word) => holds(copy.unwrap_or(word)),
            // A removed entry is counted again. If there is no room for it any more, it is not
            // restored.
            None => before.and_then(|current| {
                let is_free = holds(current.word).is_none()
                    && self.index.count_up(current.generation, self.max_entries())
                        == CountUp::Counted;
                match is_free.then(|| locked.vacant()) {
                    Some(Ok(Vacancy { slot, moved: None })) => Some(slot),
                    Some(Ok(Vacancy { slot, moved: Some((from, to)) })) => {
                        self.hints.set(to, self.hints.get(from));
                        Some(slot)
                    }
                    Some(Err(_)) => {
                        self.index.count_down(current.generation);
                        None
                    }
                    None => None,
                }
            }),
        };
        if let Some(slot) = slot {
            if let Some(generation) = published.counted_in {
                self.index.count_down(generation);
            }
            match before {
                Some(current) => {
                    locked.set(slot, current.word);
                    self.hints.set(
                        slot,
                        Hint::new(current.expires_at, current.generation, self.index.recency()),
                    );
                }
                None => locked.clear(slot),
            }
        }
        drop(locked);
        segment.void(published.offset);
        if let Some(copy) = copy
            && let Some(copied_to) = self.log.segment(copy.segment()).get()
        {
            copied_to.void(copy.offset());
        }
    }
}
