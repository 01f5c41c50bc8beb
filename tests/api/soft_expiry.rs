//! Soft expiry: a stale value is served while one caller recomputes it, and a value close to its
//! end may be recomputed early.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use keepwarm::{Cache, Clock, ComputeError, ErrorKind, Lifespan, ManualClock, Swap, Timeout, Ttl};

use crate::{for_each_backend, ms, secs, with_cache};

/// Fresh for ten seconds, then stale for twenty.
fn ten_and_twenty() -> Lifespan {
    Lifespan::new(secs(10)).stale_for(secs(20))
}

/// The value that `get_or_set` returns, and whether this call computed it.
fn ask(cache: &Cache, key: &str, new: u32) -> (u32, bool) {
    let mut computed = false;
    let value = cache.get_or_set(key, ten_and_twenty(), || {
        computed = true;
        new
    });
    (value.unwrap(), computed)
}

fn is_stale(cache: &Cache, clock: &ManualClock, key: &str) -> bool {
    let entry = cache.get_entry::<u32>(key).unwrap().unwrap();
    entry.stale_at.is_some_and(|at| at <= clock.now())
}

#[test]
fn a_value_is_fresh_then_stale_then_expired() {
    with_cache(|cache, clock| {
        let stored = clock.now();
        assert_eq!(ask(&cache, "a", 1), (1, true));
        let entry = cache.get_entry::<u32>("a").unwrap().unwrap();
        assert_eq!(entry.stale_at, stored.checked_add(secs(10)));
        assert_eq!(entry.expires_at, stored.checked_add(secs(30)));
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(30))));

        clock.advance(ms(9_999));
        assert_eq!(ask(&cache, "a", 2), (1, false));
        clock.advance(ms(1));
        assert_eq!(cache.get("a").unwrap(), Some(1), "`get` returns a stale value");
        assert_eq!(ask(&cache, "a", 3), (3, true));
        assert_eq!(cache.get("a").unwrap(), Some(3));
        assert_eq!(ask(&cache, "a", 4), (3, false), "it is fresh again");

        clock.advance(ms(29_999));
        assert_eq!(cache.get("a").unwrap(), Some(3));
        clock.advance(ms(1));
        assert_eq!(cache.get::<u32>("a").unwrap(), None);
        assert_eq!(ask(&cache, "a", 5), (5, true));
    });
}

/// Computes 2 for `a`: signals `begun`, then waits for `go_on`.
fn refresh(cache: &Cache, begun: &Barrier, go_on: &Barrier) -> u32 {
    let compute = || {
        begun.wait();
        go_on.wait();
        2
    };
    cache.get_or_set("a", ten_and_twenty(), compute).unwrap()
}

#[test]
fn one_caller_refreshes_and_others_get_the_stale_value_now() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        clock.advance(secs(10));
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            let refresher = scope.spawn(|| refresh(&cache, &begun, &go_on));
            begun.wait();
            // These calls return while the computation is blocked.
            let others: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&cache, "a", 99))).collect();
            for other in others {
                assert_eq!(other.join().unwrap(), (1, false));
            }
            go_on.wait();
            assert_eq!(refresher.join().unwrap(), 2);
        });
        assert_eq!(ask(&cache, "a", 99), (2, false));
    });
}

#[test]
fn a_miss_after_the_expiry_waits_for_the_refresher() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        clock.advance(secs(10));
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            let refresher = scope.spawn(|| refresh(&cache, &begun, &go_on));
            begun.wait();
            clock.advance(secs(20));
            let misses = cache.stats().misses;
            let other = scope.spawn(|| ask(&cache, "a", 99));
            while cache.stats().misses == misses {
                thread::yield_now();
            }
            go_on.wait();
            assert_eq!((refresher.join().unwrap(), other.join().unwrap()), (2, (2, false)));
        });
    });
}

#[test]
fn the_computing_closure_can_read_the_stale_value() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        clock.advance(secs(10));
        let before = || cache.get_or_set("a", ten_and_twenty(), || 99).unwrap();
        assert_eq!(cache.get_or_set("a", ten_and_twenty(), || before() + 1).unwrap(), 2);
    });
}

#[test]
fn a_failed_refresh_keeps_the_stale_value() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        clock.advance(secs(10));
        let fails = || cache.try_get_or_set("a", ten_and_twenty(), || Err::<u32, _>("no luck"));
        assert_eq!(fails().unwrap(), 1);
        assert_eq!(fails().unwrap(), 1, "each caller tries to refresh");
        assert_eq!(cache.stats().refresh_failures, 2);

        let panics = || std::panic::resume_unwind(Box::new("on purpose"));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            cache.get_or_set::<u32>("a", ten_and_twenty(), panics)
        }));
        assert!(panicked.is_err());
        assert_eq!(cache.get("a").unwrap(), Some(1));
        assert_eq!(ask(&cache, "a", 2), (2, true));

        // A value that expired during the computation is not returned.
        clock.advance(secs(10));
        let too_late = cache.try_get_or_set("a", ten_and_twenty(), || {
            clock.advance(secs(20));
            Err::<u32, _>("no luck")
        });
        assert!(matches!(too_late, Err(ComputeError::Compute("no luck"))));
    });
}

