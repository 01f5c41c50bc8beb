//! A scan of a segment: all its sound records, in time that is linear in its length, whatever its
//! bytes are.
//!
//! Behind damage a scan tries each aligned offset. Each try reads a header and a key, and a key has
//! up to 64 KiB: bytes that look like a header with a long key at each offset would make the scan
//! quadratic. So tries that fail have an [`Allowance`].

use super::segment::Segment;
use crate::engine::format::record::{self, Record};
use crate::engine::format::segment_header;
use crate::engine::format::word::MAX_OFFSET;

/// A scan spends at most this many times the length of the segment on tries with long keys that
/// fail. One damaged record costs its own length at most, and this often its neighbours.
const ALLOWANCE: u64 = 4;
/// A try with a key up to this long is always made.
const SHORT_KEY: usize = 256;
/// The bytes that a scan checks at most, for each byte of the segment: the allowance, a header and
/// a short key at each aligned offset, and once more what is sound.
#[cfg(test)]
pub(crate) const MOST_PER_BYTE: u64 = ALLOWANCE + (SHORT_KEY + record::HEADER_LEN) as u64 / 8 + 1;

impl Segment {
    /// All sound records with their offsets, from the first. Skips records that were reserved and
    /// never stamped, and damage. Reads headers and keys only.
    pub(crate) fn records(&self) -> Scan<'_> {
        self.will_need(0, self.len() as usize);
        self.records_from(0)
    }

    /// The same from `offset` on, which is where a record begins or the end of what was begun.
    pub(crate) fn records_from(&self, offset: u32) -> Scan<'_> {
        Scan::new(self, offset)
    }

    /// The end of what was begun, even in a damaged segment: everything from there on is zero.
    /// `from` is where a record begins, or behind all records.
    pub(crate) fn end(&self, from: u32) -> u32 {
        let from = from.clamp(segment_header::LEN as u32, self.len() as u32);
        let (mut at, mut end) = (from, from);
        let mut allowance = Allowance::new(self);
        while u64::from(at) < MAX_OFFSET && u64::from(at) + record::HEADER_LEN as u64 <= self.len()
        {
            // A reservation ends where its length says, even if nothing else was written to it.
            end = end.max(at + self.stored_len(at).unwrap_or(0));
            let sound = allowance.record(self, at);
            at = sound.map_or_else(|| self.after_unsound(at), |record| at + record.len);
        }
        end.max(self.end_of_bytes())
    }
}

/// What is left for tries that fail.
pub(crate) struct Allowance {
    left: u64,
    /// The bytes that were checked.
    #[cfg(test)]
    pub(crate) checked: u64,
}

impl Allowance {
    pub(crate) fn new(segment: &Segment) -> Self {
        Self {
            left: segment.len() * ALLOWANCE,
            #[cfg(test)]
            checked: 0,
        }
    }

    /// The record at `offset`, if it is sound; `None` also if its key is long and nothing is left.
    pub(crate) fn record<'a>(&mut self, segment: &'a Segment, offset: u32) -> Option<Record<'a>> {
        let key_len = segment.key_len(offset)?;
        let cost = (record::HEADER_LEN + key_len) as u64;
        if key_len > SHORT_KEY && self.left < cost {
            return None;
        }
        #[cfg(test)]
        {
            self.checked += cost;
        }
        let sound = segment.record(offset);
        if sound.is_none() && key_len > SHORT_KEY {
            self.left -= cost;
        }
        sound
    }
}

/// All sound records of a segment with their offsets.
pub(crate) struct Scan<'a> {
    segment: &'a Segment,
    offset: u32,
    allowance: Allowance,
}

impl<'a> Scan<'a> {
    /// From `offset` on, which is where a record begins or the end of what was begun.
    pub(crate) fn new(segment: &'a Segment, offset: u32) -> Self {
        let offset = offset.max(segment_header::LEN as u32);
        Self { segment, offset, allowance: Allowance::new(segment) }
    }

    #[cfg(test)]
    pub(crate) fn checked(&self) -> u64 {
        self.allowance.checked
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = (u32, Record<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        // Nothing is written where an entry word cannot reach.
        while u64::from(self.offset) < MAX_OFFSET
            && u64::from(self.offset) + record::HEADER_LEN as u64 <= self.segment.len()
        {
            let at = self.offset;
            if let Some(record) = self.allowance.record(self.segment, at) {
                self.offset += record.len;
                return Some((at, record));
            }
            self.offset = self.segment.after_unsound(at);
        }
        None
    }
}
