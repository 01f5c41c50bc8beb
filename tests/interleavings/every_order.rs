//! Small scenarios in every order. Each also runs with a fault that it must detect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use loom::sync::atomic::{AtomicBool, fence};
use loom::thread;

use crate::engine::index::SegmentState;
use crate::expected::{fails, quieten};
use crate::member::{Member, SEGMENT, TINY, members};
use crate::sys::machine::{Fault, Machine, Memory};

/// The bound on preemptions in one run. All orders with at most this many are tried.
const PREEMPTIONS: usize = 2;
/// The bounds for scenarios with more steps and with fewer steps.
const FEWER: usize = 1;
const MORE: usize = 3;

/// Runs `scenario` in every order, and prints the number of orders.
fn explore(name: &str, preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    quieten();
    let (count, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let counted = count.clone();
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        scenario();
    });
    let count = count.load(Relaxed);
    assert!(count > 10, "{name}: only {count} orders");
    println!("{name}: {count} orders with {preemptions} preemptions, {:?}", started.elapsed());
}

/// Runs `scenario` until an assertion in it fails, which must happen.
fn detects(name: &str, preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    assert!(fails(|| explore(name, preemptions, scenario)), "{name}: not detected");
    println!("{name}: detected");
}

fn world(fault: Fault, count: u32) -> Vec<Arc<Member>> {
    members(&Machine::with(Memory::Loom, TINY.index_bytes() as usize, fault), count)
}

/// Runs `what` for a process on a new thread.
fn spawn<T: 'static>(
    member: &Arc<Member>,
    what: impl FnOnce(&Member) -> T + 'static,
) -> thread::JoinHandle<T> {
    let member = member.clone();
    thread::spawn(move || what(&member))
}

/// Key 1 has record 1; another process publishes record 2 of it.
fn publish_against_read(fault: Fault) {
    let world = world(fault, 2);
    assert!(world[0].set(1, 1));
    let writer = spawn(&world[1], |member| assert!(member.set(1, 2)));
    let mut last = 0;
    for _ in 0..2 {
        let (record, stamp) = world[0].get(1).expect("the key is present all the time");
        assert!([1, 2].contains(&record) && stamp >= last);
        last = stamp;
    }
    writer.join().unwrap();
    assert_eq!(world[0].get(1).unwrap().0, 2);
    world[0].check_at_rest();
}

// Shows invariant I11.
#[test]
fn a_reader_sees_the_old_or_the_new_record_whole() {
    explore("publish against read", PREEMPTIONS, || publish_against_read(Fault::None));
    detects("stores that publish nothing", PREEMPTIONS, || {
        publish_against_read(Fault::RelaxedStores)
    });
}

/// A reader of key 1, and a copy of the chain, while another process changes key 2 in the same
/// chain.
/// Shows invariant I12.
#[test]
fn a_change_beside_a_key_does_not_make_it_look_damaged() {
    explore("publish against read of a neighbour", PREEMPTIONS, || {
        let world = world(Fault::None, 2);
        assert!(world[0].set(1, 1));
        assert!(world[0].set(2, 2));
        let writer = spawn(&world[1], |member| assert!(member.set(2, 3)));
        assert_eq!(world[0].get(1).unwrap().0, 1);
        writer.join().unwrap();
    });
    explore("publish against a copy of the chain", PREEMPTIONS, || {
        let world = world(Fault::None, 2);
        assert!(world[0].set(1, 1));
        let writer = spawn(&world[1], |member| assert!(member.set(1, 2)));
        let mut packed = crate::engine::index::Packed::default();
        assert!(world[0].index.pack(0, &mut packed));
        assert!([1, 2].contains(&(packed.primary[0].offset() / 8)), "the copy lacks the key");
        writer.join().unwrap();
    });
}

fn publish_against_publish(fault: Fault) {
    let world = world(fault, 2);
    let other = spawn(&world[1], |member| member.set(1, 2));
    let mine = world[0].set(1, 1);
    let theirs = other.join().unwrap();
    assert_eq!((mine, theirs), (true, true));
    let (_, last) = world[0].get(1).unwrap();
    assert_eq!(last, world[0].stamp(1).max(world[0].stamp(2)), "the later record is published");
    world[0].check_at_rest();
    assert_eq!(world[0].index.count(), 1);
}

