//! Options: checked when the cache is opened; the error names the invalid one.

use std::time::Duration;

use keepwarm::{Builder, Durability, ErrorKind, Timeout};

use crate::for_each_backend;

#[test]
fn an_invalid_option_is_named() {
    type Change = fn(Builder) -> Builder;
    let bad: [(&str, Change); 11] = [
        ("max_entries", |b| b.max_entries(0)),
        ("max_entries", |b| b.max_entries(u64::MAX)),
        ("max_bytes", |b| b.max_bytes(0)),
        ("max_bytes", |b| b.max_bytes((1 << 20) - 1)),
        ("max_bytes", |b| b.max_bytes(u64::MAX)),
        ("hot_bytes", |b| b.hot_bytes(u64::MAX)),
        ("durability", |b| b.durability(Durability::Interval(Duration::ZERO))),
        ("durability", |b| b.durability(Durability::Interval(Duration::MAX))),
        ("jitter", |b| b.jitter(1.0)),
        ("jitter", |b| b.jitter(-0.1)),
        ("jitter", |b| b.jitter(f64::NAN)),
    ];
    for_each_backend(|make| {
        for (name, change) in bad {
            let error = change(make.builder()).open().unwrap_err();
            assert_eq!(
                (error.kind(), error.option()),
                (ErrorKind::InvalidOption, Some(name)),
                "{error}"
            );
            assert!(error.to_string().contains(name), "{error}");
        }
    });
}

#[test]
fn the_lowest_value_of_every_option_works() {
    for_each_backend(|make| {
        let cache = make
            .builder()
            .max_entries(1)
            .cull_frequency(1)
            .max_bytes(4 << 20)
            .hot_bytes(0)
            .durability(Durability::Sync)
            .open()
            .unwrap();
        for n in 0..10 {
            cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
            assert_eq!(cache.len(), 1);
            assert_eq!(cache.get::<u8>(&n.to_string()).unwrap(), Some(n));
        }
    });
}

#[test]
fn a_closed_cache_reopens_on_its_next_use() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        cache.set("a", &1, Timeout::Never).unwrap();
        cache.flush().unwrap();
        cache.close().unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        cache.close().unwrap();
        cache.set("b", &2, Timeout::Never).unwrap();
        assert_eq!(cache.len(), 2);
    });
}
