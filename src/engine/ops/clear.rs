//! `clear`: begins a new generation, which removes all entries of older generations at once.

use crate::engine::Engine;
use crate::engine::format::record::{Draft, Kind, Record, Stamp};
use crate::engine::format::word::Word;
use crate::engine::index::ClearLock;
use crate::engine::log::append::RecordReservation;
use crate::entry::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{planted, step};

/// The record of a `clear`.
pub(crate) const CLEAR: Draft =
    Draft { kind: Kind::Clear, codec: Codec::Raw, flags: 0, key_len: 0, body_len: 0 };

impl Engine {
    /// Removes every entry, at once.
    ///
    /// # Errors
    /// `LockLost` if another process took this one for dead meanwhile. Then the entries stay.
    pub(crate) fn clear(&self) -> Result<()> {
        let reservation = self.reserve(&CLEAR)?;
        self.clear_under(self.lock_clear()?, reservation)
    }

    /// Makes the clear of a dead process void, if there is one that did not take effect.
    pub(crate) fn end_clear_of_dead(&self) -> Result<()> {
        if self.index.is_clearing() {
            self.lock_clear()?.unlock()?;
        }
        Ok(())
    }

    /// The generation, after every `clear` that took its sequence before this call has finished.
    pub(crate) fn settled_generation(&self) -> Result<u32> {
        self.end_clear_of_dead()?;
        self.index.settled_count();
        Ok(self.index.generation())
    }

    /// Takes the lock of `clear`. If its last owner died before its clear took effect, it never
    /// will: entries were written since, and must stay.
    fn lock_clear(&self) -> Result<ClearLock<'_>> {
        let lock = self.index.lock_clear()?;
        if lock.is_unfinished() {
            self.void_clear_of_dead()?;
            lock.note_voided();
        }
        Ok(lock)
    }

    /// Makes the record of a clear that did not take effect void, durably: a recovery would apply
    /// it to everything that was written since.
    fn void_clear_of_dead(&self) -> Result<()> {
        let word = self.index.clear_record();
        if !word.is_entry() {
            return Ok(());
        }
        let guard = self.log.fetch(word.segment())?;
        let Some(segment) = guard.get() else { return Ok(()) };
        let next = self.index.generation().wrapping_add(1);
        let is_it = |record: Record<'_>| record.kind == Kind::Clear && record.generation == next;
        if segment.record(word.offset()).is_some_and(is_it) {
            segment.void(word.offset());
            segment.mark_dirty();
            segment.sync()?;
            tracing::debug!(dir = %self.dir.display(), "a dead process's clear is void");
        }
        Ok(())
    }

    /// Stamps the record of a clear that begins generation `next`.
    pub(crate) fn stamp_clear(&self, reservation: &RecordReservation, next: u32) -> Result<()> {
        let RecordReservation { segment, offset, len, .. } = reservation;
        self.index.set_clear_record(Word::new(0, segment.id, *offset));
        let prepared = segment.prepare(*offset, *len, CLEAR, &[], [&[], &[]]);
        let stamp =
            Stamp { sequence: self.index.next_sequence(), generation: next, expires_at: None };
        if planted!("record of a clear") {
            Ok(())
        } else {
            self.stamp(reservation, &prepared, stamp)
        }
    }

    // Keeps invariant I16.
    pub(crate) fn clear_under(
        &self,
        lock: ClearLock<'_>,
        reservation: RecordReservation,
    ) -> Result<()> {
        let Some(next) = self.index.generation().checked_add(1) else {
            let why = "4,294,967,295 clears are the most that a directory can have; remove it";
            return Err(Error::new(ErrorKind::Overflow, "clear")
                .with_path(&self.dir)
                .with_source(why));
        };
        self.stamp_clear(&reservation, next)?;
        step!("clear::stamped");
        // Synced before it takes effect, because a clear cannot be undone.
        self.sync_if_asked(reservation, |segment, offset| segment.void(offset))?;
        // A process that took over the lock has made the record void.
        lock.check()?;
        self.index.begin_generation(next);
        let unlocked = lock.unlock();
        self.hot.clear();
        self.bell.ring_for_sweep();
        Ok(unlocked?)
    }
}
