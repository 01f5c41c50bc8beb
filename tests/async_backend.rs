//! A backend that is asynchronous itself is served where it is awaited: no call leaves the thread,
//! and none blocks it.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/toy_backend.rs"]
mod toy_backend;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use keepwarm::backend::{
    AsyncBackend, Backend, BoxFuture, Change, Condition, Item, Outcome, ScanBatch, Stored,
};
use keepwarm::testing::backend_contract::{Contract, Promise};
use keepwarm::{AsyncCache, Builder, ErrorKind, ManualClock, NewLimits, Result, Swap, Timeout};
use toy_backend::Toy;

/// The toy as a client of a server: an answer takes a few polls. Its blocking side refuses to run
/// on the thread of the runtime, and its asynchronous side to run on any other.
struct Remote {
    toy: Toy,
    /// The only thread on which it may be awaited; any, if there is none.
    thread: Option<ThreadId>,
    awaited: Arc<AtomicU64>,
}

impl Remote {
    fn here(clock: ManualClock) -> (Self, Arc<AtomicU64>) {
        let awaited = Arc::new(AtomicU64::new(0));
        let toy = Toy::new(clock, Arc::new(AtomicBool::new(false)));
        (Self { toy, thread: Some(thread::current().id()), awaited: awaited.clone() }, awaited)
    }

    fn blocking(&self) -> &Toy {
        assert_ne!(self.thread, Some(thread::current().id()), "a call blocks the runtime");
        &self.toy
    }

    /// The answer of the server, after a round trip.
    async fn answer<R>(&self, f: impl FnOnce(&Toy) -> R) -> R {
        self.awaited.fetch_add(1, SeqCst);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert!(self.thread.is_none_or(|thread| thread == thread::current().id()), "a thread hop");
        let answer = f(&self.toy);
        tokio::task::yield_now().await;
        answer
    }
}

impl Backend for Remote {
    fn get(&self, key: &str) -> Result<Option<Stored>> {
        self.blocking().get(key)
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.blocking().commit(key, condition, change)
    }

    fn clear(&self) -> Result<()> {
        self.blocking().clear()
    }

    fn len(&self) -> Result<u64> {
        self.blocking().len()
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.blocking().scan(cursor, visit)
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }
}

impl AsyncBackend for Remote {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Stored>>> {
        Box::pin(self.answer(|toy| toy.get(key)))
    }

    fn commit<'a>(
        &'a self,
        key: &'a str,
        condition: Condition,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(self.answer(move |toy| toy.commit(key, condition, change)))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.answer(Toy::clear))
    }

    fn len(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(self.answer(Toy::len))
    }

    fn scan(&self, cursor: u64) -> BoxFuture<'_, Result<ScanBatch>> {
        Box::pin(self.answer(move |toy| {
            let mut entries = Vec::new();
            let mut visit = |key: &str, item: Item<'_>| {
                let value = item.value.to_vec();
                let stored = Stored::new(value, item.codec, item.expires_at, item.token);
                entries.push((key.to_owned(), stored.with_soft(item.soft)));
            };
            let next = toy.scan(cursor, &mut visit)?;
            Ok(ScanBatch::new(entries, next))
        }))
    }
}

/// Runs `test` with a cache on such a backend, on a runtime of this thread alone, whose one
/// blocking thread is taken: whatever asked for it would wait for ever.
fn on_one_thread(test: impl AsyncFnOnce(AsyncCache, ManualClock, Arc<AtomicU64>)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (release, released) = mpsc::channel::<()>();
    let taken = runtime.spawn_blocking(move || released.recv().is_ok());
    runtime.block_on(async {
        let clock = ManualClock::new();
        let (remote, awaited) = Remote::here(clock.clone());
        let builder = Builder::backend(Box::new(remote)).clock(clock.clone());
        let cache = builder.open().unwrap().into_async();
        let limit = Duration::from_secs(60);
        let ended = tokio::time::timeout(limit, test(cache, clock, awaited)).await;
        ended.expect("no call waits for the blocking thread");
        drop(release);
        taken.await.unwrap();
    });
}

