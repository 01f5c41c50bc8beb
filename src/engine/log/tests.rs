//! Shows invariant I26.

use super::*;
use crate::engine::format::geometry::Geometry;
use crate::engine::index::ProcessSlot;
use crate::options::Options;
use crate::sys::storage::{File, SYSTEM};

const BEGIN: u32 = segment_header::LEN as u32;

/// A log of one segment with a record in it.
fn log_with_a_record(dir: &Path) -> (Arc<Index>, Log) {
    let file = File::nameless().unwrap();
    let index = Index::create(&file, Geometry::for_entries(10, 16), ProcessSlot::alone()).unwrap();
    let index = Arc::new(index);
    let limits = Options { max_bytes: 2 << 20, ..Options::default() }.limits();
    index.set_limits(limits, limits);
    let space = SpaceInUse::default();
    let segment = Segment::create(SYSTEM, dir, 1, 16 << 10, false, &space).unwrap();
    let log = Log::new(SYSTEM, dir, Access::ToWrite, index.clone(), space).unwrap();
    log.restore(vec![segment], Some((1, BEGIN)));
    drop(log.reserve(64).unwrap().unwrap());
    (index, log)
}

fn segment_of(tail: &Option<Tail>) -> Arc<Segment> {
    tail.as_ref().unwrap().segment.clone()
}

/// Maps segment 1 a second time; the new mapping replaces the one in the map.
fn map_again(log: &Log) -> Arc<Segment> {
    let path = log.dir.join(Segment::file_name(1));
    let SegmentFile::Segment(again) =
        Segment::open(SYSTEM, &path, 1, Access::ToWrite, &log.space).unwrap()
    else {
        panic!()
    };
    let again = Arc::new(again);
    log.map.insert(&again);
    again
}

#[test]
fn a_flush_trusts_only_the_mapping_that_was_written_through() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    log.sync(true).unwrap();
    let written = segment_of(&lock(&log.active));
    let before = written.syncs();
    log.sync(true).unwrap();
    assert_eq!((before, written.syncs()), (1, 1), "nothing was written since");
    drop(log.reserve(64).unwrap().unwrap());
    let other = map_again(&log);
    log.sync(true).unwrap();
    assert_eq!(other.syncs(), 1, "it has no record of the write, and is synced");
    // The records of a process that detached were sealed here: which of them are on the disk is
    // unknown.
    log.orphan_all();
    log.seal_orphans(0);
    assert!(index.is_own(index.segment(1).unwrap().owner));
    log.sync(true).unwrap();
    assert_eq!(other.syncs(), 2);
    assert!(index.segment(1).unwrap().synced);
}

#[test]
fn a_segment_opened_during_its_adoption_is_mapped_once() {
    let dir = tempfile::tempdir().unwrap();
    let (index, left) = log_with_a_record(dir.path());
    left.orphan_all();
    let log = Log::new(SYSTEM, dir.path(), Access::ToWrite, index.clone(), SpaceInUse::default())
        .unwrap();
    std::thread::scope(|scope| {
        // A reader is about to insert the mapping that it opened.
        let opening = lock(&log.opening);
        let taking = scope.spawn(|| {
            log.provide(0, true, &|_| panic!("there is an orphan to adopt"), &|| Ok(false))
                .unwrap();
        });
        while !index.is_own(index.segment(1).unwrap().owner) {
            std::thread::yield_now();
        }
        // Long enough for an adoption that does not wait for the lock.
        let mut wait = Backoff::default();
        while !taking.is_finished() && !wait.is_long() {
            wait.pause();
        }
        map_again(&log);
        drop(opening);
    });
    assert!(Arc::ptr_eq(log.segment(1).get().unwrap(), &segment_of(&log.spare.wait())));
}

#[test]
fn an_unused_oversized_segment_is_sealed_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    log.space.attach(index.clone());
    log.provide(1 << 10, false, &|bytes| Ok(Some(log.space.reserve(bytes))), &|| Ok(false))
        .unwrap();
    let unused = segment_of(&log.spare.wait()).id;
    let asked = Options { max_bytes: 0, ..Options::default() }.limits();
    index.set_limits(asked, asked);
    assert!(log.is_oversized(&index.segment(unused).unwrap()));
    log.seal_oversized();
    assert_eq!(
        index.segment_state(unused),
        Some(SegmentState::Sealed),
        "others may have it mapped; it is emptied and dropped like any other"
    );
    assert!(dir.path().join(Segment::file_name(unused)).exists());
}

#[test]
fn a_segment_being_created_is_not_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    let begun = index.create_segment(16 << 10).unwrap();
    // Its owner is not stored yet.
    index.orphan_segment(begun);
    log.abort_segments_of_dead();
    assert_eq!(index.segment_state(begun), Some(SegmentState::Creating));
}

#[test]
fn a_segment_freed_during_its_creation_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    let begun = index.create_segment(16 << 10).unwrap();
    index.free_segment(begun);
    let error = log.activate(begun, 16 << 10, false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::LockLost);
    assert!(!dir.path().join(Segment::file_name(begun)).exists(), "nothing counts it");
    assert!(log.segment(begun).get().is_none());
}

#[test]
fn a_closed_log_continues_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    log.seal_all();
    assert_eq!(index.end_of_log(), (1, BEGIN + 64));
}

#[test]
fn without_an_active_segment_the_old_end_of_log_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    let segment = lock(&log.active).take().unwrap();
    index.set_end_of_log(1, BEGIN);
    drain(&segment.segment);
    log.seal(segment);
    log.seal_all();
    assert_eq!(index.end_of_log(), (0, 0), "or the next life would overwrite later records");
}

#[test]
fn an_adopted_spare_with_records_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (index, left) = log_with_a_record(dir.path());
    left.orphan_all();
    let space = SpaceInUse::default();
    space.attach(index.clone());
    let log = Log::new(SYSTEM, dir.path(), Access::ToWrite, index.clone(), space).unwrap();
    log.provide(0, true, &|_| panic!("there is an orphan to adopt"), &|| Ok(false)).unwrap();
    log.seal_all();
    assert_eq!(index.segment_state(1), Some(SegmentState::Sealed));
    assert!(dir.path().join(Segment::file_name(1)).exists());
}

#[test]
fn a_full_table_or_used_up_ids_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (index, log) = log_with_a_record(dir.path());
    while let Some(id) = index.create_segment(4096) {
        index.activate_segment(id);
    }
    let unused = index.unused_segment_id();
    let refused = || {
        let make_room = |bytes| Ok(Some(log.space.reserve(bytes)));
        let refused = log.provide(16 << 10, false, &make_room, &|| Ok(false)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        refused.to_string()
    };
    assert!(
        refused().contains("too many processes write to so small a directory; raise max_bytes")
    );
    assert_eq!(index.unused_segment_id(), unused);
    index.free_segment(5);
    index.raise_next_segment_id(u64::from(u32::MAX));
    assert!(refused().contains("all segment ids are used"));
}
