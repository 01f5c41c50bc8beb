//! How many requests of recorded traffic are hits: with `Eviction::Lru` within half a point of the exact LRU, with
//! `Eviction::Adaptive` within one point of the best policy that it is compared with.
//!
//! The smaller traces at sizes at which they tell policies apart; `cargo bench --bench hit_ratio` has all of them. Nothing
//! here depends on time. The choice of LRU does not depend on chance either; that of Adaptive does by a little, as
//! the directory's secret decides which ghosts share a place.
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

fn check(title: &str, percent: usize) {
    let name = NAMES.into_iter().find(|name| name.starts_with(title)).unwrap();
    let trace = Trace::read(name);
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
        "{title}, {percent} %: {default:.2} and {adaptive:.2}; LRU {lru:.2}, others {others:.2?}, optimum {optimum:.2}"
    );
    println!("{figures}");
    assert!((default - lru).abs() <= 0.5, "{figures}");
    assert!(adaptive >= best - 1.0, "{figures}");
    assert!(best.max(default).max(adaptive) <= optimum, "{figures}");
}

#[test]
fn where_popular_keys_are_few() {
    check("2-pools", 1);
}

#[test]
fn where_keys_are_used_in_a_loop() {
    check("sprite", 1);
    check("sprite", 5);
}

#[test]
fn where_much_is_asked_for_once() {
    check("web12", 5);
}

#[test]
fn where_each_key_is_used_twice() {
    check("corda-vault", 1);
}

#[test]
fn each_format_is_read() {
    let lengths = NAMES.map(|name| {
        let trace = Trace::read(name);
        (trace.requests.len(), trace.distinct, trace.sizes.map(|sizes| sizes.len()))
    });
    let expected = [
        (100_000, 9_939, None),
        (66_987, 36_815, Some(66_987)),
        (135_702, 90_468, None),
        (914_145, 186_880, None),
        (5_000_000, 76_349, None),
        (133_996, 7_075, None),
        (95_607, 13_756, None),
    ];
    assert_eq!(lengths, expected);
}
