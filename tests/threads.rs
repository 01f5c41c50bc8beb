//! Many threads use one cache at the same time: counters are exact, `add` has one winner, and a
//! reader sees only values that were written under its key.
//!
//! Shows invariants I1 and I27.
#![cfg(test)]

mod common;
#[path = "support/rng.rs"]
mod rng;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::for_each_backend;
use keepwarm::{Cache, Eviction, Swap, Timeout};
use rng::Rng;
use serde_bytes::ByteBuf;

const THREADS: u64 = 8;

/// Runs `work` on [`THREADS`] threads at once; each gets its number.
fn on_threads(work: impl Fn(u64) + Sync) {
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (work, start) = (&work, &start);
            scope.spawn(move || {
                start.wait();
                work(number);
            });
        }
    });
}

fn assert_sound(cache: &Cache) {
    cache.maintain().unwrap();
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

#[test]
fn one_counter_is_exact() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        cache.set("counter", &0, Timeout::Never).unwrap();
        let sum = AtomicU64::new(0);
        on_threads(|_| {
            for _ in 0..2000 {
                sum.fetch_add(cache.incr("counter", 1).unwrap() as u64, Ordering::Relaxed);
            }
        });
        let total = THREADS * 2000;
        assert_eq!(cache.get::<u64>("counter").unwrap(), Some(total));
        assert_eq!(
            sum.into_inner(),
            total * (total + 1) / 2,
            "the increments returned every number from 1 on once"
        );
    });
}

#[test]
fn a_hundred_counters_are_exact() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        let counters: Vec<String> = (0..100).map(|n| format!("counter {n}")).collect();
        on_threads(|number| {
            for round in 0..100 {
                for n in 0..counters.len() {
                    // Each thread uses an order of its own.
                    let counter =
                        &counters[(n * 37 + number as usize * 11 + round) % counters.len()];
                    cache.incr_or_init(counter, 1, 0, Timeout::Never).unwrap();
                }
            }
        });
        for counter in &counters {
            assert_eq!(cache.get::<u64>(counter).unwrap(), Some(THREADS * 100), "{counter}");
        }
        assert_sound(&cache);
    });
}

#[test]
fn add_has_one_winner() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        let winners: Vec<AtomicU64> = (0..2000).map(|_| AtomicU64::new(0)).collect();
        on_threads(|number| {
            for (key, winner) in winners.iter().enumerate() {
                if cache.add(&key.to_string(), &number, Timeout::Never).unwrap() {
                    winner.fetch_add(1 << (8 * number), Ordering::Relaxed);
                }
            }
        });
        for (key, winner) in winners.iter().enumerate() {
            let holder: u64 = cache.get(&key.to_string()).unwrap().unwrap();
            assert_eq!(
                winner.load(Ordering::Relaxed),
                1 << (8 * holder),
                "{key} is held by {holder}"
            );
        }
    });
}

#[test]
fn compare_and_swap_loses_no_change() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        cache.set("list", &Vec::<u64>::new(), Timeout::Never).unwrap();
        on_threads(|number| {
            for round in 0..100 {
                loop {
                    let entry = cache.get_entry::<Vec<u64>>("list").unwrap().unwrap();
                    let mut list = entry.value;
                    list.push(number << 32 | round);
                    let swap = cache
                        .compare_and_swap("list", Some(entry.token), &list, Timeout::Never)
                        .unwrap();
                    if let Swap::Stored(_) = swap {
                        break;
                    }
                }
            }
        });
        let list: Vec<u64> = cache.get("list").unwrap().unwrap();
        assert_eq!(list.len() as u64, THREADS * 100);
        for number in 0..THREADS {
            let mine = list.iter().filter(|n| *n >> 32 == number).map(|n| n & 0xffff_ffff);
            assert!(mine.eq(0..100), "the changes of thread {number} are lost or out of order");
        }
    });
}

/// A value that names its key, its writer and the writer's round. Its bytes follow from these, so a
/// reader can check all of it.
fn value(key: u64, writer: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng::new(key << 40 | writer << 32 | round);
    let len =
        [rng.below(100), rng.below(3000), rng.below(60_000)][(rng.below(20) / 9).min(2) as usize];
    let mut bytes: Vec<u8> = [key, writer, round].iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.extend((0..len).map(|_| rng.next() as u8));
    bytes
}

