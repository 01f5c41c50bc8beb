//! `clear`: begins a new generation, which removes all entries of older generations at once.

use crate::engine::Engine;
use crate::engine::format::record::{Draft, Kind, Stamp};
use crate::engine::index::ClearLock;
use crate::engine::log::append::RecordReservation;
use crate::entry::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;

/// The record of a `clear`.
pub(crate) const CLEAR: Draft =
    Draft { kind: Kind::Clear, codec: Codec::Raw, flags: 0, key_len: 0, body_len: 0 };

impl Engine {
    /// Removes every entry, at once.
    ///
    /// # Errors
    /// `LockLost` if another process took this one for dead meanwhile. That process has removed the
    /// entries, or will.
    pub(crate) fn clear(&self) -> Result<()> {
        let reservation = self.reserve(&CLEAR)?;
        self.clear_under(self.index.lock_clear()?, reservation)
    }

    /// Finishes the clear of a dead process, if there is one: a recovery must not be the
    /// first to apply its record.
    pub(crate) fn end_clear_of_dead(&self) -> Result<()> {
        if !self.index.is_clearing() {
            return Ok(());
        }
        let reservation = self.reserve(&CLEAR)?;
        let lock = self.index.lock_clear()?;
        if lock.unfinished { self.clear_under(lock, reservation) } else { Ok(()) }
    }

    /// The generation, after every `clear` that took its sequence before this call has finished.
    pub(crate) fn settled_generation(&self) -> Result<u32> {
        if self.index.is_clearing() {
            // The caller holds the space role, so no other process makes room. The space that is
            // reserved for copies serves instead.
            let len = self.log.len_of(&CLEAR)?;
            let reservation = match self.log.reserve(len)? {
                Some(reservation) => reservation,
                None => self.log.reserve_copy(&mut self.log.copies(), len)?,
            };
            let lock = self.index.lock_clear()?;
            if lock.unfinished {
                self.clear_under(lock, reservation)?;
            }
        }
        Ok(self.index.generation())
    }

    // Keeps invariant I16.
    pub(crate) fn clear_under(
        &self,
        lock: ClearLock<'_>,
        reservation: RecordReservation,
    ) -> Result<()> {
        let prepared = reservation.segment.prepare(
            reservation.offset,
            reservation.len,
            CLEAR,
            &[],
            [&[], &[]],
        );
        let Some(next) = self.index.generation().checked_add(1) else {
            let why = "4,294,967,295 clears are the most that a directory can have; remove it";
            return Err(Error::new(ErrorKind::Overflow, "clear")
                .with_path(&self.dir)
                .with_source(why));
        };
        let stamp =
            Stamp { sequence: self.index.next_sequence(), generation: next, expires_at: None };
        reservation.segment.stamp(reservation.offset, &prepared, stamp);
        step!("clear::stamped");
        // Synced before it takes effect, because a clear cannot be undone.
        self.sync_if_asked(reservation, |segment, offset| segment.void(offset))?;
        // A process that took over the lock has begun the generation, or will.
        lock.check()?;
        self.index.begin_generation(next);
        let unlocked = lock.unlock();
        self.hot.clear();
        self.bell.ring_for_sweep();
        Ok(unlocked?)
    }
}
