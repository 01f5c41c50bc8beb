//! Jitter: shortens the timeouts of computed values, by at most its fraction, and nothing else.

use std::time::Duration;

use keepwarm::{Cache, Timeout, Ttl};

use crate::common::Maker;
use crate::{for_each_backend, secs};

fn cache(make: &mut Maker, fraction: f64, seed: u64) -> Cache {
    let clock = keepwarm::ManualClock::new();
    make.builder().clock(clock).jitter(fraction).jitter_seed(seed).open().unwrap()
}

fn timeouts(cache: &Cache) -> Vec<Duration> {
    (0..100)
        .map(|n| {
            let key = n.to_string();
            cache.get_or_set(&key, secs(100), || n).unwrap();
            cache.ttl(&key).unwrap().and_then(Ttl::remaining).unwrap()
        })
        .collect()
}

#[test]
fn timeouts_are_spread_over_the_fraction() {
    for_each_backend(|make| {
        let timeouts = timeouts(&cache(make, 0.2, 1));
        assert!(timeouts.iter().all(|t| (secs(80)..=secs(100)).contains(t)), "{timeouts:?}");
        assert!(
            timeouts.iter().any(|t| *t < secs(84)) && timeouts.iter().any(|t| *t > secs(96)),
            "{timeouts:?}"
        );
    });
}

#[test]
fn the_same_seed_gives_the_same_timeouts() {
    for_each_backend(|make| {
        let first = timeouts(&cache(make, 0.2, 1));
        assert_eq!(first, timeouts(&cache(make, 0.2, 1)));
        assert_ne!(first, timeouts(&cache(make, 0.2, 2)));
    });
}

#[test]
fn without_jitter_timeouts_are_exact() {
    for_each_backend(|make| {
        assert!(timeouts(&cache(make, 0.0, 1)).iter().all(|t| *t == secs(100)))
    });
}

#[test]
fn a_value_that_is_set_keeps_its_timeout() {
    for_each_backend(|make| {
        let cache = cache(make, 0.9, 1);
        cache.set("a", &1, secs(100)).unwrap();
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(100))));
        cache.get_or_set("b", Timeout::Never, || 1).unwrap();
        assert_eq!(cache.ttl("b").unwrap(), Some(Ttl::Never));
    });
}

#[test]
fn the_default_timeout_is_shortened_too() {
    for_each_backend(|make| {
        let cache = cache(make, 0.9, 1);
        let shortened = (0..20).any(|n| {
            let key = n.to_string();
            cache.get_or_set(&key, Timeout::Default, || n).unwrap();
            cache.ttl(&key).unwrap().and_then(Ttl::remaining).unwrap() < secs(200)
        });
        assert!(shortened);
    });
}
