//! Small scenarios in every order, and that each notices what it is there for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Instant;

use loom::sync::atomic::{AtomicBool, fence};
use loom::thread;

use crate::engine::index::SegmentState;
use crate::expected::{fails, quieten};
use crate::member::{Member, SEGMENT, TINY, members};
use crate::sys::machine::{Fault, Machine, Memory};

/// So often a process is put off in one run where it could have gone on: all orders of so few are tried.
const PREEMPTIONS: usize = 2;
/// The same, for scenarios with more steps, and with less.
const FEWER: usize = 1;
const MORE: usize = 3;

/// Runs `scenario` in every order, and says how many there were.
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
    assert!(count > 10, "{name}: {count} orders are none");
    println!("{name}: {count} orders with {preemptions} preemptions, {:?}", started.elapsed());
}

/// Runs `scenario` until something does not hold in it, which has to happen.
fn notices(name: &str, preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    assert!(fails(|| explore(name, preemptions, scenario)), "{name}: not noticed");
    println!("{name}: noticed");
}

fn world(fault: Fault, count: u32) -> Vec<Arc<Member>> {
    members(&Machine::with(Memory::Loom, TINY.index_bytes() as usize, fault), count)
}

/// Has a process do something on a thread of its own.
fn on<T: 'static>(
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
    let writer = on(&world[1], |member| assert!(member.set(1, 2)));
    let mut last = 0;
    for _ in 0..2 {
        let (record, stamp) = world[0].get(1).expect("the key is there all the time");
        assert!([1, 2].contains(&record) && stamp >= last);
        last = stamp;
    }
    writer.join().unwrap();
    assert_eq!(world[0].get(1).unwrap().0, 2);
    world[0].check_at_rest();
}

#[test]
fn a_reader_sees_the_old_record_or_the_new_one_whole() {
    explore("publish against read", PREEMPTIONS, || publish_against_read(Fault::None));
    notices("stores that publish nothing", PREEMPTIONS, || {
        publish_against_read(Fault::RelaxedStores)
    });
}

/// A reader of key 1, and a copy of the chain, while another process changes key 2 beside it.
#[test]
fn what_changes_beside_a_key_does_not_make_it_look_damaged() {
    explore("publish against read of a neighbour", PREEMPTIONS, || {
        let world = world(Fault::None, 2);
        assert!(world[0].set(1, 1));
        assert!(world[0].set(2, 2));
        let writer = on(&world[1], |member| assert!(member.set(2, 3)));
        assert_eq!(world[0].get(1).unwrap().0, 1);
        writer.join().unwrap();
    });
    explore("publish against a copy of the chain", PREEMPTIONS, || {
        let world = world(Fault::None, 2);
        assert!(world[0].set(1, 1));
        let writer = on(&world[1], |member| assert!(member.set(1, 2)));
        let mut packed = crate::engine::index::Packed::default();
        assert!(world[0].index.pack(0, &mut packed));
        assert!([1, 2].contains(&(packed.primary[0].offset() / 8)), "the copy lacks the key");
        writer.join().unwrap();
    });
}

fn publish_against_publish(fault: Fault) {
    let world = world(fault, 2);
    let other = on(&world[1], |member| member.set(1, 2));
    let mine = world[0].set(1, 1);
    let theirs = other.join().unwrap();
    assert_eq!((mine, theirs), (true, true));
    let (_, last) = world[0].get(1).unwrap();
    assert_eq!(last, world[0].stamp(1).max(world[0].stamp(2)), "the later one is there");
    world[0].check_at_rest();
    assert_eq!(world[0].index.count(), 1);
}

#[test]
fn of_two_writers_of_a_key_the_later_one_wins_and_it_is_counted_once() {
    explore("publish against publish", PREEMPTIONS, || publish_against_publish(Fault::None));
    notices("locks that do not lock", PREEMPTIONS, || publish_against_publish(Fault::BlindSwaps));
}

/// Seals and empties the segment: no word names it any more.
fn empty(member: &Member) {
    let index = &member.index;
    assert!(index.move_segment(SEGMENT, SegmentState::Active, SegmentState::Sealed));
    assert!(index.move_segment(SEGMENT, SegmentState::Sealed, SegmentState::Emptied));
}

/// Drops the segment, and frees its place if all have let go of it. Says whether that is so.
fn drop_and_free(member: &Member, asks: bool) -> bool {
    member.index.drop_segment(SEGMENT);
    assert!(member.keep_up(SEGMENT));
    member.index.free_dropped(if asks { member.index.drops_seen_by_all() } else { u64::MAX });
    member.index.segment(SEGMENT).is_none()
}

/// The one process drops a segment that the other has mapped, and puts something else in its place.
fn drop_against_letting_go(lets_go: bool) {
    let world = world(Fault::None, 2);
    world[0].set(1, 1);
    world[0].delete(1);
    empty(&world[0]);
    let dropper = on(&world[0], |member| {
        if drop_and_free(member, true) {
            member.free(1);
        }
    });
    let has_let_go = world[1].keep_up(SEGMENT) && lets_go;
    assert!(has_let_go || !world[1].is_freed(1), "a segment was freed that is in use");
    dropper.join().unwrap();
}

#[test]
fn a_segment_is_freed_when_everybody_has_let_go_of_it() {
    explore("drop of a segment against who lets go of it", MORE, || drop_against_letting_go(true));
    notices("a process that keeps what it says it let go of", MORE, || {
        drop_against_letting_go(false)
    });
}

