//! Which calls run on the thread that polls them, and which move to a blocking thread of the
//! runtime.

use keepwarm::{AsyncCache, Builder, Durability, ErrorKind, Lifespan, Timeout};

use crate::common::for_each_backend;
use crate::{CountingClock, at_once, runtimes, secs, with_cache, with_options};

const LARGE: usize = 64 << 10;

#[test]
fn hits_and_small_writes_complete_on_the_first_poll() {
    with_cache(async |cache, _| {
        assert!(at_once(cache.set("a", "small", Timeout::Default)).unwrap().is_ok());
        assert_eq!(at_once(cache.get::<String>("a")).unwrap().unwrap().as_deref(), Some("small"));
        assert_eq!(at_once(cache.get::<String>("missing")).unwrap().unwrap(), None);
        assert!(at_once(cache.contains_key("a")).unwrap().unwrap());
        assert!(at_once(cache.get_entry::<String>("a")).unwrap().unwrap().is_some());
        assert!(at_once(cache.get_bytes("missing")).unwrap().unwrap().is_none());
        let hit =
            cache.get_or_set("a", Timeout::Default, async || -> String { panic!("it is there") });
        assert_eq!(at_once(hit).unwrap().unwrap(), "small");
        let computed = cache.get_or_set("b", Timeout::Default, async || 1);
        assert_eq!(
            at_once(computed).unwrap().unwrap(),
            1,
            "a computation that is ready at once completes too"
        );
        assert_eq!(at_once(cache.incr("b", 1)).unwrap().unwrap(), 2);
        assert!(at_once(cache.touch("a", Timeout::Never)).unwrap().unwrap());
        assert!(!at_once(cache.add("a", &1, Timeout::Never)).unwrap().unwrap());
        assert!(at_once(cache.lease("lease", secs(1))).unwrap().unwrap().is_some());
        assert!(at_once(cache.delete("a")).unwrap().unwrap());
        assert_eq!(at_once(cache.len()), Some(1));
        assert_eq!(at_once(cache.get_many::<u8, _>(&["b", "a"])).unwrap().len(), 2);
        assert!(at_once(cache.set_bytes("c", &[1; 60_000], Timeout::Never)).unwrap().is_ok());
        assert_eq!(at_once(cache.get_bytes("c")).unwrap().unwrap().unwrap().len(), 60_000);
    });
}

/// Awaits a call that must run on another thread.
async fn runs_elsewhere<F: Future>(clock: &CountingClock, call: F) -> F::Output {
    let (left, output) = clock.left_the_thread(call).await;
    assert!(left, "the call ran on the thread that awaited it");
    output
}

#[test]
fn large_values_are_moved_to_another_thread() {
    with_options(
        |builder| builder,
        async |cache, clock: CountingClock| {
            let large = vec![7u8; LARGE];
            runs_elsewhere(&clock, cache.set_bytes("a", &large, secs(9))).await.unwrap();
            runs_elsewhere(&clock, cache.set("a", &large, secs(9))).await.unwrap();
            let hit = cache.get_or_set("a", secs(9), async || -> Vec<u8> { panic!("it is there") });
            assert_eq!(runs_elsewhere(&clock, hit).await.unwrap(), large);
            assert_eq!(
                runs_elsewhere(&clock, cache.get::<Vec<u8>>("a")).await.unwrap().unwrap(),
                large
            );
            assert_eq!(runs_elsewhere(&clock, cache.get_bytes("a")).await.unwrap().unwrap(), large);
            assert!(runs_elsewhere(&clock, cache.touch("a", secs(5))).await.unwrap());
            assert_eq!(runs_elsewhere(&clock, cache.incr_version("a", 1)).await.unwrap(), 2);
            let there = cache.with_version(2);
            assert_eq!(there.get_bytes("a").await.unwrap().unwrap(), large);
            let computed =
                runs_elsewhere(&clock, cache.get_or_set("b", secs(9), async || large.clone()));
            assert_eq!(computed.await.unwrap(), large);
            assert_eq!(cache.get::<Vec<u8>>("b").await.unwrap().unwrap(), large);
            // A value one byte smaller stays on this thread.
            let (left, set) =
                clock.left_the_thread(cache.set_bytes("c", &large[1..], secs(9))).await;
            assert_eq!((left, set.is_ok()), (false, true));
        },
    );
}

/// Runs `test` on a directory with these options, on each kind of runtime.
fn in_a_directory(
    options: impl Fn(Builder) -> Builder,
    test: impl AsyncFn(AsyncCache, CountingClock),
) {
    for runtime in runtimes() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), CountingClock::default());
        let builder = options(Builder::new(dir.path()).clock(clock.clone()));
        runtime.block_on(async { test(builder.open_async().await.unwrap(), clock).await });
    }
}

#[test]
fn calls_that_sync_are_moved_to_another_thread() {
    in_a_directory(
        |builder| builder.durability(Durability::Sync),
        async |cache, clock| {
            runs_elsewhere(&clock, cache.set("a", &1, secs(9))).await.unwrap();
            runs_elsewhere(&clock, cache.set_bytes("b", b"b", secs(9))).await.unwrap();
            assert_eq!(runs_elsewhere(&clock, cache.incr("a", 1)).await.unwrap(), 2);
            let read = at_once(cache.get::<u8>("a")).unwrap().unwrap();
            assert_eq!(read, Some(2), "a read stays on this thread");
            assert_eq!(
                runs_elsewhere(&clock, cache.get_or_set("c", secs(9), async || 2)).await.unwrap(),
                2
            );
            let lease =
                runs_elsewhere(&clock, cache.lease("lease", secs(60))).await.unwrap().unwrap();
            assert!(runs_elsewhere(&clock, lease.release()).await.unwrap());
        },
    );
}

