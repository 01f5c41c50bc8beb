//! The segment table: which segments there are, as all processes see it.
//!
//! A line of a segment, at the place that the low bits of its id say:
//!
//! ```text
//! 0  id (32) | state (8) | synced | failed        1  owner (32) | length in units of 4 KiB (32)
//! 2  where it is finished (32) | tail (32)        3  live bytes
//! 4  the recency clock when it was sealed, or what the count of drops was when it was removed
//! ```

use super::Index;
use crate::engine::format::index_header::{LINE, SEGMENTS_AT, at};
use crate::sys::atomic::{AtomicU64, Ordering};

/// Lengths are stored in units of this many bytes.
const LEN_UNIT: u64 = 4096;
const LOW: u64 = 0xffff_ffff;
const STATE: u64 = 0xff << 32;
/// All that was written is on the disk, and nothing more will be written.
const SYNCED: u64 = 1 << 40;
/// The disk refused to sync it.
const FAILED: u64 = 1 << 41;

/// The state of a segment, as all processes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SegmentState {
    /// Its file is being made.
    Unborn = 1,
    /// Its owner appends to it, or will. If its owner is gone, whoever needs a segment may go on with it.
    Active = 2,
    Sealed = 3,
    /// No entry names it any more; a recovery may need it.
    Emptied = 4,
    /// Its file is removed; other processes may have it mapped still.
    Dropped = 5,
}

/// What the table says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    pub(crate) id: u32,
    pub(crate) state: SegmentState,
    pub(crate) synced: bool,
    pub(crate) failed: bool,
    pub(crate) owner: u32,
    pub(crate) len: u64,
    /// What lies before this place is finished.
    pub(crate) finished: u32,
    /// Nothing was begun from here on.
    pub(crate) tail: u32,
    pub(crate) live: u64,
    /// What the recency clock said when it was sealed.
    pub(crate) sealed_at: u32,
}

/// No segment has a higher id: a file that has was planted, and is passed over, or there would be no ids left after it.
pub(crate) const HIGHEST_SEGMENT: u32 = u32::MAX - (1 << 24);

type Line = [AtomicU64];

fn state_of(word: u64) -> Option<SegmentState> {
    use SegmentState::{Active, Dropped, Emptied, Sealed, Unborn};
    [Unborn, Active, Sealed, Emptied, Dropped]
        .into_iter()
        .find(|s| *s as u64 == (word & STATE) >> 32)
}

fn info(line: &Line) -> Option<SegmentInfo> {
    let word = line[0].load(Ordering::Acquire);
    let (owner, places) = (line[1].load(Ordering::Acquire), line[2].load(Ordering::Acquire));
    Some(SegmentInfo {
        id: word as u32,
        state: state_of(word)?,
        synced: word & SYNCED != 0,
        failed: word & FAILED != 0,
        owner: owner as u32,
        len: (owner >> 32) * LEN_UNIT,
        finished: places as u32,
        tail: (places >> 32) as u32,
        live: (line[3].load(Ordering::Relaxed) as i64).max(0) as u64,
        sealed_at: line[4].load(Ordering::Relaxed) as u32,
    })
}

impl Index {
    fn segment_line(&self, id: u32) -> &Line {
        let at = SEGMENTS_AT + (id & (self.geometry.segments - 1)) as usize * LINE;
        &self.words()[at..at + LINE]
    }

    /// The line of segment `id`, if it is that one's.
    fn line_of(&self, id: u32) -> Option<&Line> {
        let line = self.segment_line(id);
        (line[0].load(Ordering::Acquire) as u32 == id).then_some(line)
    }

