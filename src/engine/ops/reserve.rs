//! Reserving space in the log for one record: the hot path, and where the next segment comes from.

use crate::engine::Engine;
use crate::engine::format::record::Draft;
use crate::engine::log::append::RecordReservation;
use crate::error::Result;

impl Engine {
    /// Space in the log for a record of this shape.
    pub(crate) fn reserve(&self, draft: &Draft) -> Result<RecordReservation> {
        let len = self.log.len_of(draft)?;
        loop {
            if let Some(reservation) = self.log.reserve(len)? {
                return Ok(reservation);
            }
            self.provide(len, false)?;
        }
    }

    /// Ensures that the next segment exists, and says whether it does. `ahead`: no writer waits for
    /// it; then this does not wait either.
    pub(crate) fn provide(&self, len: u32, ahead: bool) -> Result<bool> {
        if ahead {
            self.log.provide(len, true, &|bytes| self.claim_room(bytes), &|| Ok(false))
        } else {
            self.log.provide(len, false, &|bytes| self.make_space(bytes).map(Some), &|| {
                self.evict_oldest()
            })
        }
    }
}
