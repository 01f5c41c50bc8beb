//! Candidates: which sealed segment is emptied next. Pure decisions.

use crate::engine::index::SegmentInfo;
use crate::engine::ops::compaction::{COPY_SHARE, Evacuate};

/// Without need for space, a segment is compacted if at most 1 in this many of its bytes is live.
const IDLE_SHARE: u64 = 2;
/// Dead bytes are left alone while they are fewer than this many segments, or than the live bytes.
const SLACK_SEGMENTS: u64 = 4;

/// A sealed segment, for the choice of the next to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) len: u64,
    pub(crate) live: u64,
    /// The disk refused to sync it.
    pub(crate) failed: bool,
}

impl From<SegmentInfo> for Candidate {
    fn from(segment: SegmentInfo) -> Self {
        let SegmentInfo { id, len, live, failed, .. } = segment;
        Self { id, len, live, failed }
    }
}

/// The segment to empty next when space is needed, of all sealed ones, oldest first.
/// Keeps invariant I33.
pub(crate) fn choose(sealed: &[Candidate]) -> Option<(u32, Evacuate)> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some((failed.id, Evacuate::Copy));
    }
    match emptiest(sealed) {
        Some(c) if c.live <= c.len / COPY_SHARE => Some((c.id, Evacuate::Copy)),
        _ => sealed.first().map(|oldest| (oldest.id, Evacuate::Evict)),
    }
}

/// The segment to compact without need for space: one only if much is dead. `quiet`: there are no
/// writers.
pub(crate) fn choose_idle(sealed: &[Candidate], segment_len: u64, quiet: bool) -> Option<u32> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some(failed.id);
    }
    let emptiest = emptiest(sealed)?;
    let (len, live) =
        sealed.iter().fold((0, 0), |(len, live), c| (len + c.len, live + c.live.min(c.len)));
    let much = len - live > live.max(SLACK_SEGMENTS * segment_len);
    let share = if quiet { IDLE_SHARE } else { COPY_SHARE };
    (emptiest.live == 0 || (much && emptiest.live <= emptiest.len / share)).then_some(emptiest.id)
}

/// The candidate with the smallest live share; the oldest of several.
fn emptiest(sealed: &[Candidate]) -> Option<&Candidate> {
    sealed.iter().min_by_key(|c| u128::from(c.live) * (1 << 20) / u128::from(c.len.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(live: &[u64]) -> Vec<Candidate> {
        let of = |(id, live): (usize, &u64)| Candidate {
            id: id as u32 + 1,
            len: 100,
            live: *live,
            failed: false,
        };
        live.iter().enumerate().map(of).collect()
    }

    #[test]
    fn nearly_dead_is_compacted_else_the_oldest_is_evicted() {
        assert_eq!(choose(&candidates(&[90, 20, 60])), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&candidates(&[90, 21, 60])), Some((1, Evacuate::Evict)));
        assert_eq!(choose(&candidates(&[90, 0, 0])), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_failed_segment_is_emptied_first() {
        let mut all = candidates(&[0, 90]);
        all[1].failed = true;
        assert_eq!(choose(&all), Some((2, Evacuate::Copy)));
        assert_eq!(choose_idle(&all, 100, false), Some(2));
    }

    #[test]
    fn without_need_only_much_dead_space_is_compacted() {
        assert_eq!(choose_idle(&candidates(&[90, 30, 80]), 100, true), None, "little is dead");
        assert_eq!(choose_idle(&candidates(&[90, 0, 80]), 100, false), Some(2), "costs nothing");
        let sparse = candidates(&[40, 30, 40, 40, 40, 40, 40, 40]);
        assert_eq!(choose_idle(&sparse, 100, false), None, "there is a writer");
        assert_eq!(choose_idle(&sparse, 100, true), Some(2));
    }
}
