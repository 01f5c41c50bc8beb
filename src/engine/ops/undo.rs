//! Undo: reverts a published change that the disk refused to sync. Its caller gets an error, so the
//! change must not stay.
//!
//! Other threads and processes may have read the change, or have changed the key again since. Their
//! changes stay.

use crate::engine::Engine;
use crate::engine::format::word::Word;
use crate::engine::hints::Hint;
use crate::engine::index::{CountUp, SegmentState, Vacancy};
use crate::engine::log::segment::Segment;
use crate::engine::ops::commit::AppliedChange;

impl Engine {
    /// Restores what the key had before, if it still names the published record, and voids the
    /// record in the log.
    pub(crate) fn take_back(&self, segment: &Segment, published: AppliedChange) {
        // The previous record must not be in a segment that is just being removed, so this holds
        // the space role. Without the role that is unknown, and the key is removed.
        let role = self.space_role();
        let is_there = |word: Word| {
            use SegmentState::{Active, Sealed};
            matches!(self.index.segment_state(word.segment()), Some(Active | Sealed))
                && self.header_of(word).is_some()
        };
        // Read before the lock is taken, because the page may have to be read from the disk.
        let before = published.before.filter(|current| role.is_ok() && is_there(current.word));
        let Ok(locked) = self.index.lock(published.hash) else { return };
        self.note_wiped(locked.wiped());
        let holds = |word| self.index.slot_of(published.hash, word);
        let slot = match published.word {
            Some(word) => holds(word),
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
                None => {
                    locked.clear(slot);
                    if published.before.is_some() {
                        locked.note_lost();
                        self.index.set_wants_recount(true);
                    }
                }
            }
        }
        drop(locked);
        segment.void(published.offset);
    }
}
