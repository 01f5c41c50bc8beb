//! Single flight among tasks and threads: of all that miss a key at the same time exactly one
//! computes, and none waits forever.

use std::future::pending;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use keepwarm::{AsyncCache, ComputeError, Error, ErrorKind, Lifespan, Timeout};
use tokio::join;
use tokio::sync::{Barrier, Notify};
use tokio::task::JoinSet;

use crate::{at_once, poll, secs, with_cache, yield_for_a_while};

/// Runs `call` in 64 tasks. Its arguments are the cache and the number of the task.
async fn in_64_tasks<R: Send + 'static, F: Future<Output = R> + Send + 'static>(
    cache: &AsyncCache,
    call: impl Fn(AsyncCache, usize) -> F,
) -> Vec<Result<R, tokio::task::JoinError>> {
    let mut tasks = JoinSet::new();
    for me in 0..64 {
        tasks.spawn(call(cache.clone(), me));
    }
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        results.push(result);
    }
    results
}

#[test]
fn sixty_four_tasks_compute_once() {
    with_cache(async |cache, _| {
        let computed = Arc::new(AtomicUsize::new(0));
        let values = in_64_tasks(&cache, |cache, me| {
            let computed = computed.clone();
            async move {
                let compute = async || {
                    computed.fetch_add(1, SeqCst);
                    yield_for_a_while().await;
                    me
                };
                cache.get_or_set("a", Timeout::Default, compute).await.unwrap()
            }
        });
        let values: Vec<usize> = values.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(computed.load(SeqCst), 1);
        assert!(values.iter().all(|value| *value == values[0]));
    });
}

#[test]
fn neither_closure_nor_future_has_to_be_static() {
    with_cache(async |cache, _| {
        let (text, mut calls) = (String::from("borrowed"), 0);
        let value = cache
            .get_or_set("a", Timeout::Default, async || {
                calls += 1;
                tokio::task::yield_now().await;
                text.len()
            })
            .await;
        assert_eq!((value.unwrap(), calls), (8, 1));
    });
}

#[test]
fn dropping_the_computing_future_lets_a_waiter_compute() {
    with_cache(async |cache, _| {
        let computed = Arc::new(AtomicUsize::new(0));
        let mut leader = Box::pin(cache.get_or_set("a", Timeout::Default, pending::<usize>));
        assert!(poll(leader.as_mut()).is_none());
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut waiters = JoinSet::new();
        for _ in 0..8 {
            let (cache, computed, waiting) = (cache.clone(), computed.clone(), waiting.clone());
            waiters.spawn(async move {
                let compute = async || {
                    yield_for_a_while().await;
                    computed.fetch_add(1, SeqCst) + 1
                };
                let mut call = pin!(cache.get_or_set("a", Timeout::Default, compute));
                assert!(poll(call.as_mut()).is_none(), "another task computes");
                waiting.fetch_add(1, SeqCst);
                call.await.unwrap()
            });
        }
        while waiting.load(SeqCst) < 8 {
            tokio::task::yield_now().await;
        }
        assert_eq!(computed.load(SeqCst), 0);
        drop(leader);
        while let Some(value) = waiters.join_next().await {
            assert_eq!(value.unwrap(), 1);
        }
        assert_eq!(computed.load(SeqCst), 1);
    });
}

#[test]
fn a_waiting_future_can_be_dropped() {
    with_cache(async |cache, _| {
        let go_on = Notify::new();
        let compute = async || {
            go_on.notified().await;
            1
        };
        let mut leader = pin!(cache.get_or_set("a", Timeout::Default, compute));
        assert!(poll(leader.as_mut()).is_none());
        let waiter = || cache.get_or_set("a", Timeout::Default, async || 2);
        assert!(at_once(waiter()).is_none());
        let stays = waiter();
        go_on.notify_one();
        let (led, waited) = join!(leader, stays);
        assert_eq!((led.unwrap(), waited.unwrap()), (1, 1));
    });
}

