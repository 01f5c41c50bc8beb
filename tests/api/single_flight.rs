//! Single flight: of the threads that miss a key at the same time exactly one computes, and no
//! thread waits forever.
//!
//! Shows invariant I34.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use keepwarm::{Cache, ComputeError, Error, ErrorKind, Timeout};

use crate::{for_each_backend, secs, with_cache};

/// Runs `call` on 64 threads that start together. Its argument is the number of the thread.
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

/// Yields for a while, so that the other threads reach their wait.
fn yield_for_a_while() {
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
                yield_for_a_while();
                me
            };
            cache.get_or_set("a", Timeout::Default, compute).unwrap()
        });
        assert_eq!(computed.load(SeqCst), 1);
        assert!(values.iter().all(|value| *value == values[0]));
    });
}

#[test]
fn clones_and_views_share_one_computation() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        on_64_threads(|me| {
            let view =
                if me % 2 == 0 { cache.clone() } else { cache.with_prefix("x").with_prefix("") };
            view.get_or_set("a", Timeout::Default, || {
                yield_for_a_while();
                computed.fetch_add(1, SeqCst)
            })
            .unwrap();
        });
        assert_eq!(computed.load(SeqCst), 1);
    });
}

#[test]
fn computations_of_different_keys_run_concurrently() {
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
fn waiters_get_a_value_that_is_not_kept() {
    with_cache(|cache, _| {
        let (computed, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
        on_64_threads(|_| {
            started.fetch_add(1, SeqCst);
            let compute = || {
                // Not before all 64 threads are about to call.
                while started.load(SeqCst) < 64 {
                    thread::yield_now();
                }
                yield_for_a_while();
                computed.fetch_add(1, SeqCst)
            };
            cache.get_or_set("a", secs(0), compute).unwrap()
        });
        // Nothing is stored, so a call after the end of a flight computes again; but not all 64.
        assert!((1..=16).contains(&computed.load(SeqCst)), "{computed:?}");
        assert!(cache.is_empty());
    });
}

#[test]
fn after_a_panic_a_waiter_computes() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        let results = on_64_threads(|_| {
            let compute = || {
                yield_for_a_while();
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
fn after_an_error_a_waiter_computes() {
    with_cache(|cache, _| {
        let computed = AtomicUsize::new(0);
        let results = on_64_threads(|_| {
            cache.try_get_or_set("a", Timeout::Default, || {
                yield_for_a_while();
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
fn waiters_get_a_value_that_cannot_be_stored() {
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
                yield_for_a_while();
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
fn a_waiter_for_another_type_computes_for_itself() {
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
fn asking_for_it_through_another_key_is_an_error() {
    with_cache(|cache, _| {
        let innermost = || is_recursion(cache.get_or_set("a", Timeout::Default, || true));
        let inner = || cache.get_or_set("b", Timeout::Default, innermost).unwrap();
        assert!(cache.get_or_set("a", Timeout::Default, inner).unwrap());
        // The cache still works afterwards.
        assert!(cache.get_or_set("c", Timeout::Default, || true).unwrap());
    });
}

#[test]
fn nested_computations_of_other_keys_succeed() {
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
fn a_deadlock_of_two_threads_is_detected() {
    with_cache(|cache, _| {
        // One thread computes a and asks for b while the other computes b and asks for a.
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
        // One of them gets the error and continues; the other gets the value computed by the first.
        assert_eq!(values, [100, 101]);
    });
}

#[test]
fn a_deadlock_through_two_caches_is_detected() {
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