#[test]
fn a_change_during_the_refresh_is_not_lost() {
    with_cache(|cache, clock| {
        let refresh = |meanwhile: &dyn Fn()| {
            cache.set("a", &0, Timeout::Never).unwrap();
            cache.delete("a").unwrap();
            ask(&cache, "a", 1);
            clock.advance(secs(10));
            cache.get_or_set("a", ten_and_twenty(), || {
                meanwhile();
                2
            })
        };
        let by_set = refresh(&|| cache.set("a", &7, Timeout::Never).unwrap());
        assert_eq!((by_set.unwrap(), cache.get("a").unwrap()), (7, Some(7)));
        let by_delete = refresh(&|| assert!(cache.delete("a").unwrap()));
        assert_eq!((by_delete.unwrap(), cache.get("a").unwrap()), (2, Some(2)));
        let by_type = refresh(&|| cache.set("a", "text", Timeout::Never).unwrap());
        assert_eq!((by_type.unwrap(), cache.get("a").unwrap()), (2, Some(2)));
        // A change that leaves the value stale does not count as newer.
        let by_incr = refresh(&|| assert_eq!(cache.incr("a", 4).unwrap(), 5));
        assert_eq!((by_incr.unwrap(), cache.get("a").unwrap()), (2, Some(2)));
    });
}

#[test]
fn every_call_that_sets_an_expiry_makes_it_fresh() {
    with_cache(|cache, clock| {
        let renewals: [&dyn Fn(); 6] = [
            &|| assert!(cache.touch("a", secs(60)).unwrap()),
            &|| assert!(cache.persist("a").unwrap()),
            &|| assert!(cache.expire_at("a", clock.now().checked_add(secs(60)).unwrap()).unwrap()),
            &|| cache.set("a", &1, secs(60)).unwrap(),
            &|| {
                let token = cache.get_entry::<u32>("a").unwrap().unwrap().token;
                let swap = cache.compare_and_swap("a", Some(token), &1, secs(60)).unwrap();
                assert!(matches!(swap, Swap::Stored(_)));
            },
            &|| {
                cache.delete("a").unwrap();
                assert!(cache.add("a", &1, secs(60)).unwrap());
            },
        ];
        for renew in renewals {
            cache.clear().unwrap();
            ask(&cache, "a", 1);
            clock.advance(secs(10));
            assert!(is_stale(&cache, &clock, "a"));
            renew();
            assert_eq!(cache.get_entry::<u32>("a").unwrap().unwrap().stale_at, None);
            clock.advance(secs(59));
            assert_eq!(ask(&cache, "a", 99), (1, false));
        }
    });
}

#[test]
fn every_call_that_keeps_the_expiry_keeps_the_stale_time() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        let before = cache.get_entry::<u32>("a").unwrap().unwrap();
        clock.advance(secs(3));
        assert_eq!(cache.incr("a", 1).unwrap(), 2);
        assert_eq!(cache.incr_or_init("a", 1, 0, secs(99)).unwrap(), 3);
        assert_eq!(cache.incr_version("a", 1).unwrap(), 2);
        let there = cache.with_version(2);
        let after = there.get_entry::<u32>("a").unwrap().unwrap();
        assert_eq!(
            (after.value, after.stale_at, after.expires_at),
            (3, before.stale_at, before.expires_at)
        );
        clock.advance(secs(7));
        assert_eq!(ask(&there, "a", 9), (9, true));
    });
}

#[test]
fn the_stale_time_survives_a_restart() {
    with_cache(|cache, clock| {
        ask(&cache, "a", 1);
        cache.close().unwrap();
        clock.advance(secs(10));
        assert!(is_stale(&cache, &clock, "a"));
        assert_eq!(ask(&cache, "a", 2), (2, true));
    });
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let open = || Cache::builder(dir.path()).clock(clock.clone()).jitter_seed(1).open().unwrap();
    let lifespan = ten_and_twenty().early_refresh(1.0);
    let compute = |took| {
        clock.advance(took);
        1
    };
    open().get_or_set("a", lifespan, || compute(secs(3600))).unwrap();
    // An hour to compute and a lifetime of ten seconds: the refresh is always early.
    assert_eq!(open().get_or_set("a", lifespan, || 2).unwrap(), 2);
}

