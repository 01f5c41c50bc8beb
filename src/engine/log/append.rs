//! The tail of a segment: where this process appends.

use std::sync::Arc;

use crate::engine::format::word::MAX_OFFSET;
use crate::engine::index::Index;
use crate::engine::log::segment::Segment;
use crate::error::Result;

/// Stores into pages that a `pwrite` made are several times cheaper than stores that fault on an
/// unwritten extent. The background thread fills the next segment with zeros. A segment that was
/// created while a writer waited is filled this many bytes ahead of its tail, by the writing call.
const ZERO_AHEAD: u32 = 64 << 10;

/// A segment that this process appends to.
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    pub(crate) end: u32,
    zeroed: u32,
    /// All records before this offset were finished at the last check.
    drained: u32,
}

/// Space for one record in a segment.
pub(crate) struct RecordReservation {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Drop for RecordReservation {
    fn drop(&mut self) {
        self.segment.finish();
    }
}

impl Tail {
    pub(crate) fn new(segment: Arc<Segment>, end: u32) -> Self {
        let zeroed = if segment.is_zeroed() { segment.len() as u32 } else { end };
        Self { segment, end, zeroed, drained: end }
    }

    /// Whether there is room for a record of `len` bytes, and no sync of the segment failed.
    pub(crate) fn has_room(&self, len: u32, index: &Index) -> bool {
        // A segment with a large record may be longer than an entry word can address.
        let reachable = u64::from(self.end) < MAX_OFFSET;
        reachable
            && u64::from(self.end) + u64::from(len) <= self.segment.len()
            && index.may_append(self.segment.id)
    }

    /// Reserves space for a record of `len` bytes, for which there is room.
    pub(crate) fn reserve(&mut self, len: u32, index: &Index) -> Result<RecordReservation> {
        let offset = self.end;
        let end = offset + len;
        if end > self.zeroed {
            let ahead = end.saturating_add(ZERO_AHEAD).min(self.segment.len() as u32);
            self.segment.zero(self.zeroed, ahead)?;
            self.zeroed = ahead;
        }
        if self.segment.is_drained() {
            self.drained = offset;
        }
        self.segment.begin(offset, len);
        self.end = end;
        index.set_segment_tail(self.segment.id, self.drained, end);
        Ok(RecordReservation { segment: self.segment.clone(), offset, len })
    }
}
