//! Candidates: which sealed segment is emptied next. Pure decisions.

use crate::engine::index::SegmentInfo;
use crate::engine::ops::compaction::{COPY_SHARE, Evacuate};
use crate::sys::planted;

/// Without need for space, a segment is compacted if at most 1 in this many of its bytes is live.
const IDLE_SHARE: u64 = 2;
/// Dead bytes are left alone while they are fewer than this many segments, or than the live bytes.
const SLACK_SEGMENTS: u64 = 4;
/// While less than half of the space is alive, a segment is compacted if that frees at least 1 in
/// this many of its bytes. Active segments take three eighths of the space at most, so the sealed
/// ones, which have the rest, are not fuller than that on average.
const LEAST_GAIN: u64 = 8;

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

/// The segment to empty next when space is needed, of all sealed ones, oldest first. `budget`: the
/// bytes for segments and blobs. `blobs`: those that live blobs take.
/// Keeps invariant I33.
pub(crate) fn choose(sealed: &[Candidate], blobs: u64, budget: u64) -> Option<(u32, Evacuate)> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some((failed.id, Evacuate::Copy));
    }
    let emptiest = emptiest(sealed)?;
    let most_copied = if blobs.saturating_add(live_bytes(sealed)) < budget / 2 {
        emptiest.len - emptiest.len / LEAST_GAIN
    } else {
        emptiest.len / COPY_SHARE
    };
    if emptiest.live <= most_copied {
        return Some((emptiest.id, Evacuate::Copy));
    }
    let oldest = if planted!("oldest") { sealed.last() } else { sealed.first() };
    oldest.map(|oldest| (oldest.id, Evacuate::Evict))
}

fn live_bytes(sealed: &[Candidate]) -> u64 {
    sealed.iter().map(|c| c.live.min(c.len)).sum()
}

/// The segment to compact without need for space: one only if much is dead. `quiet`: there are no
/// writers.
pub(crate) fn choose_idle(sealed: &[Candidate], segment_len: u64, quiet: bool) -> Option<u32> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some(failed.id);
    }
    let emptiest = emptiest(sealed)?;
    let (len, live) = (sealed.iter().map(|c| c.len).sum::<u64>(), live_bytes(sealed));
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
        let choose = |live: &[u64]| choose(&candidates(live), 0, 300);
        assert_eq!(choose(&[90, 20, 60]), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&[90, 21, 60]), Some((1, Evacuate::Evict)));
        assert_eq!(choose(&[90, 0, 0]), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&[]), None);
    }

    // Shows invariant I33.
    #[test]
    fn nothing_is_evicted_while_less_than_half_is_alive() {
        let sparse = candidates(&[50, 45, 50]);
        assert_eq!(choose(&sparse, 0, 300), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&sparse, 10, 300), Some((1, Evacuate::Evict)), "with the blobs");
        // Segments of live processes take the rest.
        assert_eq!(choose(&candidates(&[89]), 0, 300), Some((1, Evacuate::Evict)), "gains little");
        for budget in [80, 800, 8_000] {
            for live in 0..=100 {
                // Sealed segments that fill what the active ones leave.
                let sealed = candidates(&vec![live; budget / 100 * 5 / 8 + 1]);
                let (alive, chosen) = (live_bytes(&sealed), choose(&sealed, 0, budget as u64));
                let evicts = matches!(chosen, Some((_, Evacuate::Evict)));
                assert!(!evicts || alive >= budget as u64 / 2 || live > 88, "{budget} {live}");
            }
        }
    }

    #[test]
    fn a_failed_segment_is_emptied_first() {
        let mut all = candidates(&[0, 90]);
        all[1].failed = true;
        assert_eq!(choose(&all, 0, 200), Some((2, Evacuate::Copy)));
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