#[test]
fn the_stale_window_is_not_jittered_and_needs_a_timeout() {
    for_each_backend(|make| {
        let clock = ManualClock::new();
        let cache = make.builder().clock(clock.clone()).jitter(0.5).jitter_seed(3).open().unwrap();
        let mut shortened = false;
        for n in 0..20 {
            let key = n.to_string();
            ask(&cache, &key, n);
            let entry = cache.get_entry::<u32>(&key).unwrap().unwrap();
            let stale_at = entry.stale_at.unwrap();
            assert_eq!(entry.expires_at, stale_at.checked_add(secs(20)));
            shortened |= stale_at.saturating_since(clock.now()) < secs(9);
        }
        assert!(shortened);
        let lifespan = |timeout: Timeout| Lifespan::new(timeout).stale_for(secs(20));
        cache.get_or_set("for ever", lifespan(Timeout::Never), || 1).unwrap();
        let entry = cache.get_entry::<u32>("for ever").unwrap().unwrap();
        assert_eq!((entry.stale_at, entry.expires_at), (None, None));
        cache.get_or_set("not at all", lifespan(secs(0).into()), || 1).unwrap();
        assert!(!cache.contains_key("not at all").unwrap());
        cache
            .get_or_set("without end", Lifespan::new(secs(5)).stale_for(Duration::MAX), || 1)
            .unwrap();
        let entry = cache.get_entry::<u32>("without end").unwrap().unwrap();
        assert!(entry.stale_at.is_some() && entry.expires_at.is_none());
    });
}

#[test]
fn an_absent_result_has_its_own_lifespan() {
    with_cache(|cache, clock| {
        let find = |found: Option<u8>| {
            cache.get_or_set_option(
                "a",
                ten_and_twenty(),
                Lifespan::new(secs(1)).stale_for(secs(5)),
                || found,
            )
        };
        assert_eq!(find(None).unwrap(), None);
        clock.advance(secs(1));
        assert_eq!(cache.get::<Option<u8>>("a").unwrap(), Some(None));
        assert_eq!(find(Some(1)).unwrap(), Some(1));
        assert_eq!(cache.ttl("a").unwrap(), Some(Ttl::Remaining(secs(30))));
    });
}

/// Stores 400 values with `lifespan` that each take a second to compute and live for a hundred, and
/// reads each with `asked` when it has `ahead` left. Returns how many reads recompute.
fn refreshed(
    cache: &Cache,
    clock: &ManualClock,
    lifespan: Lifespan,
    asked: Lifespan,
    ahead: Duration,
) -> usize {
    let (start, computed) = (clock.now(), AtomicUsize::new(0));
    for n in 0..400 {
        clock.set(start);
        let key = format!("{ahead:?} {n}");
        let slow = || clock.advance(secs(1));
        cache.get_or_set(&key, lifespan, slow).unwrap();
        clock.set(start.checked_add(secs(101) - ahead).unwrap());
        cache.get_or_set(&key, asked, || _ = computed.fetch_add(1, SeqCst)).unwrap();
        cache.delete(&key).unwrap();
    }
    clock.set(start);
    computed.into_inner()
}

#[test]
fn an_early_refresh_is_likelier_nearer_the_end() {
    for_each_backend(|make| {
        let clock = ManualClock::new();
        let cache = make.builder().clock(clock.clone()).jitter_seed(7).open().unwrap();
        let plain = Lifespan::new(secs(100));
        let (one, two, none) =
            (plain.early_refresh(1.0), plain.early_refresh(2.0), plain.early_refresh(0.0));
        let count = |stored, asked, ahead| refreshed(&cache, &clock, stored, asked, ahead);
        // Of 400: e^-1 a second before the end, e^-2 two seconds before; the bounds are 5 σ.
        assert!((99..196).contains(&count(one, one, secs(1))));
        assert!((20..88).contains(&count(one, one, secs(2))));
        assert!((99..196).contains(&count(one, two, secs(2))), "twice the beta, twice the time");
        assert_eq!(count(one, one, secs(60)), 0);
        assert!(count(one, one, ms(1)) > 390);
        assert_eq!(count(one, none, ms(1)), 0);
        assert_eq!(count(one, plain, ms(1)), 0, "the caller did not ask for an early refresh");
        assert_eq!(count(plain, one, ms(1)), 0, "the cost of the computation was not stored");
        // With a stale window, the end is the start of that window.
        let both = Lifespan::new(secs(100)).stale_for(secs(50)).early_refresh(1.0);
        assert!((99..196).contains(&count(both, both, secs(1))));
    });
}

#[test]
fn an_invalid_beta_is_an_error_before_any_effect() {
    with_cache(|cache, _| {
        for beta in [-1.0, f64::NAN, f64::INFINITY] {
            let lifespan = Lifespan::new(secs(1)).early_refresh(beta);
            let error =
                cache.get_or_set("a", lifespan, || -> u8 { panic!("not called") }).unwrap_err();
            assert_eq!(
                (error.kind(), error.option()),
                (ErrorKind::InvalidOption, Some("early_refresh"))
            );
            let absent = cache.get_or_set_option("a", secs(1), lifespan, || None::<u8>);
            assert_eq!(absent.unwrap_err().kind(), ErrorKind::InvalidOption);
        }
        assert!(cache.is_empty());
    });
}
