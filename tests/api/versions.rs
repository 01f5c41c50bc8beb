//! Moving an entry to another version: keeps its value and expiry, and the entry is never absent.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use keepwarm::{ErrorKind, Timeout, Ttl};

use crate::{for_each_backend, secs, with_cache};

#[test]
fn the_entry_moves_with_its_expiry() {
    with_cache(|cache, clock| {
        cache.set("a", "x", secs(10)).unwrap();
        clock.advance(secs(4));
        assert_eq!(cache.incr_version("a", 2).unwrap(), 3);
        assert_eq!(cache.get::<String>("a").unwrap(), None);
        let v3 = cache.with_version(3);
        assert_eq!(v3.get::<String>("a").unwrap().as_deref(), Some("x"));
        assert_eq!(v3.ttl("a").unwrap(), Some(Ttl::Remaining(secs(6))));
        assert_eq!(v3.decr_version("a", 2).unwrap(), 1);
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(6))));
        assert_eq!(cache.len(), 1);
    });
}

#[test]
fn raw_bytes_stay_raw() {
    with_cache(|cache, _| {
        cache.set_bytes("a", b"\x01", Timeout::Never).unwrap();
        cache.incr_version("a", 1).unwrap();
        assert_eq!(cache.with_version(2).get_bytes("a").unwrap().as_deref(), Some(&b"\x01"[..]));
        assert_eq!(cache.with_version(2).get::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
    });
}

#[test]
fn a_delta_of_zero_changes_nothing() {
    with_cache(|cache, _| {
        cache.set("a", "x", secs(10)).unwrap();
        let before = cache.get_entry::<String>("a").unwrap();
        assert_eq!(cache.incr_version("a", 0).unwrap(), 1);
        assert_eq!(cache.decr_version("a", 0).unwrap(), 1);
        assert_eq!(cache.get_entry::<String>("a").unwrap(), before);
        assert_eq!(cache.incr_version("missing", 0).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn moving_a_missing_entry_fails() {
    with_cache(|cache, clock| {
        assert_eq!(cache.incr_version("a", 1).unwrap_err().kind(), ErrorKind::NotFound);
        cache.set("a", &1, secs(1)).unwrap();
        clock.advance(secs(1));
        assert_eq!(cache.decr_version("a", 1).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_version_beyond_64_bits_is_an_error() {
    with_cache(|cache, _| {
        let last = cache.with_version(i64::MAX);
        last.set("a", &1, Timeout::Never).unwrap();
        assert_eq!(last.incr_version("a", 1).unwrap_err().kind(), ErrorKind::Overflow);
        assert_eq!(last.decr_version("a", i64::MIN).unwrap_err().kind(), ErrorKind::Overflow);
        assert_eq!(last.get::<u8>("a").unwrap(), Some(1));
    });
}

#[test]
fn a_move_replaces_an_entry_under_the_new_version() {
    with_cache(|cache, _| {
        cache.with_version(2).set("a", "old", Timeout::Never).unwrap();
        cache.set("a", "new", Timeout::Never).unwrap();
        cache.incr_version("a", 1).unwrap();
        assert_eq!(cache.with_version(2).get::<String>("a").unwrap().as_deref(), Some("new"));
    });
}

#[test]
fn a_key_function_without_versions_loses_nothing() {
    for_each_backend(|make| {
        let cache = make.builder().key_function(|_, _, key| key.to_owned()).open().unwrap();
        cache.set("a", &1, Timeout::Never).unwrap();
        assert_eq!(cache.incr_version("a", 1).unwrap(), 2);
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
    });
}

#[test]
fn an_entry_that_moves_is_never_absent() {
    with_cache(|cache, _| {
        let (v1, v2, done) = (cache.clone(), cache.with_version(2), AtomicBool::new(false));
        v1.set("a", &1, Timeout::Never).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    // One of the two versions, or both. Two reads, one after the other, could miss
                    // an entry that moves in between.
                    assert!((1..=2).contains(&cache.len()));
                }
            });
            for _ in 0..2000 {
                v1.incr_version("a", 1).unwrap();
                v2.decr_version("a", 1).unwrap();
            }
            done.store(true, SeqCst);
        });
        assert_eq!(cache.len(), 1);
    });
}

#[test]
fn a_move_that_fails_leaves_the_entry_where_it_is() {
    for_each_backend(|make| {
        let cache = make.builder().max_bytes(4 << 20).open().unwrap();
        // The largest value that fits, so that it does not fit under a version with more digits.
        let fits = |len: usize| cache.set_bytes("a", &vec![7; len], Timeout::Never).is_ok();
        let (mut fitting, mut too_large) = (0usize, 5 << 20);
        while too_large - fitting > 1 {
            let len = fitting.midpoint(too_large);
            if fits(len) { fitting = len } else { too_large = len }
        }
        assert!(fits(fitting));
        match cache.incr_version("a", i64::MAX - 1) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ValueTooLarge);
                assert_eq!(cache.get_bytes("a").unwrap().map(|bytes| bytes.len()), Some(fitting));
            }
            Ok(version) => assert!(cache.with_version(version).contains_key("a").unwrap()),
        }
    });
}