#[test]
fn after_a_panic_or_an_error_a_waiter_computes() {
    with_cache(async |cache, _| {
        let computed = Arc::new(AtomicUsize::new(0));
        let results = in_64_tasks(&cache, |cache, _| {
            let computed = computed.clone();
            async move {
                let compute = async || {
                    yield_for_a_while().await;
                    match computed.fetch_add(1, SeqCst) {
                        0 | 1 => resume_unwind(Box::new("on purpose")),
                        n @ (2 | 3) => Err(n),
                        n => Ok(n),
                    }
                };
                cache.try_get_or_set("a", Timeout::Default, compute).await
            }
        });
        let results = results.await;
        assert_eq!(computed.load(SeqCst), 5);
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 2);
        let failed =
            results.iter().flatten().filter(|r| matches!(r, Err(ComputeError::Compute(2 | 3))));
        assert_eq!(failed.count(), 2);
        assert!(results.iter().flatten().flatten().all(|value| *value == 4));
    });
}

fn is_recursion<T>(result: Result<T, Error>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::Recursion && error.key().is_some())
}

#[test]
fn asking_for_the_key_being_computed_is_an_error() {
    with_cache(async |cache, _| {
        let inner = async || {
            tokio::task::yield_now().await;
            is_recursion(cache.get_or_set("a", Timeout::Default, async || true).await)
        };
        assert!(cache.get_or_set("a", Timeout::Default, inner).await.unwrap());
        let innermost =
            async || is_recursion(cache.get_or_set("b", Timeout::Default, async || true).await);
        let inner = async || cache.get_or_set("c", Timeout::Default, innermost).await.unwrap();
        assert!(cache.get_or_set("b", Timeout::Default, inner).await.unwrap());
        // Through the blocking call too.
        let inner =
            async || is_recursion(cache.blocking().get_or_set("d", Timeout::Default, || true));
        assert!(cache.get_or_set("d", Timeout::Default, inner).await.unwrap());
        // Also if the lookup is moved to another thread and the task resumes on a third.
        let large = vec![255u8; 100_000];
        let inner = async || {
            cache.set("e", &large, Timeout::Default).await.unwrap();
            is_recursion(cache.get_or_set("e", Timeout::Default, async || true).await)
        };
        assert!(cache.get_or_set("e", Timeout::Default, inner).await.unwrap());
    });
}

#[test]
fn computations_within_one_task_are_independent() {
    with_cache(async |cache, _| {
        let computed = AtomicUsize::new(0);
        let ask = |key: &'static str| {
            cache.get_or_set(key, Timeout::Default, async || {
                yield_for_a_while().await;
                computed.fetch_add(1, SeqCst)
            })
        };
        let (one, other, third) = join!(ask("a"), ask("a"), ask("b"));
        assert_eq!(one.unwrap(), other.unwrap());
        third.unwrap();
        assert_eq!(computed.load(SeqCst), 2);
    });
}

#[test]
fn a_deadlock_of_two_computations_is_detected() {
    with_cache(async |cache, _| {
        // In two tasks, and within one task.
        for spawned in [true, false] {
            let both = Arc::new(Barrier::new(2));
            let ask = |mine: &'static str, other: &'static str| {
                let (cache, both) = (cache.clone(), both.clone());
                async move {
                    let compute = async || {
                        both.wait().await;
                        match cache.get_or_set(other, Timeout::Default, async || 1).await {
                            Err(error) if error.kind() == ErrorKind::Recursion => Ok(100),
                            other => other.map(|value| value + 1),
                        }
                    };
                    cache.try_get_or_set(mine, secs(0), compute).await.unwrap()
                }
            };
            let mut values = if spawned {
                let (a, b) = (tokio::spawn(ask("a", "b")), tokio::spawn(ask("b", "a")));
                [a.await.unwrap(), b.await.unwrap()]
            } else {
                let (a, b) = join!(ask("c", "d"), ask("d", "c"));
                [a, b]
            };
            values.sort();
            assert_eq!(values, [100, 101]);
        }
    });
}

