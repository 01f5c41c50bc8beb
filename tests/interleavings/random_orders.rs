//! A larger scenario in many random orders: three processes use all shared parts of the index, and
//! one of them dies.
//!
//! Shows invariants I12, I13, I23 and I26.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use shuttle::rand::Rng;
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, FailurePersistence, Runner, thread};

use crate::expected::fails;
use crate::member::{Member, TINY, members};
use crate::rng;
use crate::sys::machine::{Fault, Machine, Memory};

const SCHEDULES: usize = 10_000;
const PROCESSES: u32 = 3;
/// Calls of each process.
const CALLS: usize = 3;
const KEYS: u64 = 9;

/// A random operation of a process on the index.
fn call(member: &Member, next_record: &AtomicU32) {
    let mut random = shuttle::rand::thread_rng();
    let key = random.gen_range(1..=KEYS);
    match random.gen_range(0..10) {
        0..=3 => {
            let record = next_record.fetch_add(1, Relaxed);
            assert!(member.set(key, record), "no lock is stolen");
        }
        4 => assert!(member.delete(key), "no lock is stolen"),
        5 => clear(member),
        6 | 7 => {
            let first = member.get(key);
            let second = member.get(key);
            if let (Some((_, first)), Some((_, second))) = (first, second) {
                assert!(first <= second, "a key went back in time");
            }
        }
        8 => member.count_again(),
        _ => segments(member),
    }
}

fn clear(member: &Member) {
    let lock = member.index.lock_clear().expect("no process is stopped");
    member.index.begin_generation(member.index.generation() + 1);
    drop(lock);
}

/// Adopts an orphaned segment or begins one, seals it, drops it, and frees the places that all
/// processes have unmapped.
fn segments(member: &Member) {
    let index = &member.index;
    let id = match index
        .orphans()
        .into_iter()
        .find(|orphan| index.adopt_segment(orphan.id, orphan.owner))
    {
        Some(orphan) => orphan.id,
        None => match index.create_segment(4096) {
            Some(id) => {
                assert!(index.activate_segment(id));
                id
            }
            None => return,
        },
    };
    assert!(index.is_own(index.segment(id).expect("it belongs to this process").owner));
    index.set_segment_tail(id, 64, 64);
    index.seal_segment(id);
    assert!(index.empty_segment(id), "one owner");
    index.drop_segment(id);
    member.acknowledge_drop(id);
    index.free_dropped(index.drops_seen_by_all());
}

fn scenario(fault: Fault) {
    let machine = Machine::with(Memory::Shuttle, TINY.index_bytes() as usize, fault);
    let world = members(&machine, PROCESSES);
    world[0].index.orphan_segment(crate::member::SEGMENT);
    // One more entry extends the chain by a bucket. Its process may die then, or release the
    // bucket.
    const THERE: u32 = 7;
    (1..=THERE).for_each(|record| assert!(world[0].set(100 + u64::from(record), record)));
    let next_record = Arc::new(AtomicU32::new(THERE + 1));
    world[2].process.die_after(shuttle::rand::thread_rng().gen_range(0..60));
    let threads: Vec<_> = world
        .iter()
        .map(|member| {
            let (member, next_record) = (member.clone(), next_record.clone());
            thread::spawn(move || {
                member.survives(|| (0..CALLS).for_each(|_| call(&member, &next_record)));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let survivor = &world[0];
    survivor.index.release_locks_of_dead();
    let died = survivor.index.reap_dead();
    assert_eq!(died, world[2].process.is_dead());
    if died {
        // As the engine does: the dead process may have cleared the request for a recount already.
        survivor.index.set_wants_recount(true);
    }
    finish_clear(survivor);
    survivor.check_at_rest();
    survivor.count_again();
    assert!(!survivor.index.wants_recount());
    survivor.check_at_rest();
}

/// Finishes a clear that a dead process began, as the next process does.
fn finish_clear(member: &Member) {
    let lock = member.index.lock_clear().expect("a holder of the lock is dead");
    if lock.unfinished {
        member.index.begin_generation(member.index.generation() + 1);
    }
    drop(lock);
    assert!(!member.index.is_clearing());
}

fn explore(fault: Fault) {
    let scheduler = RandomScheduler::new_from_seed(rng::seed(), SCHEDULES);
    let mut config = Config::new();
    // The seed repeats a failure; and a process that dies is not a failure.
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(move || scenario(fault));
}

#[test]
fn a_death_among_three_processes_leaves_a_sound_index() {
    let started = Instant::now();
    explore(Fault::None);
    println!("three processes, one dies: {SCHEDULES} schedules, {:?}", started.elapsed());
}

#[test]
fn random_orders_detect_locks_that_do_not_lock() {
    assert!(fails(|| explore(Fault::BlindSwaps)));
}