/// The writer and the round, if the bytes are a value for this key.
fn written(key: u64, bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let (writer, round) = (word(8).unwrap(), word(16).unwrap());
    assert!(
        *bytes == value(key, writer, round),
        "key {key}: {} bytes that were never written under it",
        bytes.len()
    );
    (writer, round)
}

/// Tells the readers to end when a writer ends, also if it panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn readers_see_only_written_values_while_writers_churn() {
    const KEYS: u64 = 200;
    for_each_backend(|make| {
        let seed = rng::seed();
        let cache = make
            .builder()
            .max_bytes(1 << 20)
            .max_entries(150)
            .cull_frequency(4)
            .hot_bytes(300_000)
            .eviction([Eviction::Lru, Eviction::Adaptive][seed as usize % 2])
            .open()
            .unwrap();
        let (reads, hits) = (AtomicU64::new(0), AtomicU64::new(0));
        let done = AtomicBool::new(false);
        on_threads(|number| {
            let mut rng = Rng::new(seed ^ number);
            if number < THREADS / 2 {
                let _done = SetOnDrop(&done);
                // By round 3000, the readers may hardly have had a processor.
                let is_over = |round| {
                    round >= 3000 && (hits.load(Ordering::Relaxed) > 1000 || round >= 300_000)
                };
                for round in (0..).take_while(|round| !is_over(*round)) {
                    let key = rng.below(KEYS);
                    let name = key.to_string();
                    match rng.below(40) {
                        0 => drop(cache.delete(&name).unwrap()),
                        1 if rng.below(20) == 0 => cache.clear().unwrap(),
                        2 => drop(cache.touch(&name, Timeout::Never).unwrap()),
                        3..6 => {
                            let value = ByteBuf::from(value(key, number, round));
                            cache.add(&name, &value, Timeout::Never).unwrap();
                        }
                        _ => cache
                            .set_bytes(&name, &value(key, number, round), Timeout::Never)
                            .unwrap(),
                    }
                    assert!(cache.len() <= 150);
                    assert!(cache.stats().bytes <= 1 << 20);
                }
                return;
            }
            let mut held = Vec::new();
            let mut newest = vec![[0; THREADS as usize]; KEYS as usize];
            while !done.load(Ordering::Acquire) {
                let key = if rng.below(2) == 0 { rng.below(KEYS) } else { rng.below(8) };
                reads.fetch_add(1, Ordering::Relaxed);
                let Some(bytes) = cache.get_bytes(&key.to_string()).unwrap() else { continue };
                hits.fetch_add(1, Ordering::Relaxed);
                let (writer, round) = written(key, &bytes);
                // The values of one writer never go back to an older round.
                let newest = &mut newest[key as usize][writer as usize];
                assert!(
                    *newest <= round,
                    "key {key}: round {round} of thread {writer} after {newest}"
                );
                *newest = round;
                // Some bytes are held for a while after their entry was removed.
                if rng.below(50) == 0 {
                    held.push((key, bytes));
                    if held.len() > 2 {
                        let (key, bytes) = held.remove(0);
                        written(key, &bytes);
                    }
                }
            }
        });
        let (reads, hits, evicted) = (reads.into_inner(), hits.into_inner(), cache.stats().evicted);
        println!("{reads} reads, {hits} hits, {evicted} evicted");
        assert!(hits > 1000 && evicted > 1000, "{reads} reads, {hits} hits, {evicted} evicted");
        assert_eq!(cache.stats().corrupt, 0);
        assert_sound(&cache);
    });
}

#[test]
fn get_or_set_gives_the_right_value_under_eviction() {
    const KEYS: u64 = 100;
    for_each_backend(|make| {
        let seed = rng::seed();
        let cache =
            make.builder().max_bytes(1 << 20).max_entries(20).cull_frequency(3).open().unwrap();
        let computed = AtomicU64::new(0);
        on_threads(|number| {
            let mut rng = Rng::new(seed ^ number);
            for _ in 0..1500 {
                let key = rng.below(KEYS);
                let got: ByteBuf = cache
                    .get_or_set(&key.to_string(), Timeout::Never, || {
                        computed.fetch_add(1, Ordering::Relaxed);
                        value(key, 0, 0).into()
                    })
                    .unwrap();
                written(key, &got);
                assert!(cache.len() <= 20);
            }
        });
        let computed = computed.into_inner();
        assert!(computed > KEYS && computed < THREADS * 1500, "{computed} computed");
        assert_eq!(cache.stats().store_failures, 0);
        assert_sound(&cache);
    });
}
