//! Of the threads that miss a key at the same time one computes, and nobody waits for ever.
//!
//! Shows invariant I34.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use keepwarm::{Cache, ComputeError, Error, ErrorKind, Timeout};

use crate::{for_each_backend, secs, with_cache};

/// Runs `call` on 64 threads that start together; it is given the number of its thread.
fn on_64_threads<R: Send>(call: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let barrier = Barrier::new(64);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..64)
            .map(|me| {
                let (barrier, call) = (&barrier, &call);
                scope.spawn(move || {
                    barrier.wait();
                    call(me)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Lets the others run for a while, so that they come to wait.
fn dawdle() {
    for _ in 0..1000 {
        thread::yield_now();
    }
}

#[test]
fn sixty_four_threads_compute_once() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        let values = on_64_threads(|me| {
            let compute = || {
                computed.fetch_add(1, SeqCst);
                dawdle();
                me
            };
            cache.get_or_set("a", Timeout::Default, compute).unwrap()
        });
        assert_eq!(computed.load(SeqCst), 1);
        assert!(values.iter().all(|value| *value == values[0]));
    });
}

#[test]
fn clones_and_views_share_their_flights() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        on_64_threads(|me| {
            let view =
                if me % 2 == 0 { cache.clone() } else { cache.with_prefix("x").with_prefix("") };
            view.get_or_set("a", Timeout::Default, || {
                dawdle();
                computed.fetch_add(1, SeqCst)
            })
            .unwrap();
        });
        assert_eq!(computed.load(SeqCst), 1);
    });
}

#[test]
fn other_keys_do_not_wait() {
    with_cache(|cache, _| {
        // Each closure ends only once all are being computed at the same time.
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for n in 0..8 {
                let (cache, barrier) = (&cache, &barrier);
                scope.spawn(move || {
                    cache
                        .get_or_set(&n.to_string(), Timeout::Default, || barrier.wait().is_leader())
                });
            }
        });
        assert_eq!(cache.len(), 8);
    });
}

#[test]
fn without_a_timeout_those_who_wait_still_get_the_value() {
    with_cache(|cache, _| {
        let (computed, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
        on_64_threads(|_| {
            started.fetch_add(1, SeqCst);
            let compute = || {
                // Not before everybody is about to ask.
                while started.load(SeqCst) < 64 {
                    thread::yield_now();
                }
                dawdle();
                computed.fetch_add(1, SeqCst)
            };
            cache.get_or_set("a", secs(0), compute).unwrap()
        });
        // Nothing is kept, so who comes after a landing computes anew; but not each of the 64.
        assert!((1..=16).contains(&computed.load(SeqCst)), "{computed:?}");
        assert!(cache.is_empty());
    });
}

#[test]
fn after_a_panic_one_of_the_others_computes() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        let results = on_64_threads(|_| {
            let compute = || {
                dawdle();
                if computed.fetch_add(1, SeqCst) < 3 {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
                7
            };
            catch_unwind(AssertUnwindSafe(|| {
                cache.get_or_set("a", Timeout::Default, compute).unwrap()
            }))
        });
        assert_eq!(computed.load(SeqCst), 4);
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 3);
        assert!(results.iter().flatten().all(|value| *value == 7));
    });
}

#[test]
fn after_an_error_one_of_the_others_computes() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        let results = on_64_threads(|_| {
            cache.try_get_or_set("a", Timeout::Default, || {
                dawdle();
                match computed.fetch_add(1, SeqCst) {
                    n if n < 3 => Err(n),
                    n => Ok(n),
                }
            })
        });
        assert_eq!(computed.load(SeqCst), 4);
        assert_eq!(
            results.iter().filter(|r| matches!(r, Err(ComputeError::Compute(_)))).count(),
            3
        );
        assert!(results.iter().flatten().all(|value| *value == 3));
    });
}