// Shows invariant I10.
#[test]
fn the_later_of_two_writers_wins_and_is_counted_once() {
    explore("publish against publish", PREEMPTIONS, || publish_against_publish(Fault::None));
    detects("locks that do not lock", PREEMPTIONS, || publish_against_publish(Fault::BlindSwaps));
}

/// Seals and empties the segment; no word names it now.
fn empty(member: &Member) {
    let index = &member.index;
    index.seal_segment(SEGMENT);
    assert!(index.empty_segment(SEGMENT));
}

/// Drops the segment, and frees its place if all processes have unmapped it. Returns whether it was
/// freed.
fn drop_and_free(member: &Member, asks: bool) -> bool {
    member.index.drop_segment(SEGMENT);
    assert!(member.acknowledge_drop(SEGMENT));
    member.index.free_dropped(if asks { member.index.drops_seen_by_all() } else { u64::MAX });
    member.index.segment(SEGMENT).is_none()
}

/// Process 1 drops a segment that process 2 has mapped, and reuses its place.
fn drop_against_unmap(unmaps: bool) {
    let world = world(Fault::None, 2);
    world[0].set(1, 1);
    world[0].delete(1);
    empty(&world[0]);
    let dropper = spawn(&world[0], |member| {
        if drop_and_free(member, true) {
            member.free(1);
        }
    });
    let has_unmapped = world[1].acknowledge_drop(SEGMENT) && unmaps;
    assert!(has_unmapped || !world[1].is_freed(1), "a segment in use was freed");
    dropper.join().unwrap();
}

// Shows invariant I28.
#[test]
fn a_segment_is_freed_once_all_have_unmapped_it() {
    explore("drop of a segment against its unmap", MORE, || drop_against_unmap(true));
    detects("a process that keeps a segment which it acknowledged", MORE, || {
        drop_against_unmap(false)
    });
}

/// A reader has found a word. Then its record is superseded, its segment emptied, dropped and
/// freed, and a newer record is stored in a segment in the same place. The reader can use the
/// record that it has found until its call ends.
fn drop_against_read(asks: bool) {
    let world = world(Fault::None, 2);
    assert!(world[0].set(1, 1));
    // The other place is taken.
    assert!(world[0].index.create_segment(4096).is_some());
    let remove = move |member: &Member| {
        assert!(member.delete(1));
        empty(member);
        if drop_and_free(member, asks) {
            member.free(1);
            let next = member.index.create_segment(4096).expect("a place is free");
            assert!(member.index.activate_segment(next));
            assert_eq!(next % TINY.segments, SEGMENT % TINY.segments);
            assert!(member.set_in(next, 1, 2));
        }
    };
    let (reader, mut remover) = (&world[1], None);
    reader.get_with(1, || remover = Some(spawn(&world[0], remove)));
    reader.acknowledge_drop(SEGMENT);
    reader.get(1);
    remover.expect("the reader found the key").join().unwrap();
}

// Shows invariant I8.
#[test]
fn a_found_record_stays_readable_until_the_call_ends() {
    explore("drop of a segment against read", FEWER, || drop_against_read(true));
    detects("a place that is freed without asking the others", FEWER, || drop_against_read(false));
}

/// The step that is left out when a process opens a segment of another process.
#[derive(Clone, Copy, PartialEq)]
enum Omission {
    Nothing,
    SecondLook,
    Fences,
}

/// One thread opens a segment, and another of the same process unmaps dropped segments, while a
/// third thread, of another process, drops the segment. Whether it is mapped is private to the
/// process, in memory that its threads share.
fn open_against_drop(omission: Omission) {
    let world = world(Fault::None, 2);
    empty(&world[0]);
    let mapped = Arc::new(AtomicBool::new(false));
    let fenced = move || {
        if omission != Omission::Fences {
            fence(SeqCst);
        }
    };
    let dropper = spawn(&world[0], |member| _ = drop_and_free(member, true));
    let map = mapped.clone();
    let opener = spawn(&world[1], move |member| {
        let is_there = || member.index.segment_state(SEGMENT) == Some(SegmentState::Emptied);
        if is_there() {
            map.store(true, SeqCst);
            fenced();
            if omission != Omission::SecondLook && !is_there() {
                map.store(false, SeqCst);
            }
        }
    });
    let seen = world[1].index.drops();
    let dropped = world[1].index.segment_state(SEGMENT) == Some(SegmentState::Dropped);
    fenced();
    if dropped && mapped.load(SeqCst) {
        mapped.store(false, SeqCst);
    }
    world[1].index.acknowledge_drops(seen);
    dropper.join().unwrap();
    opener.join().unwrap();
    let acknowledged = seen == world[1].index.drops();
    assert!(!acknowledged || !mapped.load(SeqCst), "an acknowledged segment is mapped");
}

