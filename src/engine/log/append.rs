//! The end of a segment that is appended to.

use std::sync::Arc;

use crate::engine::format::word::MAX_OFFSET;
use crate::engine::index::Index;
use crate::engine::log::segment::Segment;
use crate::error::Result;

/// Stores into pages that a `pwrite` made are several times cheaper than those that fault on an unwritten extent. The
/// background fills the next segment with zeros; one that was made in a hurry is filled this far ahead of its tail, in the
/// writing call.
const ZERO_AHEAD: u32 = 64 << 10;

/// A segment that is appended to.
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    pub(crate) end: u32,
    zeroed: u32,
    /// All records before this place were finished when somebody last looked.
    drained: u32,
}

/// Space for one record in a segment that is appended to.
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

    /// Whether there is room for a record of `len` bytes, and nobody found that the disk refuses the segment.
    pub(crate) fn has_room(&self, len: u32, index: &Index) -> bool {
        // Behind a large record a segment may go on beyond what an entry word reaches.
        let reachable = u64::from(self.end) < MAX_OFFSET;
        reachable
            && u64::from(self.end) + u64::from(len) <= self.segment.len()
            && index.may_append(self.segment.id)
    }

    /// Space for a record of `len` bytes, for which there is room.
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
