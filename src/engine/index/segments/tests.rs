use super::*;
use crate::engine::format::geometry::Geometry;
use SegmentState::{Active, Creating, Dropped, Emptied, Sealed};

type State = Option<SegmentState>;
type Verb = (&'static str, fn(&Index, u32), &'static [(State, State)]);

/// Each verb, with the edges that it takes. In any other state it changes nothing.
const VERBS: [Verb; 9] = [
    ("activate", |index, id| _ = index.activate_segment(id), &[(Some(Creating), Some(Active))]),
    ("abort", |index, id| _ = index.abort_segment(id), &[(Some(Creating), Some(Emptied))]),
    ("seal", Index::seal_segment, &[(Some(Active), Some(Sealed))]),
    ("resume", |index, id| index.resume_segment(id, 64), &[(Some(Sealed), Some(Active))]),
    ("empty", |index, id| _ = index.empty_segment(id), &[(Some(Sealed), Some(Emptied))]),
    ("drop", Index::drop_segment, &[(Some(Emptied), Some(Dropped))]),
    (
        "free",
        Index::free_segment,
        &[
            (Some(Creating), None),
            (Some(Active), None),
            (Some(Emptied), None),
            (Some(Dropped), None),
        ],
    ),
    ("adopt", |index, id| _ = index.adopt_segment(id, Owner::NONE), &[]),
    ("orphan", Index::orphan_segment, &[]),
];

/// An index whose segment 1 is in `state`.
fn index_with(state: State) -> Index {
    let index = Index::in_memory(Geometry::for_entries(10, 16)).unwrap();
    let word = state.map_or(0, |state| 1 | (state as u64) << 32);
    index.segment_line(1)[0].store(word, Ordering::Release);
    index
}

#[test]
fn each_verb_takes_its_own_edges_and_no_other() {
    let states = [None, Some(Creating), Some(Active), Some(Sealed), Some(Emptied), Some(Dropped)];
    for (name, verb, edges) in VERBS {
        for from in states {
            let index = index_with(from);
            verb(&index, 1);
            let to = edges.iter().find(|edge| edge.0 == from).map_or(from, |edge| edge.1);
            assert_eq!(index.segment_state(1), to, "{name} of a segment that is {from:?}");
        }
    }
    // free -> creating, and free -> sealed when a directory is opened.
    let index = index_with(None);
    assert_eq!(index.create_segment(4096), Some(1));
    assert_eq!(index.segment_state(1), Some(Creating));
    let index = index_with(None);
    index.restore_segment(1, 4096);
    assert_eq!(index.segment_state(1), Some(Sealed));
}

#[test]
fn a_verb_leaves_another_segment_in_the_same_line_alone() {
    for (name, verb, _) in VERBS {
        let index = index_with(Some(Active));
        verb(&index, 1 + index.geometry().segments);
        assert_eq!(index.segment_state(1), Some(Active), "{name}");
    }
}
