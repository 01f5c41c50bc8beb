//! A timeout of zero: nothing is kept, and every call returns what it otherwise would.

use std::time::Duration;

use keepwarm::{Swap, Timeout};

use crate::{for_each_backend, with_cache};

const ZERO: Duration = Duration::ZERO;

#[test]
fn set_removes_the_entry() {
    with_cache(|cache, _| {
        cache.set("new", &1, ZERO).unwrap();
        cache.set("old", &1, Timeout::Never).unwrap();
        cache.set("old", &2, ZERO).unwrap();
        cache.set("bytes", &1, Timeout::Never).unwrap();
        cache.set_bytes("bytes", b"2", ZERO).unwrap();
        for key in ["new", "old", "bytes"] {
            assert!(!cache.contains_key(key).unwrap(), "{key}");
        }
        assert_eq!(cache.len(), 0);
    });
}

#[test]
fn add_returns_whether_it_was_absent_and_stores_nothing() {
    with_cache(|cache, _| {
        assert!(cache.add("a", &1, ZERO).unwrap());
        assert!(!cache.contains_key("a").unwrap());
        cache.set("a", &1, Timeout::Never).unwrap();
        assert!(!cache.add("a", &2, ZERO).unwrap());
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
    });
}

#[test]
fn touch_returns_whether_it_was_present_and_removes_it() {
    with_cache(|cache, _| {
        assert!(!cache.touch("a", ZERO).unwrap());
        cache.set("a", &1, Timeout::Never).unwrap();
        assert!(cache.touch("a", ZERO).unwrap());
        assert!(!cache.contains_key("a").unwrap());
        assert!(!cache.touch("a", ZERO).unwrap());
    });
}

#[test]
fn get_or_set_returns_the_value_and_stores_nothing() {
    with_cache(|cache, _| {
        assert_eq!(cache.get_or_set("a", ZERO, || 1).unwrap(), 1);
        assert_eq!(cache.get_or_set("a", ZERO, || 2).unwrap(), 2);
        assert_eq!(cache.try_get_or_set("a", ZERO, || Ok::<u8, ()>(3)).unwrap(), 3);
        assert_eq!(cache.get_or_set_option("a", ZERO, ZERO, || Some(4)).unwrap(), Some(4));
        assert!(cache.is_empty());
        cache.set("a", &5, Timeout::Never).unwrap();
        assert_eq!(cache.get_or_set("a", ZERO, || 6).unwrap(), 5);
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(5));
        assert_eq!(cache.stats().store_failures, 0);
    });
}

#[test]
fn compare_and_swap_removes_the_expected_entry() {
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Never).unwrap();
        let token = cache.get_entry::<u8>("a").unwrap().unwrap().token;
        let swap = cache.compare_and_swap("a", Some(token), &2, ZERO).unwrap();
        let Swap::Stored(none) = swap else { panic!("{swap:?}") };
        assert!(!cache.contains_key("a").unwrap());
        assert_eq!(
            cache.compare_and_swap("a", Some(none), &3, Timeout::Never).unwrap(),
            Swap::Conflict(None)
        );
        assert!(matches!(cache.compare_and_swap("a", None, &3, ZERO).unwrap(), Swap::Stored(_)));
        assert!(!cache.contains_key("a").unwrap());
    });
}

#[test]
fn a_new_counter_is_returned_and_not_kept() {
    with_cache(|cache, _| {
        assert_eq!(cache.incr_or_init("a", 1, 1, ZERO).unwrap(), 2);
        assert!(!cache.contains_key("a").unwrap());
        cache.set("a", &5, Timeout::Never).unwrap();
        assert_eq!(cache.incr_or_init("a", 1, 1, ZERO).unwrap(), 6);
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(6));
    });
}

#[test]
fn set_many_and_warm_store_nothing() {
    with_cache(|cache, _| {
        assert!(cache.set_many([("a", 1), ("b", 2)], ZERO).is_empty());
        assert_eq!(cache.warm([("a", 1), ("b", 2)], ZERO).unwrap(), 2);
        assert!(cache.is_empty());
    });
}

#[test]
fn a_default_timeout_of_zero_keeps_nothing_by_default() {
    for_each_backend(|make| {
        let cache = make.builder().default_timeout(ZERO).open().unwrap();
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(cache.get_or_set("a", Timeout::Default, || 1).unwrap(), 1);
        assert!(cache.is_empty());
        cache.set("a", &1, Timeout::Never).unwrap();
        assert_eq!(cache.len(), 1);
    });
}