    /// Every segment there is, in any order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentInfo> {
        let table =
            &self.words()[SEGMENTS_AT..SEGMENTS_AT + self.geometry.segments as usize * LINE];
        table
            .chunks_exact(LINE)
            .filter(|line| line[0].load(Ordering::Acquire) != 0)
            .filter_map(info)
    }

    /// Those in `state`, oldest first.
    pub(crate) fn segments_in(&self, state: SegmentState) -> Vec<SegmentInfo> {
        let mut found: Vec<_> = self.segments().filter(|segment| segment.state == state).collect();
        found.sort_unstable_by_key(|segment| segment.id);
        found
    }

    pub(crate) fn segment(&self, id: u32) -> Option<SegmentInfo> {
        self.line_of(id).and_then(info).filter(|segment| segment.id == id)
    }

    /// The state of segment `id`, `None` if the table has no such segment.
    pub(crate) fn segment_state(&self, id: u32) -> Option<SegmentState> {
        let word = self.segment_line(id)[0].load(Ordering::Acquire);
        if word as u32 == id { state_of(word) } else { None }
    }

    /// Whether this process may append to its segment `id`: nobody found that the disk refuses it.
    pub(crate) fn may_append(&self, id: u32) -> bool {
        let word = self.segment_line(id)[0].load(Ordering::Relaxed);
        word == u64::from(id) | (SegmentState::Active as u64) << 32
    }

    /// Takes an id that was never used and whose place in the table is free, for a segment of `len` bytes that this process is
    /// about to make. `None` if no place is free, or no id is left. Ids never come back: whoever is refused uses none up.
    /// Keeps invariant I8: no id is used twice.
    pub(crate) fn begin_segment(&self, len: u64) -> Option<u32> {
        let next = &self.words()[at::NEXT_SEGMENT];
        loop {
            let unused = next.load(Ordering::Acquire);
            let end = unused.saturating_add(u64::from(self.geometry.segments));
            let mut ids = unused.max(1)..end.min(u64::from(HIGHEST_SEGMENT) + 1);
            let id = ids.find(|id| self.segment_line(*id as u32)[0].load(Ordering::Acquire) == 0)?
                as u32;
            let after = u64::from(id) + 1;
            if next.compare_exchange(unused, after, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // The id is this process's; whoever took a later one may have been faster with the place.
            let line = self.segment_line(id);
            let word = u64::from(id) | (SegmentState::Unborn as u64) << 32;
            if line[0].compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                line[1].store(self.owner_and_len(len), Ordering::Release);
                line[2..].iter().for_each(|word| word.store(0, Ordering::Release));
                return Some(id);
            }
        }
    }

    /// Whether no segment can be begun any more, as all ids were used.
    pub(crate) fn are_ids_used_up(&self) -> bool {
        self.unused_segment_id() > u64::from(HIGHEST_SEGMENT)
    }

    fn owner_and_len(&self, len: u64) -> u64 {
        u64::from(self.owner()) | len.div_ceil(LEN_UNIT) << 32
    }

    /// Enters a segment that was found when nobody was attached.
    pub(crate) fn enter_segment(&self, id: u32, len: u64) {
        let line = self.segment_line(id);
        if line[0].load(Ordering::Acquire) as u32 != id {
            line.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        line[1].store(len.div_ceil(LEN_UNIT) << 32, Ordering::Release);
        line[0].store(u64::from(id) | (SegmentState::Sealed as u64) << 32, Ordering::Release);
    }

    /// Frees the places of all segments but those that `is_there` says are there. Nobody else is attached.
    pub(crate) fn retain_segments(&self, is_there: impl Fn(u32) -> bool) {
        let table =
            &self.words()[SEGMENTS_AT..SEGMENTS_AT + self.geometry.segments as usize * LINE];
        for line in table.chunks_exact(LINE) {
            let id = line[0].load(Ordering::Relaxed) as u32;
            if !is_there(id) || self.segment_line(id).as_ptr() != line.as_ptr() {
                line.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
    }

    /// Changes the state of segment `id` from `from` to `to`, and says whether it was `from`.
    pub(crate) fn move_segment(&self, id: u32, from: SegmentState, to: SegmentState) -> bool {
        let Some(line) = self.line_of(id) else { return false };
        let change = |word: u64| {
            let is_so = word as u32 == id && state_of(word) == Some(from);
            is_so.then_some(word & !STATE | (to as u64) << 32)
        };
        line[0].fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    fn flag_segment(&self, id: u32, flag: u64) {
        if let Some(line) = self.line_of(id) {
            let add = |word: u64| (word as u32 == id).then_some(word | flag);
            let _ = line[0].fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        }
    }

    /// Says that all of segment `id` is on the disk; nobody writes to it any more.
    pub(crate) fn set_segment_synced(&self, id: u32) {
        self.flag_segment(id, SYNCED);
    }

    /// Says that the disk refused to sync segment `id`.
    pub(crate) fn set_segment_failed(&self, id: u32) {
        self.flag_segment(id, FAILED);
    }

    /// Frees the place of segment `id`.
    pub(crate) fn free_segment(&self, id: u32) {
        if let Some(line) = self.line_of(id) {
            // In this order: a new one in its place has no owner until it has its own.
            line[1].store(0, Ordering::Release);
            line[0].store(0, Ordering::Release);
        }
    }

    /// Says that the file of segment `id` is gone. Its space counts until everybody has let go of it.
    /// Keeps invariant I28.
    pub(crate) fn drop_segment(&self, id: u32) {
        let Some(line) = self.line_of(id) else { return };
        line[4].store(u64::MAX, Ordering::Release);
        // In this order: whoever has seen the new count sees that it is dropped.
        if self.move_segment(id, SegmentState::Emptied, SegmentState::Dropped) {
            let drops = self.words()[at::DROPS].fetch_add(1, Ordering::AcqRel) + 1;
            line[4].store(drops, Ordering::Release);
        }
    }

    /// How many segments were dropped, ever.
    pub(crate) fn drops(&self) -> u64 {
        self.words()[at::DROPS].load(Ordering::Acquire)
    }

    /// Frees the places of dropped segments that everybody has let go of: all who are attached have seen as many
    /// drops as `seen`.
    pub(crate) fn free_dropped(&self, seen: u64) {
        for segment in self.segments().filter(|segment| segment.state == SegmentState::Dropped) {
            let Some(line) = self.line_of(segment.id) else { continue };
            let mut drop = line[4].load(Ordering::Acquire);
            if drop == u64::MAX {
                // Who removed it died before it was counted. Whoever calls this has the turn to remove.
                drop = self.words()[at::DROPS].fetch_add(1, Ordering::AcqRel) + 1;
                line[4].store(drop, Ordering::Release);
            }
            if drop <= seen {
                self.free_segment(segment.id);
            }
        }
    }

    /// Says how far segment `id`, which this process appends to, is finished, and where it ends.
    pub(crate) fn set_segment_tail(&self, id: u32, finished: u32, tail: u32) {
        self.segment_line(id)[2]
            .store(u64::from(finished) | u64::from(tail) << 32, Ordering::Release);
    }

    /// Makes this process the owner of segment `id`, if that is an orphan whose owner was `from`.
    /// Keeps invariant I26.
    pub(crate) fn adopt_segment(&self, id: u32, from: u32) -> bool {
        let Some(line) = self.line_of(id) else { return false };
        let own = |word: u64| word & !LOW | u64::from(self.owner());
        let take = |word: u64| (word as u32 == from).then(|| own(word));
        let Ok(was) = line[1].fetch_update(Ordering::AcqRel, Ordering::Acquire, take) else {
            return false;
        };
        if self.segment_state(id) == Some(SegmentState::Active) {
            return true;
        }
        // It went meanwhile, and its place may be another one's, of the same owner or none. That has to be free for others.
        let _ = line[1].compare_exchange(own(was), was, Ordering::AcqRel, Ordering::Relaxed);
        false
    }

    /// Leaves segment `id`, which this process appended to, to whoever needs one.
    pub(crate) fn leave_segment(&self, id: u32) {
        if let Some(line) = self.line_of(id) {
            line[1].fetch_and(!LOW, Ordering::AcqRel);
        }
    }

    /// Takes no more records in segment `id`, which this process owns and all of whose records are finished.
    pub(crate) fn seal_segment(&self, id: u32) {
        let Some(line) = self.line_of(id) else { return };
        line[4].store(u64::from(self.recency()), Ordering::Relaxed);
        if self.move_segment(id, SegmentState::Active, SegmentState::Sealed) {
            let tail = line[2].load(Ordering::Acquire) >> 32;
            self.words()[at::LOGGED].fetch_add(tail, Ordering::AcqRel);
        }
    }

    /// Segments that take records and whose owner is gone.
    pub(crate) fn orphans(&self) -> Vec<SegmentInfo> {
        let mut active = self.segments_in(SegmentState::Active);
        active.retain(|segment| segment.owner == 0 || !self.is_alive(segment.owner));
        active
    }

    /// The bytes that records took in all segments, ever.
    pub(crate) fn logged(&self) -> u64 {
        let active = self.segments().filter(|segment| segment.state == SegmentState::Active);
        let tails = active.map(|segment| u64::from(segment.tail)).sum();
        self.words()[at::LOGGED].load(Ordering::Acquire).wrapping_add(tails)
    }

    /// Counts what was logged before this life.
    pub(crate) fn add_logged(&self, bytes: u64) {
        self.words()[at::LOGGED].fetch_add(bytes, Ordering::AcqRel);
    }

    /// The bytes that all segments take.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.len).fold(0, u64::saturating_add)
    }

    /// Counts `delta` more live bytes in segment `id`. A guide, not a promise: a crash in between loses one.
    pub(crate) fn add_live_bytes(&self, id: u32, delta: i64) {
        let line = self.segment_line(id);
        if line[0].load(Ordering::Relaxed) as u32 == id {
            line[3].fetch_add(delta as u64, Ordering::Relaxed);
        }
    }

    /// Sets the count of live bytes in segment `id`.
    pub(crate) fn set_live_bytes(&self, id: u32, live: u64) {
        let line = self.segment_line(id);
        if line[0].load(Ordering::Relaxed) as u32 == id {
            line[3].store(live, Ordering::Relaxed);
        }
    }
}