// Shows invariant I28.
#[test]
fn a_segment_opened_during_its_drop_is_unmapped() {
    explore("drop of a segment against its opening", PREEMPTIONS, || {
        open_against_drop(Omission::Nothing)
    });
    detects("no second look after opening", PREEMPTIONS, || {
        open_against_drop(Omission::SecondLook)
    });
    detects("no fences between the looks", PREEMPTIONS, || open_against_drop(Omission::Fences));
}

/// A process reports that it keeps a dropped segment, and the place is freed, while another process
/// counts the bytes in use.
fn keep_against_count() {
    let world = world(Fault::None, 2);
    let index = &world[0].index;
    index.seal_segment(SEGMENT);
    assert!(index.empty_segment(SEGMENT));
    index.drop_segment(SEGMENT);
    assert!(world[0].acknowledge_drop(SEGMENT));
    let bytes = index.segment(SEGMENT).unwrap().len;
    assert_eq!(index.used_bytes(), bytes);
    let keeper = spawn(&world[1], move |member| {
        member.index.set_own_bytes(bytes, 0);
        assert!(member.acknowledge_drop(SEGMENT));
        member.index.free_dropped(member.index.drops_seen_by_all());
        assert!(member.index.segment(SEGMENT).is_none());
    });
    assert!(world[0].index.used_bytes() >= bytes, "the segment counts in the table or as kept");
    keeper.join().unwrap();
    assert_eq!(world[0].index.used_bytes(), bytes);
}

#[test]
fn bytes_that_move_from_the_table_to_a_keeper_always_count() {
    explore("a kept segment against a count", FEWER, keep_against_count);
}

/// Process 2 dies after `changes` of the changes of its `set`; process 1 takes the lock over.
fn take_over(changes: u64, is_new: bool) {
    let world = world(Fault::None, 2);
    if !is_new {
        assert!(world[0].set(1, 3));
    }
    world[1].process.die_after(changes);
    let doomed = spawn(&world[1], |member| member.survives(|| assert!(member.set(1, 2))));
    assert!(world[0].set(1, 1));
    let survived = doomed.join().unwrap();
    let (record, stamp) = world[0].get(1).expect("a record was published");
    let (mine, theirs) = (world[0].stamp(1), world[0].stamp(2));
    if survived || mine > theirs {
        assert_eq!(stamp, mine.max(theirs), "record {record} is not the later one");
    } else {
        assert_ne!(record, 3, "an acknowledged record was lost");
    }
    world[0].check_at_rest();
}

// Shows invariant I23.
#[test]
fn a_lock_taken_over_from_a_dead_process_loses_nothing() {
    // The changes: lock, count if the key is new, sequence, stamp, word, unlock.
    for (is_new, all) in [(true, 6), (false, 5)] {
        for changes in 0..all {
            explore(
                &format!("take-over after {changes} changes, new: {is_new}"),
                PREEMPTIONS,
                move || {
                    take_over(changes, is_new);
                },
            );
        }
    }
}

/// The kernel reports every process as dead, so each takes the other's lock.
fn steal(fault: Fault) {
    let world = world(fault, 2);
    let other = spawn(&world[1], |member| member.set(1, 2));
    let mine = world[0].set(1, 1);
    let theirs = other.join().unwrap();
    let stolen = world[0].index.wants_recount();
    let noticed = !mine || !theirs;
    assert_eq!(noticed, stolen, "{mine:?} {theirs:?}");
}

// Shows invariant I10.
#[test]
fn a_stolen_lock_is_detected_at_its_unlock() {
    explore("a lock is stolen", FEWER, || steal(Fault::AllSeemDead));
    detects("an unlock that does not compare", FEWER, || steal(Fault::BlindAndAllSeemDead));
}