#[test]
fn both_sides_keep_the_contract() {
    let contract = Contract::new(|clock| {
        let toy = Toy::new(clock, Arc::new(AtomicBool::new(false)));
        Ok(Box::new(Remote { toy, thread: None, awaited: Arc::default() }))
    });
    let report = contract.check();
    println!("{report}");
    report.assert_kept();
    assert!(report.kept.contains(&Promise::AsyncSideAgrees));
}

#[test]
fn no_call_on_a_key_leaves_the_thread() {
    on_one_thread(async |cache, clock, awaited| {
        cache.set("a", "value", Timeout::Default).await.unwrap();
        assert_eq!(cache.get::<String>("a").await.unwrap().as_deref(), Some("value"));
        assert_eq!(*cache.get_shared::<String>("a").await.unwrap().unwrap(), "value");
        assert!(cache.contains_key("a").await.unwrap());
        assert!(!cache.add("a", "other", Timeout::Default).await.unwrap());
        assert!(cache.touch("a", Duration::from_secs(5)).await.unwrap());
        assert!(cache.ttl("a").await.unwrap().is_some());
        assert!(cache.persist("a").await.unwrap());
        let entry = cache.get_entry::<String>("a").await.unwrap().unwrap();
        let swapped = cache.compare_and_swap("a", Some(entry.token), "b", Timeout::Never).await;
        assert!(matches!(swapped.unwrap(), Swap::Stored(_)));
        let again = cache.compare_and_swap("a", Some(entry.token), "c", Timeout::Never).await;
        assert!(matches!(again.unwrap(), Swap::Conflict(Some(_))));
        assert_eq!(cache.incr_version("a", 1).await.unwrap(), 2);
        assert_eq!(cache.with_version(2).decr_version("a", 1).await.unwrap(), 1);
        assert!(cache.delete("a").await.unwrap());

        assert_eq!(cache.incr("n", 1).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(cache.incr_or_init("n", 5, 1, Duration::from_secs(9)).await.unwrap(), 6);
        assert_eq!(cache.decr("n", 2).await.unwrap(), 4);
        clock.advance(Duration::from_secs(9));
        assert_eq!(cache.get::<i64>("n").await.unwrap(), None);

        // More than 64 KiB, which goes to another thread where the backend blocks.
        let large = vec![7; 1_000_000];
        cache.set_bytes("large", &large, Timeout::Never).await.unwrap();
        assert_eq!(cache.get_bytes("large").await.unwrap().unwrap(), large);
        cache.set("large", &large, Timeout::Never).await.unwrap();
        assert_eq!(cache.get::<Vec<u8>>("large").await.unwrap().unwrap(), large);
        assert!(awaited.load(SeqCst) > 20);
    });
}

#[test]
fn no_call_on_many_keys_or_the_whole_store_leaves_the_thread() {
    on_one_thread(async |cache, _, _| {
        let items = (0..600).map(|n| (n.to_string(), n));
        assert!(cache.set_many(items, Timeout::Never).await.is_empty());
        let values = cache.get_many::<u32, _>(&["1", "599", "600"]).await;
        let values: Vec<_> = values.into_iter().map(Result::unwrap).collect();
        assert_eq!(values, [Some(1), Some(599), None]);
        assert_eq!(cache.delete_many(&["1"]).await.len(), 1);
        assert_eq!(cache.len().await, 599);
        let (mut keys, mut entries) = (cache.keys(), cache.iter::<u32>());
        let mut listed = 0;
        while let Some(key) = keys.next().await {
            let (_, value) = entries.next().await.unwrap().unwrap();
            assert!(key.is_ok() && value < 600);
            listed += 1;
        }
        assert_eq!(listed, 599);
        cache.flush().await.unwrap();
        cache.maintain().await.unwrap();
        assert!(cache.check().await.unwrap().is_sound());
        assert_eq!(cache.stats().await, cache.total_stats().await.unwrap());
        assert_eq!(cache.process_stats().await.unwrap().len(), 1);
        let refused = cache.configure(&NewLimits::new().max_entries(5)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
        cache.clear().await.unwrap();
        cache.close().await.unwrap();
        assert!(cache.is_empty().await);
    });
}

#[test]
fn one_task_computes_a_missing_key_and_none_leaves_the_thread() {
    on_one_thread(async |cache, _, _| {
        let computed = AtomicU64::new(0);
        let compute = async || {
            tokio::task::yield_now().await;
            computed.fetch_add(1, SeqCst)
        };
        let call = || cache.get_or_set("k", Timeout::Never, compute);
        let (a, b, c) = tokio::join!(call(), call(), call());
        assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (0, 0, 0));
        assert_eq!(cache.get_or_set("k", Timeout::Never, compute).await.unwrap(), 0);
        let failed = cache.try_get_or_set("other", Timeout::Never, async || Err::<u8, _>("no"));
        assert!(failed.await.is_err());
        let nothing =
            cache.get_or_set_option("none", Timeout::Never, Timeout::Never, async || None::<u8>);
        assert_eq!(nothing.await.unwrap(), None);
        assert_eq!(cache.get::<Option<u8>>("none").await.unwrap(), Some(None));
    });
}

#[test]
fn a_lease_is_taken_renewed_and_released_without_another_thread() {
    on_one_thread(async |cache, _, _| {
        let lease = cache.lease("k", Duration::from_secs(9)).await.unwrap().unwrap();
        assert!(cache.lease("k", Duration::from_secs(9)).await.unwrap().is_none());
        assert!(lease.renew(Duration::from_secs(5)).await.unwrap());
        assert!(lease.is_held().await.unwrap());
        assert!(lease.release().await.unwrap());
        // One that is dropped is released by a task.
        drop(cache.lease("k", Duration::from_secs(9)).await.unwrap().unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!cache.contains_key("k").await.unwrap());
        // So is one whose release is dropped before its end.
        let lease = cache.lease("k", Duration::from_secs(9)).await.unwrap().unwrap();
        poll_times(lease.release(), 2);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!cache.contains_key("k").await.unwrap());
    });
}