/// A reader has found a word. Its record is superseded, and its segment emptied, dropped and freed; a newer record comes
/// into a segment in the same place. The reader goes on with the record it has found, until its call is over.
fn drop_against_read(asks: bool) {
    let world = world(Fault::None, 2);
    assert!(world[0].set(1, 1));
    // The other place is taken.
    assert!(world[0].index.begin_segment(4096).is_some());
    let remove = move |member: &Member| {
        assert!(member.delete(1));
        empty(member);
        if drop_and_free(member, asks) {
            member.free(1);
            let next = member.index.begin_segment(4096).expect("a place is free");
            assert!(member.index.move_segment(next, SegmentState::Unborn, SegmentState::Active));
            assert_eq!(next % TINY.segments, SEGMENT % TINY.segments);
            assert!(member.set_in(next, 1, 2));
        }
    };
    let (reader, mut remover) = (&world[1], None);
    reader.get_and(1, || remover = Some(on(&world[0], remove)));
    reader.keep_up(SEGMENT);
    reader.get(1);
    remover.expect("it was there").join().unwrap();
}

#[test]
fn a_reader_goes_on_with_what_it_has_found_until_its_call_is_over() {
    explore("drop of a segment against read", FEWER, || drop_against_read(true));
    notices("a place that is freed without asking", FEWER, || drop_against_read(false));
}

/// What is left out of opening a segment that another process made.
#[derive(Clone, Copy, PartialEq)]
enum LeftOut {
    Nothing,
    SecondLook,
    Fences,
}

/// A thread opens a segment, another of the same process lets go of what is dropped, while a third, of another process,
/// drops it. Whether it is mapped is the process's own affair, in memory that its threads share.
fn open_against_drop(left_out: LeftOut) {
    let world = world(Fault::None, 2);
    empty(&world[0]);
    let mapped = Arc::new(AtomicBool::new(false));
    let fenced = move || {
        if left_out != LeftOut::Fences {
            fence(SeqCst);
        }
    };
    let dropper = on(&world[0], |member| _ = drop_and_free(member, true));
    let map = mapped.clone();
    let opener = on(&world[1], move |member| {
        let is_there = || member.index.segment_state(SEGMENT) == Some(SegmentState::Emptied);
        if is_there() {
            map.store(true, SeqCst);
            fenced();
            if left_out != LeftOut::SecondLook && !is_there() {
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
    assert!(!acknowledged || !mapped.load(SeqCst), "what it says it let go of is mapped");
}

#[test]
fn a_segment_that_is_opened_while_it_is_dropped_is_let_go_of() {
    explore("drop of a segment against its opening", PREEMPTIONS, || {
        open_against_drop(LeftOut::Nothing)
    });
    notices("no second look after opening", PREEMPTIONS, || open_against_drop(LeftOut::SecondLook));
    notices("no fences between the looks", PREEMPTIONS, || open_against_drop(LeftOut::Fences));
}

/// A process says that it keeps a segment that was dropped, and its place is freed, while another counts.
fn keep_against_count() {
    let world = world(Fault::None, 2);
    let index = &world[0].index;
    assert!(index.move_segment(SEGMENT, SegmentState::Active, SegmentState::Sealed));
    assert!(index.move_segment(SEGMENT, SegmentState::Sealed, SegmentState::Emptied));
    index.drop_segment(SEGMENT);
    assert!(world[0].keep_up(SEGMENT));
    let bytes = index.segment(SEGMENT).unwrap().len;
    assert_eq!(index.used_bytes(), bytes);
    let keeper = on(&world[1], move |member| {
        member.index.set_own_bytes(bytes, 0);
        assert!(member.keep_up(SEGMENT));
        member.index.free_dropped(member.index.drops_seen_by_all());
        assert!(member.index.segment(SEGMENT).is_none());
    });
    assert!(world[0].index.used_bytes() >= bytes, "it is in the table, or kept");
    keeper.join().unwrap();
    assert_eq!(world[0].index.used_bytes(), bytes);
}

#[test]
fn what_moves_from_the_table_to_who_keeps_it_counts_all_the_time() {
    explore("a kept segment against a count", FEWER, keep_against_count);
}

/// Process 2 dies instead of making one more change than `changes` of those that `set` makes. Says whether it did.
fn take_over(changes: u64, is_new: bool) {
    let world = world(Fault::None, 2);
    if !is_new {
        assert!(world[0].set(1, 3));
    }
    world[1].process.die_after(changes);
    let doomed = on(&world[1], |member| member.survives(|| assert!(member.set(1, 2))));
    assert!(world[0].set(1, 1));
    let survived = doomed.join().unwrap();
    let (record, stamp) = world[0].get(1).expect("one of them was published");
    let (mine, theirs) = (world[0].stamp(1), world[0].stamp(2));
    if survived || mine > theirs {
        assert_eq!(stamp, mine.max(theirs), "record {record}: the later one is there");
    } else {
        assert_ne!(record, 3, "what was acknowledged is there, or what came later");
    }
    world[0].check_at_rest();
}

#[test]
fn whoever_takes_a_lock_over_goes_on_with_what_the_dead_have_published() {
    // A lock, a count if the key is new, a sequence, a stamp, a word, an unlock.
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

/// The kernel lies: each takes the other for dead.
fn steal(fault: Fault) {
    let world = world(fault, 2);
    let other = on(&world[1], |member| member.set(1, 2));
    let mine = world[0].set(1, 1);
    let theirs = other.join().unwrap();
    let stolen = world[0].index.wants_recount();
    let noticed = !mine || !theirs;
    assert_eq!(noticed, stolen, "{mine:?} {theirs:?}");
}

#[test]
fn a_lock_that_is_stolen_from_the_living_is_noticed_at_its_unlock() {
    explore("a lock is stolen", FEWER, || steal(Fault::AllSeemDead));
    notices("an unlock that does not compare", FEWER, || steal(Fault::BlindAndAllSeemDead));
}
