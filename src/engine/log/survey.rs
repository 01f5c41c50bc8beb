//! A survey of a segment: whether each record begins where the one before it ends.

use super::scan::Allowance;
use super::segment::Segment;
use crate::engine::format::record;
use crate::engine::format::segment_header;
use crate::engine::format::word::MAX_OFFSET;

/// What a pass over the headers of a segment finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Survey {
    /// The first offset at which a record is missing: neither a record nor a reservation begins
    /// there, although the log does not end there.
    pub(crate) gap: Option<u32>,
    /// The end of what was begun.
    pub(crate) end: u32,
    /// Everything before this offset was synced once. The record here says so.
    pub(crate) synced: u32,
    /// The highest sequence.
    pub(crate) last_sequence: u64,
}

impl Segment {
    /// Surveys the segment from `from` on, where a record begins. The log is known to reach to
    /// `tail`, or further.
    pub(crate) fn survey(&self, from: u32, tail: u32) -> Survey {
        let mut at = from.max(segment_header::LEN as u32);
        let mut found = Survey { gap: None, end: at, synced: 0, last_sequence: 0 };
        let mut allowance = Allowance::new(self);
        while u64::from(at) < MAX_OFFSET && u64::from(at) + record::HEADER_LEN as u64 <= self.len()
        {
            if let Some(record) = allowance.record(self, at) {
                found.last_sequence = found.last_sequence.max(record.sequence);
                if record.is_after_sync {
                    found.synced = at;
                }
                at += record.len;
            } else if let Some(next) = self.behind_unstamped(at) {
                at = next;
            } else {
                let next = self.after_unsound(at);
                if self.is_zero(at) && u64::from(next) >= self.len() {
                    break;
                }
                found.gap.get_or_insert(at);
                at = next;
            }
            found.end = at.min(self.len() as u32);
        }
        if found.end < tail {
            found.gap.get_or_insert(found.end);
        }
        found
    }
}
