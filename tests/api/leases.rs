//! Leases: one holder at a time, expire by themselves, and only the holder can release one.

use std::sync::Barrier;
use std::thread;

use keepwarm::{ErrorKind, Timeout};

use crate::{secs, with_cache};

#[test]
fn a_lease_has_one_holder_at_a_time() {
    with_cache(|cache, _| {
        let lease = cache.lease("a", secs(5)).unwrap().unwrap();
        assert_eq!(lease.key(), "a");
        assert!(lease.is_held().unwrap());
        assert!(cache.lease("a", secs(5)).unwrap().is_none());
        assert!(cache.lease("b", secs(5)).unwrap().is_some());
        drop(lease);
        assert!(cache.lease("a", secs(5)).unwrap().is_some());
    });
}

#[test]
fn of_concurrent_callers_exactly_one_gets_the_lease() {
    with_cache(|cache, _| {
        let barrier = Barrier::new(8);
        let leases: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        cache.lease("a", secs(5)).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(leases.iter().flatten().count(), 1);
    });
}

#[test]
fn a_lease_expires_by_itself() {
    with_cache(|cache, clock| {
        let first = cache.lease("a", secs(5)).unwrap().unwrap();
        clock.advance(secs(5));
        assert!(!first.is_held().unwrap());
        assert!(!first.renew(secs(5)).unwrap());
        assert!(cache.lease("a", secs(5)).unwrap().is_some());
    });
}

#[test]
fn only_the_holder_can_release_a_lease() {
    with_cache(|cache, clock| {
        let first = cache.lease("a", secs(5)).unwrap().unwrap();
        let dropped = cache.lease("b", secs(5)).unwrap().unwrap();
        clock.advance(secs(5));
        let second = cache.lease("a", secs(5)).unwrap().unwrap();
        let kept = cache.lease("b", secs(5)).unwrap().unwrap();
        assert!(!first.renew(secs(50)).unwrap());
        assert!(!first.release().unwrap());
        drop(dropped);
        assert!(second.is_held().unwrap() && kept.is_held().unwrap());
        assert!(second.release().unwrap());
        assert!(!cache.contains_key("a").unwrap());
    });
}

#[test]
fn renew_extends_the_lease() {
    with_cache(|cache, clock| {
        let lease = cache.lease("a", secs(5)).unwrap().unwrap();
        clock.advance(secs(4));
        assert!(lease.renew(secs(5)).unwrap());
        clock.advance(secs(4));
        assert!(lease.is_held().unwrap());
        assert!(lease.release().unwrap());
    });
}

#[test]
fn a_touch_of_the_key_does_not_break_the_lease() {
    with_cache(|cache, _| {
        let lease = cache.lease("a", secs(5)).unwrap().unwrap();
        assert!(cache.touch("a", Timeout::Never).unwrap());
        assert!(lease.is_held().unwrap());
        drop(lease);
        assert!(!cache.contains_key("a").unwrap());
    });
}

#[test]
fn releasing_keeps_an_entry_that_replaced_the_lease() {
    with_cache(|cache, _| {
        let lease = cache.lease("a", secs(5)).unwrap().unwrap();
        cache.set("a", "mine now", Timeout::Never).unwrap();
        assert!(!lease.is_held().unwrap());
        drop(lease);
        assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("mine now"));
    });
}

#[test]
fn a_panic_of_the_holder_releases_the_lease() {
    with_cache(|cache, _| {
        let holder = thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _lease = cache.lease("a", secs(5)).unwrap().unwrap();
                std::panic::resume_unwind(Box::new("on purpose"));
            });
            holder.join()
        });
        assert!(holder.is_err());
        assert!(cache.lease("a", secs(5)).unwrap().is_some());
    });
}

#[test]
fn a_duration_of_zero_is_an_error() {
    with_cache(|cache, _| {
        let error = cache.lease("a", secs(0)).unwrap_err();
        assert_eq!((error.kind(), error.option()), (ErrorKind::InvalidOption, Some("duration")));
        let lease = cache.lease("a", secs(5)).unwrap().unwrap();
        assert_eq!(lease.renew(secs(0)).unwrap_err().kind(), ErrorKind::InvalidOption);
        assert!(lease.is_held().unwrap());
    });
}
