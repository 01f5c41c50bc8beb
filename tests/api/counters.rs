//! Counters: exact, checked for overflow, integers only; a change keeps the expiry.

use std::thread;

use keepwarm::{Cache, Error, ErrorKind, Timeout, Ttl};

use crate::{secs, with_cache};

/// Asserts that `change` fails with `kind` and leaves the entry of `key` unchanged.
fn refuses(cache: &Cache, key: &str, kind: ErrorKind, change: impl Fn() -> Result<i64, Error>) {
    let before = cache.get_entry::<serde_json::Value>(key).unwrap();
    let error = change().unwrap_err();
    assert_eq!((error.kind(), error.key()), (kind, Some(key)));
    assert_eq!(cache.get_entry::<serde_json::Value>(key).unwrap(), before);
}

#[test]
fn a_change_keeps_the_expiry() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(10)).unwrap();
        clock.advance(secs(4));
        assert_eq!(cache.incr("a", 1).unwrap(), 2);
        assert_eq!(cache.decr("a", 5).unwrap(), -3);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(6))));
        clock.advance(secs(6));
        refuses(&cache, "a", ErrorKind::NotFound, || cache.incr("a", 1));
        cache.set("b", &1, Timeout::Never).unwrap();
        cache.incr("b", 1).unwrap();
        assert_eq!(cache.ttl("b").unwrap(), Some(Ttl::Never));
    });
}

#[test]
fn overflow_is_an_error_in_both_directions() {
    with_cache(|cache, _| {
        cache.set("max", &i64::MAX, Timeout::Never).unwrap();
        refuses(&cache, "max", ErrorKind::Overflow, || cache.incr("max", 1));
        refuses(&cache, "max", ErrorKind::Overflow, || cache.decr("max", -1));
        refuses(&cache, "max", ErrorKind::Overflow, || cache.incr("max", i64::MAX));
        assert_eq!(cache.decr("max", i64::MAX).unwrap(), 0);
        cache.set("min", &i64::MIN, Timeout::Never).unwrap();
        refuses(&cache, "min", ErrorKind::Overflow, || cache.decr("min", 1));
        refuses(&cache, "min", ErrorKind::Overflow, || cache.incr("min", -1));
        refuses(&cache, "min", ErrorKind::Overflow, || cache.incr("min", i64::MIN));
    });
}

#[test]
fn i64_min_can_be_subtracted() {
    with_cache(|cache, _| {
        cache.set("a", &-1, Timeout::Never).unwrap();
        // -i64::MIN does not fit 64 bits, but -1 - i64::MIN is i64::MAX.
        assert_eq!(cache.decr("a", i64::MIN).unwrap(), i64::MAX);
        assert_eq!(cache.incr("a", i64::MIN).unwrap(), -1);
        cache.set("a", &0, Timeout::Never).unwrap();
        refuses(&cache, "a", ErrorKind::Overflow, || cache.decr("a", i64::MIN));
    });
}

#[test]
fn large_deltas_are_exact() {
    with_cache(|cache, _| {
        cache.set("a", &0, Timeout::Never).unwrap();
        // Beyond 2^53, where a float would lose the unit.
        assert_eq!(cache.incr("a", (1 << 53) + 1).unwrap(), (1 << 53) + 1);
        assert_eq!(cache.incr("a", 1 << 62).unwrap(), (1 << 62) + (1 << 53) + 1);
        assert_eq!(cache.get::<i64>("a").unwrap(), Some((1 << 62) + (1 << 53) + 1));
    });
}

