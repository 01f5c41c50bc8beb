//! The segment table: every segment of the directory, as all processes see it.
//!
//! A segment has a row of its own, a cache line, at the position that the low bits of its id give:
//!
//! ```text
//! 0  id (32) | state (8) | synced | failed        1  owner (32) | length in units of 4 KiB (32)
//! 2  all is finished before this offset (32) | tail (32)        3  live bytes
//! 4  the recency clock when it was sealed; after its drop, the count of drops at that time
//! ```
//!
//! The states and their transitions are drawn in [`log`](crate::engine::log). Each transition is a
//! method here (`create_segment`, `activate_segment`, `seal_segment` and so on), and no other code
//! changes a state.

use super::Index;
use super::process_slot::Owner;
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
/// In word 4 of a row: the segment is being dropped, and the drop is not counted yet.
const UNCOUNTED: u64 = u64::MAX;

/// The state of a segment. A row without one is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SegmentState {
    /// Its owner creates the file.
    Creating = 1,
    /// Its owner appends to it. If the owner is gone, it is an orphan, which another process may
    /// adopt.
    Active = 2,
    /// Nothing is appended to it any more.
    Sealed = 3,
    /// No entry names it any more; a recovery may still need its file.
    Emptied = 4,
    /// Its file is removed; processes may still have it mapped.
    Dropped = 5,
}

/// A transition that is one compare-and-swap of the state. The other transitions begin or end in a
/// free row: `create_segment`, `restore_segment`, `free_segment`.
#[derive(Debug, Clone, Copy)]
enum Transition {
    Activate,
    Abort,
    Seal,
    Resume,
    Empty,
    Drop,
}

impl Transition {
    /// The states between which it leads.
    const fn ends(self) -> (SegmentState, SegmentState) {
        use SegmentState::{Active, Creating, Dropped, Emptied, Sealed};
        match self {
            Self::Activate => (Creating, Active),
            Self::Abort => (Creating, Emptied),
            Self::Seal => (Active, Sealed),
            Self::Resume => (Sealed, Active),
            Self::Empty => (Sealed, Emptied),
            Self::Drop => (Emptied, Dropped),
        }
    }
}

/// What the table says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    pub(crate) id: u32,
    pub(crate) state: SegmentState,
    pub(crate) synced: bool,
    pub(crate) failed: bool,
    pub(crate) owner: Owner,
    pub(crate) len: u64,
    /// All records before this offset are finished.
    pub(crate) finished: u32,
    /// No record was begun at or behind this offset.
    pub(crate) tail: u32,
    pub(crate) live: u64,
    /// The recency clock when it was sealed.
    pub(crate) sealed_at: u32,
}

/// No segment has a higher id. A file with a higher one was planted: it is skipped, because its id
/// would leave none for new segments.
pub(crate) const HIGHEST_SEGMENT: u32 = u32::MAX - (1 << 24);

type Line = [AtomicU64];