/// Polls a future some times and drops it. Says whether it was over.
fn poll_times(future: impl Future, times: usize) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..times).any(|_| future.as_mut().poll(&mut context).is_ready())
}

/// At whatever await a future is dropped, the cache works on: the entry is the old one or the new
/// one, and no later call waits for it.
#[test]
fn a_future_may_be_dropped_at_any_await() {
    on_one_thread(async |cache, _, _| {
        for times in 0..40 {
            cache.set("k", &1, Timeout::Never).await.unwrap();
            cache.delete("missing").await.unwrap();
            let compute = async || {
                tokio::task::yield_now().await;
                7
            };
            let mut over = 0;
            over += u32::from(poll_times(cache.set("k", &2, Timeout::Never), times));
            over += u32::from(poll_times(cache.incr("k", 10), times));
            over += u32::from(poll_times(cache.incr_version("k", 1), times));
            over +=
                u32::from(poll_times(cache.get_or_set("missing", Timeout::Never, compute), times));
            over += u32::from(poll_times(cache.get::<u8>("k"), times));
            let k = match cache.get::<u8>("k").await.unwrap() {
                Some(k) => k,
                // It was moved to the other version.
                None => cache.with_version(2).get::<u8>("k").await.unwrap().unwrap(),
            };
            assert!([1, 2, 11, 12].contains(&k), "{k} after {times} polls");
            let value = cache.get_or_set("missing", Timeout::Never, async || 7).await.unwrap();
            assert_eq!(value, 7);
            assert!(times < 39 || over == 5, "{over} of 5 calls were over after {times} polls");
            let mut keys = cache.keys();
            poll_times(keys.next(), times.min(3));
            let mut listed = 0;
            while let Some(key) = keys.next().await {
                key.unwrap();
                listed += 1;
            }
            let expected = cache.contains_key("k").await.unwrap();
            assert_eq!(listed, 1 + u32::from(expected), "an item is lost or comes twice");
            cache.clear().await.unwrap();
        }
    });
}

/// `Cache` calls the blocking side, from any thread that may block.
#[test]
fn blocking_callers_use_the_blocking_side() {
    let clock = ManualClock::new();
    let (remote, awaited) = Remote::here(clock.clone());
    let cache = Builder::backend(Box::new(remote)).clock(clock).open().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(cache.incr_or_init("n", 1, 0, Timeout::Never).unwrap(), 1);
            assert_eq!(cache.get_or_set("k", Timeout::Never, || 5).unwrap(), 5);
            assert_eq!(cache.len(), 2);
        });
    });
    assert_eq!(awaited.load(SeqCst), 0);
}