#[test]
fn integers_of_every_width_can_be_changed() {
    with_cache(|cache, _| {
        cache.set("u8", &255u8, Timeout::Never).unwrap();
        cache.set("i8", &-128i8, Timeout::Never).unwrap();
        cache.set("u16", &u16::MAX, Timeout::Never).unwrap();
        cache.set("i16", &i16::MIN, Timeout::Never).unwrap();
        cache.set("u32", &u32::MAX, Timeout::Never).unwrap();
        cache.set("i32", &i32::MIN, Timeout::Never).unwrap();
        cache.set("u64", &(1u64 << 40), Timeout::Never).unwrap();
        assert_eq!(cache.incr("u8", 1).unwrap(), 256);
        assert_eq!(cache.decr("i8", 1).unwrap(), -129);
        assert_eq!(cache.incr("u16", 1).unwrap(), 65_536);
        assert_eq!(cache.decr("i16", 1).unwrap(), -32_769);
        assert_eq!(cache.incr("u32", 1).unwrap(), 1 << 32);
        assert_eq!(cache.decr("i32", 1).unwrap(), i64::from(i32::MIN) - 1);
        assert_eq!(cache.incr("u64", 1).unwrap(), (1 << 40) + 1);
        // The result can be read as any type that it fits.
        assert_eq!(cache.get::<u16>("u8").unwrap(), Some(256));
        assert_eq!(cache.get::<u8>("u8").unwrap_err().kind(), ErrorKind::Decode);
    });
}

#[test]
fn a_counter_beyond_i64_max_is_an_overflow() {
    with_cache(|cache, _| {
        cache.set("a", &u64::MAX, Timeout::Never).unwrap();
        refuses(&cache, "a", ErrorKind::Overflow, || cache.incr("a", 1));
        refuses(&cache, "a", ErrorKind::Overflow, || cache.incr("a", -1));
    });
}

#[test]
fn changing_a_value_that_is_no_integer_fails() {
    with_cache(|cache, _| {
        cache.set("float", &1.0, Timeout::Never).unwrap();
        cache.set("bool", &true, Timeout::Never).unwrap();
        cache.set("text", "1", Timeout::Never).unwrap();
        cache.set("null", &(), Timeout::Never).unwrap();
        cache.set("list", &[1], Timeout::Never).unwrap();
        for key in ["float", "bool", "text", "null", "list"] {
            refuses(&cache, key, ErrorKind::NotAnInteger, || cache.incr(key, 1));
            refuses(&cache, key, ErrorKind::NotAnInteger, || cache.decr(key, 0));
            refuses(&cache, key, ErrorKind::NotAnInteger, || {
                cache.incr_or_init(key, 1, 0, Timeout::Never)
            });
        }
        cache.set_bytes("raw", b"\x01", Timeout::Never).unwrap();
        assert_eq!(cache.incr("raw", 1).unwrap_err().kind(), ErrorKind::NotAnInteger);
    });
}

#[test]
fn changing_a_missing_counter_fails() {
    with_cache(|cache, _| {
        refuses(&cache, "a", ErrorKind::NotFound, || cache.incr("a", 1));
        refuses(&cache, "a", ErrorKind::NotFound, || cache.decr("a", 0));
        assert!(cache.is_empty());
    });
}

#[test]
fn a_new_counter_starts_from_its_initial_value() {
    with_cache(|cache, clock| {
        assert_eq!(cache.incr_or_init("a", 2, 40, secs(10)).unwrap(), 42);
        clock.advance(secs(4));
        assert_eq!(cache.incr_or_init("a", 2, 40, secs(10)).unwrap(), 44);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(6))));
        clock.advance(secs(6));
        assert_eq!(cache.incr_or_init("a", 2, 40, Timeout::Never).unwrap(), 42);
        refuses(&cache, "new", ErrorKind::Overflow, || {
            cache.incr_or_init("new", 1, i64::MAX, secs(1))
        });
        assert!(!cache.contains_key("new").unwrap());
    });
}

#[test]
fn concurrent_changes_lose_no_increment() {
    with_cache(|cache, _| {
        thread::scope(|scope| {
            for thread in 0..8 {
                let cache = &cache;
                scope.spawn(move || {
                    for _ in 0..500 {
                        cache.incr_or_init("a", 3, 0, Timeout::Never).unwrap();
                        if thread % 2 == 0 {
                            cache.decr("a", 1).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(cache.get::<i64>("a").unwrap(), Some(8 * 500 * 3 - 4 * 500));
    });
}