fn state_of(word: u64) -> Option<SegmentState> {
    use SegmentState::{Active, Creating, Dropped, Emptied, Sealed};
    [Creating, Active, Sealed, Emptied, Dropped]
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
        owner: Owner::from_bits(owner as u32),
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

    /// The row of segment `id`, if the table has that segment.
    fn line_of(&self, id: u32) -> Option<&Line> {
        let line = self.segment_line(id);
        (line[0].load(Ordering::Acquire) as u32 == id).then_some(line)
    }

    /// All segments, in any order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentInfo> {
        let table =
            &self.words()[SEGMENTS_AT..SEGMENTS_AT + self.geometry.segments as usize * LINE];
        table
            .chunks_exact(LINE)
            .filter(|line| line[0].load(Ordering::Acquire) != 0)
            .filter_map(info)
    }

    /// The segments in `state`, oldest first.
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

    /// Whether this process may append to its segment `id`: it is active, and no sync of it failed.
    pub(crate) fn may_append(&self, id: u32) -> bool {
        let word = self.segment_line(id)[0].load(Ordering::Relaxed);
        word == u64::from(id) | (SegmentState::Active as u64) << 32
    }

    /// free -> creating: takes an id that was never used, together with its free row, for a
    /// segment of `len` bytes that this process is about to create. `None` if no row is free or
    /// all ids are used; that consumes no id.
    /// Keeps invariant I8: no id is used twice.
    pub(crate) fn create_segment(&self, len: u64) -> Option<u32> {
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
            // The id is this process's. A process with a later id may have taken the row first.
            let line = self.segment_line(id);
            let word = u64::from(id) | (SegmentState::Creating as u64) << 32;
            if line[0].compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                line[1].store(self.owner_and_len(len), Ordering::Release);
                line[2..].iter().for_each(|word| word.store(0, Ordering::Release));
                return Some(id);
            }
        }
    }

    /// Whether all ids were used, so that no segment can be created any more.
    pub(crate) fn are_ids_used_up(&self) -> bool {
        self.unused_segment_id() > u64::from(HIGHEST_SEGMENT)
    }

    fn owner_and_len(&self, len: u64) -> u64 {
        u64::from(self.owner().bits()) | len.div_ceil(LEN_UNIT) << 32
    }

    /// free -> sealed: enters a segment whose file was found while no other process is attached. A
    /// row that the index has kept for it keeps its other words.
    pub(crate) fn restore_segment(&self, id: u32, len: u64) {
        let line = self.segment_line(id);
        if line[0].load(Ordering::Acquire) as u32 != id {
            line.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        line[1].store(len.div_ceil(LEN_UNIT) << 32, Ordering::Release);
        line[0].store(u64::from(id) | (SegmentState::Sealed as u64) << 32, Ordering::Release);
    }

    /// Frees the rows of all segments except those with `has_file`, while no other process is
    /// attached.
    pub(crate) fn retain_segments(&self, has_file: impl Fn(u32) -> bool) {
        let table =
            &self.words()[SEGMENTS_AT..SEGMENTS_AT + self.geometry.segments as usize * LINE];
        for line in table.chunks_exact(LINE) {
            let id = line[0].load(Ordering::Relaxed) as u32;
            if !has_file(id) || self.segment_line(id).as_ptr() != line.as_ptr() {
                line.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
    }

    /// Takes `edge`, if segment `id` is in the state where it begins. Returns whether it was.
    fn take_edge(&self, id: u32, edge: Transition) -> bool {
        let (from, to) = edge.ends();
        let Some(line) = self.line_of(id) else { return false };
        let change = |word: u64| {
            let is_there = word as u32 == id && state_of(word) == Some(from);
            is_there.then_some(word & !STATE | (to as u64) << 32)
        };
        line[0].fetch_update(Ordering::AcqRel, Ordering::Acquire, change).is_ok()
    }

    /// creating -> active: the file of segment `id`, which this process creates, is complete.
    /// `false` if another process took this one for dead and aborted the creation.
    pub(crate) fn activate_segment(&self, id: u32) -> bool {
        self.take_edge(id, Transition::Activate)
    }

    /// creating -> emptied: the owner of segment `id` is dead. `false` if it had activated it.
    pub(crate) fn abort_segment(&self, id: u32) -> bool {
        self.take_edge(id, Transition::Abort)
    }

    /// active -> sealed: nothing more is appended to segment `id`, which this process owns and all
    /// of whose records are finished.
    pub(crate) fn seal_segment(&self, id: u32) {
        let Some(line) = self.line_of(id) else { return };
        line[4].store(u64::from(self.recency()), Ordering::Relaxed);
        if self.take_edge(id, Transition::Seal) {
            let tail = line[2].load(Ordering::Acquire) >> 32;
            self.words()[at::LOGGED].fetch_add(tail, Ordering::AcqRel);
        }
    }

    /// sealed -> active: this process continues segment `id` at `end`, while no other process is
    /// attached.
    pub(crate) fn resume_segment(&self, id: u32, end: u32) {
        self.set_segment_tail(id, end, end);
        self.take_edge(id, Transition::Resume);
        self.adopt_segment(id, Owner::NONE);
    }

    /// sealed -> emptied: no entry names segment `id` any more.
    pub(crate) fn empty_segment(&self, id: u32) -> bool {
        self.take_edge(id, Transition::Empty)
    }

    /// emptied -> dropped: the file of segment `id` is removed. Its bytes count until all processes
    /// have unmapped it. Keeps invariant I28.
    pub(crate) fn drop_segment(&self, id: u32) {
        let Some(line) = self.line_of(id) else { return };
        line[4].store(UNCOUNTED, Ordering::Release);
        // In this order: a process that sees the new count sees that the segment is dropped.
        if self.take_edge(id, Transition::Drop) {
            let drops = self.words()[at::DROPS].fetch_add(1, Ordering::AcqRel) + 1;
            line[4].store(drops, Ordering::Release);
        }
    }

    /// any state but sealed -> free: the row of segment `id` serves another segment from now on.
    /// The caller is the only process that may take the segment further.
    pub(crate) fn free_segment(&self, id: u32) {
        let line = self.segment_line(id);
        let word = line[0].load(Ordering::Acquire);
        if word as u32 == id && state_of(word) != Some(SegmentState::Sealed) {
            // In this order: the next segment in this row has no owner until it stores its own.
            line[1].store(0, Ordering::Release);
            line[0].store(0, Ordering::Release);
        }
    }

    /// dropped -> free, for the segments that all processes have unmapped: each attached process
    /// has acknowledged `seen` drops or more. The caller holds the space role.
    pub(crate) fn free_dropped(&self, seen: u64) {
        for segment in self.segments().filter(|segment| segment.state == SegmentState::Dropped) {
            let Some(line) = self.line_of(segment.id) else { continue };
            let mut drop = line[4].load(Ordering::Acquire);
            if drop == UNCOUNTED {
                // The process that dropped it died before it counted the drop.
                drop = self.words()[at::DROPS].fetch_add(1, Ordering::AcqRel) + 1;
                line[4].store(drop, Ordering::Release);
            }
            if drop <= seen {
                self.free_segment(segment.id);
            }
        }
    }

    /// Gives the active segment `id`, whose owner `from` is gone, to this process. `false` if the
    /// segment has another owner or is not active any more. Keeps invariant I26.
    pub(crate) fn adopt_segment(&self, id: u32, from: Owner) -> bool {
        let Some(line) = self.line_of(id) else { return false };
        let own = |word: u64| word & !LOW | u64::from(self.owner().bits());
        let take = |word: u64| (word as u32 == from.bits()).then(|| own(word));
        let Ok(was) = line[1].fetch_update(Ordering::AcqRel, Ordering::Acquire, take) else {
            return false;
        };
        if self.segment_state(id) == Some(SegmentState::Active) {
            return true;
        }
        // It was sealed meanwhile, and its row may serve another segment, with the same owner or
        // none. Restore the owner, so that others can adopt that segment.
        let _ = line[1].compare_exchange(own(was), was, Ordering::AcqRel, Ordering::Relaxed);
        false
    }

    /// Makes segment `id`, which this process appended to, an orphan.
    pub(crate) fn orphan_segment(&self, id: u32) {
        if let Some(line) = self.line_of(id) {
            line[1].fetch_and(!LOW, Ordering::AcqRel);
        }
    }

    /// The orphans: active segments without an owner, or whose owner is dead.
    pub(crate) fn orphans(&self) -> Vec<SegmentInfo> {
        let mut active = self.segments_in(SegmentState::Active);
        active.retain(|segment| segment.owner.is_none() || !self.is_alive(segment.owner));
        active
    }

    /// The count of all drops.
    pub(crate) fn drops(&self) -> u64 {
        self.words()[at::DROPS].load(Ordering::Acquire)
    }

    fn flag_segment(&self, id: u32, flag: u64) {
        if let Some(line) = self.line_of(id) {
            let add = |word: u64| (word as u32 == id).then_some(word | flag);
            let _ = line[0].fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        }
    }

    /// Notes that all of segment `id` is on the disk, and nothing is appended to it any more.
    pub(crate) fn set_segment_synced(&self, id: u32) {
        self.flag_segment(id, SYNCED);
    }

    /// Notes that a sync of segment `id` failed.
    pub(crate) fn set_segment_failed(&self, id: u32) {
        self.flag_segment(id, FAILED);
    }

    /// Stores how far segment `id`, which this process appends to, is finished, and where it ends.
    pub(crate) fn set_segment_tail(&self, id: u32, finished: u32, tail: u32) {
        self.segment_line(id)[2]
            .store(u64::from(finished) | u64::from(tail) << 32, Ordering::Release);
    }

    /// The bytes that were appended in total.
    pub(crate) fn logged(&self) -> u64 {
        let active = self.segments().filter(|segment| segment.state == SegmentState::Active);
        let tails = active.map(|segment| u64::from(segment.tail)).sum();
        self.words()[at::LOGGED].load(Ordering::Acquire).wrapping_add(tails)
    }

    /// Counts bytes that were appended before the directory was opened.
    pub(crate) fn add_logged(&self, bytes: u64) {
        self.words()[at::LOGGED].fetch_add(bytes, Ordering::AcqRel);
    }

    /// The lengths of all segments.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.len).fold(0, u64::saturating_add)
    }

    /// Adds `delta` to the live bytes of segment `id`. An estimate: a crash loses the change.
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

#[cfg(test)]
mod tests;