#[test]
fn reopening_a_directory_is_moved_to_another_thread() {
    in_a_directory(
        |builder| builder,
        async |cache, clock| {
            cache.set("a", &1, secs(9)).await.unwrap();
            cache.close().await.unwrap();
            assert_eq!(runs_elsewhere(&clock, cache.get::<u8>("a")).await.unwrap(), Some(1));
            cache.close().await.unwrap();
            runs_elsewhere(&clock, cache.set("a", &2, secs(9))).await.unwrap();
            cache.close().await.unwrap();
            assert_eq!(
                runs_elsewhere(&clock, cache.get_or_set("a", secs(9), async || 3)).await.unwrap(),
                2
            );
            cache.close().await.unwrap();
            assert!(runs_elsewhere(&clock, cache.touch("a", secs(9))).await.unwrap());
            cache.close().await.unwrap();
            assert_eq!(cache.len().await, 1);
            assert!(runs_elsewhere(&clock, cache.check()).await.unwrap().is_sound());
            assert_eq!(
                at_once(cache.get::<u8>("a")).unwrap().unwrap(),
                Some(2),
                "it is open again"
            );
        },
    );
}

#[test]
fn a_write_that_evicts_many_is_moved_to_another_thread() {
    with_options(
        |builder| builder.max_entries(2_000),
        async |cache, clock: CountingClock| {
            for n in 0..2_000 {
                assert!(at_once(cache.set(&n.to_string(), &n, secs(9))).unwrap().is_ok(), "{n}");
            }
            runs_elsewhere(&clock, cache.set("one more", &1, secs(9))).await.unwrap();
            // The cull freed room for more than one entry.
            assert!(at_once(cache.set("the next", &1, secs(9))).is_some());
        },
    );
    // A write that evicts few entries stays on this thread.
    with_options(
        |builder| builder.max_entries(100),
        async |cache, _: CountingClock| {
            for n in 0..200 {
                assert!(
                    at_once(cache.set(&n.to_string(), &n, Timeout::Never)).unwrap().is_ok(),
                    "{n}"
                );
            }
        },
    );
}

#[test]
fn calls_for_many_keys_yield_to_other_tasks() {
    with_cache(async |cache, _| {
        let keys: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        assert!(cache.set_many(keys.iter().map(|key| (key, 1)), Timeout::Never).await.is_empty());
        assert!(at_once(cache.get_many::<u8, _>(&keys)).is_none());
        let values = cache.get_many::<u8, _>(&keys).await;
        assert!(values.into_iter().all(|value| value.unwrap() == Some(1)));
        assert!(cache.delete_many(&keys).await.into_iter().all(|deleted| deleted.unwrap()));
    });
}

#[test]
fn without_a_runtime_calls_complete_on_the_first_poll() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap().into_async();
        let large = vec![7u8; LARGE];
        at_once(cache.set("a", &large, Timeout::Never)).unwrap().unwrap();
        assert_eq!(at_once(cache.get::<Vec<u8>>("a")).unwrap().unwrap().unwrap(), large);
        at_once(cache.clear()).unwrap().unwrap();
        let lifespan = Lifespan::new(secs(1)).stale_for(secs(1));
        assert_eq!(at_once(cache.get_or_set("b", lifespan, async || 1)).unwrap().unwrap(), 1);
        let mut keys = cache.keys();
        assert_eq!(at_once(keys.next()).unwrap().unwrap().unwrap(), "b");
        assert!(at_once(keys.next()).unwrap().is_none());
    });
}

#[test]
fn after_shutdown_calls_that_need_a_thread_are_interrupted() {
    for_each_backend(|make| {
        for runtime in runtimes() {
            let cache = make.builder().open().unwrap().into_async();
            let handle = runtime.handle().clone();
            runtime.shutdown_background();
            let _within = handle.enter();
            let large = vec![7u8; LARGE];
            let error = at_once(cache.set("a", &large, Timeout::Never)).unwrap().unwrap_err();
            assert_eq!((error.kind(), error.key()), (ErrorKind::Interrupted, Some("a")));
            // A computed value is returned all the same.
            let computed =
                at_once(cache.get_or_set("a", Timeout::Never, async || large.clone())).unwrap();
            assert_eq!(computed.unwrap(), large);
            assert_eq!(cache.blocking().stats().store_failures, 1);
            assert_eq!(at_once(cache.set("b", &1, Timeout::Never)).unwrap().ok(), Some(()));
        }
    });
}

/// Only compiled: the futures are `Send` if their arguments are, so they can be spawned.
#[expect(dead_code, reason = "compiled, not called")]
fn futures_are_send(cache: &AsyncCache) {
    fn is_send<T: Send>(_: T) {}
    is_send(cache.get::<String>("a"));
    is_send(cache.set("a", "b", Timeout::Default));
    is_send(cache.get_or_set("a", Timeout::Default, async || 1));
    is_send(cache.try_get_or_set("a", Timeout::Default, || async { "1".parse::<u8>() }));
    is_send(cache.set_many([("a", 1)], Timeout::Default));
    is_send(cache.get_many::<u8, _>(&["a"]));
    is_send(cache.keys().next());
    is_send(cache.iter::<String>().next());
    is_send(cache.lease("a", secs(1)));
    is_send(AsyncCache::open("dir"));
}