#[test]
fn threads_and_tasks_share_one_computation() {
    with_cache(async |cache, _| {
        // A task computes, and a thread waits.
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let compute = async || {
            begun.notify_one();
            go_on.notified().await;
            1
        };
        let misses = cache.stats().await.misses;
        let leader = cache.get_or_set("a", Timeout::Default, compute);
        let thread = async {
            begun.notified().await;
            let blocking = cache.blocking().clone();
            let thread =
                thread::spawn(move || blocking.get_or_set("a", Timeout::Default, || 2).unwrap());
            while cache.stats().await.misses < misses + 2 {
                tokio::task::yield_now().await;
            }
            yield_for_a_while().await;
            go_on.notify_one();
            thread
        };
        let (led, thread) = join!(leader, thread);
        assert_eq!((led.unwrap(), thread.join().unwrap()), (1, 1));

        // A thread computes, and a task waits.
        let (tell, told) = tokio::sync::oneshot::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let blocking = cache.blocking().clone();
        let thread = thread::spawn(move || {
            let compute = || {
                tell.send(()).unwrap();
                may_go_on.recv().unwrap();
                1
            };
            blocking.get_or_set("b", Timeout::Default, compute).unwrap()
        });
        told.await.unwrap();
        let mut waiter = pin!(cache.get_or_set("b", Timeout::Default, async || 2));
        assert!(poll(waiter.as_mut()).is_none());
        go_on.send(()).unwrap();
        assert_eq!(waiter.await.unwrap(), 1);
        assert_eq!(thread.join().unwrap(), 1);
    });
}

#[test]
fn a_thread_of_the_runtime_does_not_wait_for_a_task() {
    with_cache(async |cache, _| {
        let mut leader = Box::pin(cache.get_or_set("a", Timeout::Default, pending::<u8>));
        assert!(poll(leader.as_mut()).is_none());
        // The leader cannot make progress while this call occupies the thread.
        assert_eq!(cache.blocking().get_or_set("a", Timeout::Default, || 2).unwrap(), 2);
        // The value stored meanwhile is returned to later callers.
        drop(leader);
        assert_eq!(cache.get_or_set("a", Timeout::Default, async || 3).await.unwrap(), 2);
    });
}

#[test]
fn other_callers_get_the_stale_value_at_once() {
    with_cache(async |cache, clock| {
        let lifespan = Lifespan::new(secs(10)).stale_for(secs(20));
        let ask = |value: u8| cache.get_or_set("a", lifespan, async move || value);
        assert_eq!(ask(1).await.unwrap(), 1);
        clock.advance(secs(10));
        let go_on = Notify::new();
        let compute = async || {
            go_on.notified().await;
            2
        };
        let mut refresher = Box::pin(cache.get_or_set("a", lifespan, compute));
        assert!(poll(refresher.as_mut()).is_none());
        for _ in 0..8 {
            assert_eq!(at_once(ask(99)).expect("it returns without waiting").unwrap(), 1);
        }
        assert_eq!(cache.blocking().get_or_set("a", lifespan, || 99).unwrap(), 1);
        go_on.notify_one();
        assert_eq!(refresher.await.unwrap(), 2);
        assert_eq!(ask(99).await.unwrap(), 2);

        // If the refresher is dropped, the next caller computes; if it fails, the value is kept.
        clock.advance(secs(10));
        assert!(at_once(cache.get_or_set("a", lifespan, pending::<u8>)).is_none());
        let fails = cache.try_get_or_set("a", lifespan, async || Err::<u8, _>("no luck")).await;
        assert_eq!(fails.unwrap(), 2);
        assert_eq!(ask(3).await.unwrap(), 3);
    });
}
