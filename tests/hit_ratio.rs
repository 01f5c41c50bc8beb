//! Hit ratios on recorded traffic: `Eviction::Lru` is within half a percentage point of exact LRU,
//! `Eviction::Adaptive` within one point of the best policy that it is compared with.
//!
//! The tests use the smaller traces, at cache sizes at which policies differ;
//! `cargo bench --bench hit_ratio` runs all of them. Nothing here depends on time. The evictions of
//! Lru are deterministic; those of Adaptive vary slightly, because the directory's secret decides
//! which ghosts share a cell.
#![cfg(test)]

#[path = "../benches/hit_ratio/peers/mod.rs"]
mod peers;
#[path = "../benches/hit_ratio/real.rs"]
mod real;
#[path = "../benches/hit_ratio/trace.rs"]
mod trace;

use keepwarm::Eviction;

use peers::{Belady, Lru, Policy, S3Fifo, Sieve, WTinyLfu};
use real::Real;
use trace::{NAMES, Trace};

/// The length of the prefix of each trace: an unoptimised program replays it in a second or two.
const REQUESTS: usize = 40_000;

fn check(title: &str, percent: usize) {
    let name = NAMES.into_iter().find(|name| name.starts_with(title)).unwrap();
    let mut trace = Trace::read(name);
    trace.requests.truncate(REQUESTS);
    let capacity = trace.capacity(percent);
    let ratio = |policy: &mut dyn Policy| trace.replay(policy).of_requests;
    let lru = ratio(&mut Lru::new(capacity));
    let others = [
        ratio(&mut Sieve::new(capacity)),
        ratio(&mut S3Fifo::new(capacity)),
        ratio(&mut WTinyLfu::new(capacity)),
    ];
    let best = others.into_iter().fold(lru, f64::max);
    let optimum = ratio(&mut Belady::new(capacity, &trace.requests));
    let default = ratio(&mut Real::new(capacity, Eviction::Lru));
    let adaptive = ratio(&mut Real::new(capacity, Eviction::Adaptive));
    let figures = format!(
        "{}, {percent} %: Eviction::Lru {default:.2}, Adaptive {adaptive:.2}; \
         LRU {lru:.2}, others {others:.2?}, optimum {optimum:.2}",
        trace.name
    );
    println!("{figures}");
    assert!((default - lru).abs() <= 0.5, "{figures}");
    assert!(adaptive >= best - 1.0, "{figures}");
    assert!(best.max(default).max(adaptive) <= optimum, "{figures}");
}

#[test]
fn hit_ratio_on_a_trace_with_few_popular_keys() {
    check("2-pools", 1);
}

#[test]
fn hit_ratio_on_a_trace_that_loops() {
    check("sprite", 5);
}

#[test]
fn hit_ratio_on_a_trace_with_many_one_time_keys() {
    check("web12", 5);
}

#[test]
fn each_trace_format_is_decoded() {
    let lengths = NAMES.into_iter().filter(|name| !name.starts_with("orm-busy")).map(|name| {
        let trace = Trace::read(name);
        (trace.requests.len(), trace.distinct, trace.sizes.map(|sizes| sizes.len()))
    });
    let expected = [
        (100_000, 9_939, None),
        (66_987, 36_815, Some(66_987)),
        (135_702, 90_468, None),
        (914_145, 186_880, None),
        (133_996, 7_075, None),
        (95_607, 13_756, None),
    ];
    assert_eq!(lengths.collect::<Vec<_>>(), expected);
}

#[test]
fn ratios_of_requests_and_of_bytes_are_exact() {
    let sizes = Some(vec![10, 20, 10, 10]);
    let trace = Trace { name: "", requests: vec![0, 1, 0, 0], sizes, distinct: 2 };
    let ratios = trace.replay(&mut Lru::new(2));
    assert_eq!((ratios.of_requests, ratios.of_bytes), (50.0, 40.0));
}

/// A plus for each hit, a minus for each miss.
fn hits(policy: &mut dyn Policy, keys: impl IntoIterator<Item = u32>) -> String {
    keys.into_iter().map(|key| if policy.request(key) { '+' } else { '-' }).collect()
}

#[test]
fn lru_keeps_the_most_recently_used() {
    assert_eq!(hits(&mut Lru::new(2), [1, 2, 1, 3, 1, 2, 3, 2]), "--+-+--+");
}

#[test]
fn sieve_continues_where_its_hand_stopped() {
    // 1 is visited and skipped, 2 is evicted; then 3, at the hand, although 1 is older.
    assert_eq!(hits(&mut Sieve::new(3), [1, 2, 3, 1, 4, 5, 1, 2, 4]), "---+--+--");
    // All are visited: each loses its mark, and the oldest is evicted.
    assert_eq!(hits(&mut Sieve::new(2), [1, 2, 1, 2, 3, 2, 1]), "--++-+-");
}

#[test]
fn s3_fifo_keeps_keys_used_again_and_returning_ghosts() {
    let mut cache = S3Fifo::new(10);
    assert_eq!(hits(&mut cache, [1, 1, 1]), "-++");
    assert_eq!(hits(&mut cache, 2..30), "-".repeat(28));
    assert_eq!(hits(&mut cache, [1]), "+");
    // Of the evicted keys, 15 is still a ghost, so it is admitted to the main queue; 2 is not.
    assert_eq!(hits(&mut cache, [15, 2]), "--");
    assert_eq!(hits(&mut cache, 100..130), "-".repeat(30));
    assert_eq!(hits(&mut cache, [15, 2]), "+-");
}

#[test]
fn w_tiny_lfu_keeps_frequent_keys_and_ages_their_counts() {
    // One entry in the window, nine in the main part.
    let mut cache = WTinyLfu::new(10);
    hits(&mut cache, 0..9);
    assert_eq!(hits(&mut cache, 0..9), "+".repeat(9));
    assert_eq!(hits(&mut cache, 100..150), "-".repeat(50));
    assert_eq!(hits(&mut cache, 0..9), "+".repeat(9));
    assert_eq!(hits(&mut cache, [149, 148]), "+-");
    // Counts are halved from time to time, so that other keys can overtake.
    (0..30).for_each(|_| drop(hits(&mut cache, 0..9)));
    (0..60).for_each(|_| drop(hits(&mut cache, 200..209)));
    assert_eq!(hits(&mut cache, 200..209), "+".repeat(9));
}

#[test]
fn the_optimum_evicts_the_key_needed_last() {
    let requests = [1, 2, 3, 1, 2, 3, 3, 2, 1];
    assert_eq!(hits(&mut Belady::new(2, &requests), requests), "---++-++-");
}