#[test]
fn if_the_value_cannot_be_stored_those_who_wait_still_get_it() {
    for_each_backend(|make| {
        let cache = make.builder().max_bytes(4 << 20).open().unwrap();
        let (computed, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let lengths = on_64_threads(|_| {
            started.fetch_add(1, SeqCst);
            let compute = || {
                computed.fetch_add(1, SeqCst);
                while started.load(SeqCst) < 64 {
                    thread::yield_now();
                }
                dawdle();
                "x".repeat(5 << 20)
            };
            cache.get_or_set("a", Timeout::Default, compute).unwrap().len()
        });
        assert!(lengths.iter().all(|len| *len == 5 << 20));
        assert!((1..=16).contains(&computed.load(SeqCst)), "{computed:?}");
        assert_eq!(cache.stats().store_failures, computed.load(SeqCst) as u64);
    });
}

#[test]
fn who_wants_another_type_computes_for_itself() {
    with_cache(|cache, _| {
        let results = on_64_threads(|me| match me % 2 {
            0 => cache.get_or_set("a", Timeout::Default, || 7u8).unwrap() == 7,
            _ => cache.get_or_set("a", Timeout::Default, || "seven".to_owned()).unwrap() == "seven",
        });
        assert!(results.into_iter().all(|right| right));
    });
}

fn is_recursion<T>(result: Result<T, Error>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::Recursion && error.key().is_some())
}

#[test]
fn asking_for_the_key_being_computed_is_an_error() {
    with_cache(|cache, _| {
        let inner = |cache: &Cache| is_recursion(cache.get_or_set("a", Timeout::Default, || true));
        assert!(cache.get_or_set("a", Timeout::Default, || inner(&cache)).unwrap());
        assert_eq!(cache.get::<bool>("a").unwrap(), Some(true));
    });
}

#[test]
fn asking_for_it_by_way_of_another_key_is_an_error() {
    with_cache(|cache, _| {
        let innermost = || is_recursion(cache.get_or_set("a", Timeout::Default, || true));
        let inner = || cache.get_or_set("b", Timeout::Default, innermost).unwrap();
        assert!(cache.get_or_set("a", Timeout::Default, inner).unwrap());
        // The cache is fit for use afterwards.
        assert!(cache.get_or_set("c", Timeout::Default, || true).unwrap());
    });
}

#[test]
fn keys_within_keys_are_no_recursion() {
    with_cache(|cache, _| {
        fn depth(cache: &Cache, n: u64) -> u64 {
            if n == 0 {
                0
            } else {
                cache
                    .get_or_set(&n.to_string(), Timeout::Default, || depth(cache, n - 1) + 1)
                    .unwrap()
            }
        }
        assert_eq!(depth(&cache, 50), 50);
    });
}

#[test]
fn two_threads_that_would_wait_for_each_other_do_not() {
    with_cache(|cache, _| {
        // One computes a and asks for b while the other computes b and asks for a.
        let both = Barrier::new(2);
        let ask = |mine: &str, other: &str| {
            cache.try_get_or_set(mine, Timeout::Default, || {
                both.wait();
                match cache.get_or_set(other, Timeout::Default, || 1) {
                    Err(error) if error.kind() == ErrorKind::Recursion => Ok(100),
                    other => other.map(|value| value + 1),
                }
            })
        };
        let values = thread::scope(|scope| {
            let (a, b) = (scope.spawn(|| ask("a", "b")), scope.spawn(|| ask("b", "a")));
            let mut values = [a.join().unwrap().unwrap(), b.join().unwrap().unwrap()];
            values.sort();
            values
        });
        // One of them is told, and goes on; the other then gets what that one computed.
        assert_eq!(values, [100, 101]);
    });
}

#[test]
fn a_circle_through_two_caches_is_found_too() {
    for_each_backend(|make| {
        let (left, right) = (make.builder().open().unwrap(), make.builder().open().unwrap());
        let both = Barrier::new(2);
        let ask = |mine: &Cache, other: &Cache| {
            mine.get_or_set("a", Timeout::Default, || {
                both.wait();
                other.get_or_set("a", Timeout::Default, || 1).unwrap_or(100)
            })
            .unwrap()
        };
        thread::scope(|scope| {
            let (a, b) = (scope.spawn(|| ask(&left, &right)), scope.spawn(|| ask(&right, &left)));
            assert_eq!([a.join().unwrap(), b.join().unwrap()], [100, 100]);
        });
    });
}
