//! Single flight and leases between processes that share a store. Each simulated process has its
//! own open file for its claims, which is all that the kernel distinguishes processes by; the store
//! is in memory. (`tests/single_flight.rs` uses real processes.)

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::single_flight::MAX_CLAIM_WAIT;
use super::{Builder, Cache};
use crate::backend::{
    Backend, Change, ClaimKey, Claimed, Condition, Item, Limits, MemoryBackend, NewLimits, Outcome,
    Stats, Stored,
};
use crate::engine::Claims;
use crate::error::Result;
use crate::hash::KeyHasher;
use crate::options::Options;
use crate::sys::storage::{HeldDirectory, SYSTEM};
use crate::time::ManualClock;
use crate::timeout::{Lifespan, Timeout};

/// What the processes share.
struct SharedStore {
    dir: TempDir,
    store: Arc<MemoryBackend>,
    clock: ManualClock,
}

impl SharedStore {
    fn new() -> Self {
        let clock = ManualClock::new();
        let options = Options { clock: Arc::new(clock.clone()), ..Options::default() };
        Self {
            dir: tempfile::tempdir().unwrap(),
            store: Arc::new(MemoryBackend::new(&options)),
            clock,
        }
    }

    fn process(&self) -> Process {
        let held = HeldDirectory::open(SYSTEM, self.dir.path()).unwrap();
        let claims = Claims::new(&held, self.dir.path().to_owned(), KeyHasher::new(&[7; 16]));
        self.cache_of(Arc::new(claims))
    }

    /// Another cache in the process that owns these claims.
    fn cache_of(&self, claims: Arc<Claims>) -> Process {
        let (refused, before_claim) = (Arc::default(), Arc::default());
        let store = ProcessStore {
            store: self.store.clone(),
            claims: claims.clone(),
            refused: Arc::clone(&refused),
            before_claim: Arc::clone(&before_claim),
        };
        let cache = Builder::in_memory().clock(self.clock.clone()).build(Box::new(store));
        Process { cache, claims, refused, before_claim }
    }
}

/// A process, or one cache of a process.
struct Process {
    cache: Cache,
    claims: Arc<Claims>,
    /// How many claims were refused because another process holds them.
    refused: Arc<AtomicUsize>,
    before_claim: Arc<Mutex<Option<Action>>>,
}

/// What another process does.
type Action = Box<dyn FnOnce() + Send>;

impl Process {
    /// Runs `action` just before the next claim of this process.
    fn before_next_claim(&self, action: impl FnOnce() + Send + 'static) {
        *self.before_claim.lock().unwrap() = Some(Box::new(action));
    }

    fn get_or_set(&self, key: &str, f: impl FnOnce() -> u32) -> u32 {
        self.cache.get_or_set(key, Timeout::Default, f).unwrap()
    }

    /// Returns when this process has polled a claim three times. Waits for that condition, not for
    /// a fixed time.
    fn until_it_waits(&self) {
        let (started, before) = (Instant::now(), self.refused.load(SeqCst));
        while self.refused.load(SeqCst) < before + 3 {
            assert!(started.elapsed() < MAX_CLAIM_WAIT, "it does not wait");
            thread::yield_now();
        }
    }
}

/// The store, as one process sees it: its claims are real.
struct ProcessStore {
    store: Arc<MemoryBackend>,
    claims: Arc<Claims>,
    refused: Arc<AtomicUsize>,
    before_claim: Arc<Mutex<Option<Action>>>,
}

impl Backend for ProcessStore {
    fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        let action = self.before_claim.lock().unwrap().take();
        action.into_iter().for_each(|action| action());
        let claimed = self.claims.claim(key);
        self.refused.fetch_add(usize::from(!matches!(claimed, Claimed::Mine(_))), SeqCst);
        claimed
    }

    fn visit(&self, key: &str, visit: &mut dyn FnMut(Item<'_>)) -> Result<bool> {
        self.store.visit(key, visit)
    }

    fn get(&self, key: &str) -> Result<Option<Stored>> {
        self.store.get(key)
    }

    fn weight(&self, key: &str) -> usize {
        self.store.weight(key)
    }

    fn commits_take_long(&self) -> bool {
        false
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.store.commit(key, condition, change)
    }

    fn clear(&self) -> Result<()> {
        self.store.clear()
    }

    fn len(&self) -> Result<u64> {
        self.store.len()
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.store.scan(cursor, visit)
    }

    fn maintain(&self) -> Result<()> {
        self.store.maintain()
    }

    fn flush(&self) -> Result<()> {
        self.store.flush()
    }

    fn close(&self) -> Result<()> {
        self.store.close()
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        self.store.configure(new)
    }

    fn stats(&self) -> Stats {
        self.store.stats()
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn one_thread_of_all_processes_computes_a_key() {
    let shared = SharedStore::new();
    let processes = [(); 4].map(|()| shared.process());
    for round in 0..50 {
        let (start, computed) = (Barrier::new(16), AtomicUsize::new(0));
        thread::scope(|scope| {
            for process in processes.iter().cycle().take(16) {
                let (start, computed) = (&start, &computed);
                scope.spawn(move || {
                    start.wait();
                    let compute = || {
                        thread::yield_now();
                        computed.fetch_add(1, SeqCst);
                        round
                    };
                    assert_eq!(process.get_or_set(&round.to_string(), compute), round);
                });
            }
        });
        assert_eq!(computed.load(SeqCst), 1, "round {round}");
    }
}

/// One process computes and another waits for it. Then the first process ends its computation with
/// the result of `end`. Returns what the waiting process gets.
fn while_another_waits(end: impl FnOnce(&Process) -> Option<u32> + Send) -> u32 {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    let begun = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let compute = || {
                begun.wait();
                other.until_it_waits();
                end(&one).unwrap_or_else(|| std::panic::resume_unwind(Box::new("on purpose")))
            };
            drop(catch_unwind(AssertUnwindSafe(|| one.get_or_set("a", compute))));
        });
        begun.wait();
        other.get_or_set("a", || 2)
    })
}

#[test]
fn a_waiting_process_receives_the_value() {
    assert_eq!(while_another_waits(|_| Some(1)), 1);
}

#[test]
fn if_the_computing_process_fails_a_waiter_computes() {
    assert_eq!(while_another_waits(|_| None), 2);
}

#[test]
fn if_the_computing_process_dies_a_waiter_computes() {
    let shared = SharedStore::new();
    let (dies, other) = (shared.process(), shared.process());
    let (begun, over) = (Barrier::new(2), Barrier::new(2));
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            dies.get_or_set("a", || {
                begun.wait();
                other.until_it_waits();
                dies.claims.die();
                over.wait();
                1
            })
        });
        begun.wait();
        assert_eq!(other.get_or_set("a", || 2), 2);
        assert!(started.elapsed() < MAX_CLAIM_WAIT, "it noticed the death late");
        over.wait();
    });
}

#[test]
fn the_wait_for_another_process_times_out() {
    let shared = SharedStore::new();
    let (stopped, mut waits) = (shared.process(), shared.process());
    // On a busy machine the process may be descheduled for its whole wait, and poll only once. So
    // it tries again with longer limits.
    let has_waited = (0..12).any(|n| {
        let key = n.to_string();
        let _claim = stopped.claims.claim(ClaimKey::Computation(&format!(":1:{key}")));
        Arc::get_mut(&mut waits.cache.shared).unwrap().max_claim_wait =
            Duration::from_millis(5 << n);
        let before = waits.refused.load(SeqCst);
        assert_eq!(waits.get_or_set(&key, || 2), 2);
        assert_eq!(stopped.get_or_set(&key, || 1), 2);
        waits.refused.load(SeqCst) >= before + 2
    });
    assert!(has_waited);
}

#[test]
fn without_claims_each_process_computes() {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    std::fs::remove_dir(shared.dir.path()).unwrap();
    let both = || one.get_or_set("a", || other.get_or_set("a", || 2) + 1);
    assert_eq!(both(), 2, "the first to store it wins");
    let lease = one.cache.lease("b", secs(5)).unwrap();
    assert!(lease.is_some() && other.cache.lease("b", secs(5)).unwrap().is_none());
}

#[test]
fn one_process_refreshes_while_others_get_the_stale_value() {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    let lifespan = Lifespan::new(secs(10)).stale_for(secs(20));
    let ask =
        |process: &Process, new: u32| process.cache.get_or_set("a", lifespan, || new).unwrap();
    assert_eq!(ask(&one, 1), 1);
    shared.clock.advance(secs(10));
    let refreshed = one.cache.get_or_set("a", lifespan, || {
        assert_eq!(ask(&other, 99), 1, "at once, on this same thread");
        2
    });
    assert_eq!((refreshed.unwrap(), ask(&other, 99)), (2, 2));
    assert_eq!(other.refused.load(SeqCst), 1, "it asked once");
    // After the stale window it is a miss.
    shared.clock.advance(secs(30));
    assert_eq!(ask(&other, 3), 3);
}

#[test]
fn a_value_stored_before_the_claim_is_not_recomputed() {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process().cache);
    one.before_next_claim(move || other.set("a", &1, Timeout::Never).unwrap());
    assert_eq!(one.get_or_set("a", || unreachable!("it is there")), 1);
}

#[test]
fn a_refresh_completed_before_the_claim_is_not_repeated() {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    let lifespan = Lifespan::new(secs(10)).stale_for(secs(20));
    one.cache.get_or_set("a", lifespan, || 1).unwrap();
    shared.clock.advance(secs(10));
    for _ in 0..200 {
        // The second process finds it fresh, or stale and claimed.
        let (start, computed) = (Barrier::new(2), AtomicUsize::new(0));
        thread::scope(|scope| {
            for process in [&one, &other] {
                let (start, computed) = (&start, &computed);
                scope.spawn(move || {
                    start.wait();
                    let compute = || computed.fetch_add(1, SeqCst);
                    process.cache.get_or_set("a", lifespan, compute).unwrap();
                });
            }
        });
        assert_eq!(computed.load(SeqCst), 1);
        shared.clock.advance(secs(10));
    }
}

#[test]
fn two_caches_of_a_process_wait_for_each_other_unless_nested() {
    let shared = SharedStore::new();
    let one = shared.process();
    let other = shared.cache_of(one.claims.clone());
    let begun = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            one.get_or_set("a", || {
                begun.wait();
                other.until_it_waits();
                1
            })
        });
        begun.wait();
        assert_eq!(other.get_or_set("a", || 2), 1);
    });
    let before = other.refused.load(SeqCst);
    assert_eq!(one.get_or_set("b", || other.get_or_set("b", || 2) + 1), 2);
    assert_eq!(other.refused.load(SeqCst), before + 1, "it did not wait");
}

#[test]
fn a_lease_has_one_holder_until_its_release() {
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    let lease = one.cache.lease("a", secs(5)).unwrap().unwrap();
    assert!(other.cache.lease("a", secs(5)).unwrap().is_none());
    assert!(one.cache.lease("a", secs(5)).unwrap().is_none(), "of the same process");
    assert!(lease.renew(secs(9)).unwrap());
    shared.clock.advance(secs(8));
    assert!(other.cache.lease("a", secs(5)).unwrap().is_none());
    // Released on another thread.
    thread::scope(|scope| drop(scope.spawn(move || lease.release().unwrap()).join()));
    let lease = other.cache.lease("a", secs(5)).unwrap().unwrap();
    assert!(one.cache.lease("a", secs(5)).unwrap().is_none());
    drop(lease);
    assert!(one.cache.lease("a", secs(5)).unwrap().is_some());
}

#[test]
fn one_process_takes_over_the_lease_of_a_dead_process() {
    let shared = SharedStore::new();
    let dies = shared.process();
    let others = [(); 8].map(|()| shared.process());
    for key in 0..50 {
        let key = key.to_string();
        // It never expires, and the renewal has changed its token.
        let lease = dies.cache.lease(&key, Duration::MAX).unwrap().unwrap();
        assert!(lease.renew(Duration::MAX).unwrap());
        assert!(others[0].cache.lease(&key, secs(5)).unwrap().is_none());
        dies.claims.die();
        let (start, end) = (Barrier::new(others.len()), Barrier::new(others.len()));
        let taken = AtomicUsize::new(0);
        thread::scope(|scope| {
            for other in &others {
                let (start, end, taken, key) = (&start, &end, &taken, &key);
                scope.spawn(move || {
                    start.wait();
                    let lease = other.cache.lease(key, secs(5)).unwrap();
                    end.wait();
                    taken.fetch_add(
                        usize::from(lease.is_some_and(|lease| lease.is_held().unwrap())),
                        SeqCst,
                    );
                });
            }
        });
        assert_eq!(taken.load(SeqCst), 1);
        assert!(!lease.is_held().unwrap() && !lease.release().unwrap());
    }
}

#[test]
fn a_replaced_lease_of_a_dead_process_is_not_taken_over() {
    let shared = SharedStore::new();
    let [dies, other, late] = [(); 3].map(|()| shared.process());
    let _lease = dies.cache.lease("a", secs(5)).unwrap().unwrap();
    dies.claims.die();
    let other = other.cache;
    late.before_next_claim(move || other.set("a", &1, Timeout::Never).unwrap());
    assert!(late.cache.lease("a", secs(5)).unwrap().is_none());
    assert_eq!(late.cache.get("a").unwrap(), Some(1));
}

#[test]
fn a_lost_lease_does_not_block_later_leases() {
    let shared = SharedStore::new();
    let [late, dies, next] = [(); 3].map(|()| shared.process());
    let lost = late.cache.lease("a", secs(5)).unwrap().unwrap();
    shared.clock.advance(secs(5));
    let held = dies.cache.lease("a", secs(5)).unwrap().unwrap();
    assert!(!lost.renew(secs(5)).unwrap() && !lost.release().unwrap());
    assert!(held.is_held().unwrap() && next.cache.lease("a", secs(5)).unwrap().is_none());
    dies.claims.die();
    assert!(next.cache.lease("a", secs(5)).unwrap().is_some());
}

#[test]
fn an_entry_without_a_lease_claim_is_not_taken_over() {
    let shared = SharedStore::new();
    let other = shared.process();
    // Entries like leases without a claim, and values that a program may have stored.
    for value in [&[1; 16][..], &[1; 24], &[0; 24], b"", b"claimed\n"] {
        other.cache.set_bytes("a", value, Timeout::Never).unwrap();
        assert!(other.cache.lease("a", secs(5)).unwrap().is_none());
        assert_eq!(other.cache.get_bytes("a").unwrap().unwrap(), value);
    }
    // A lease whose claim this process cannot query.
    let (holder, blind) = (shared.process(), shared.process());
    let _lease = holder.cache.lease("b", secs(5)).unwrap().unwrap();
    std::fs::remove_file(shared.dir.path().join("flights")).unwrap();
    std::fs::create_dir(shared.dir.path().join("flights")).unwrap();
    assert!(blind.cache.lease("b", secs(5)).unwrap().is_none());
}

#[cfg(feature = "async")]
#[test]
fn futures_wait_for_other_processes_without_blocking() {
    use std::future::poll_fn;
    use std::task::Poll;

    // The runtime has no timer.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let shared = SharedStore::new();
    let (one, other) = (shared.process(), shared.process());
    let [computes, waits] = [&one, &other].map(|process| process.cache.clone().into_async());
    runtime.block_on(async {
        let compute = async || {
            // The other future waits on the same thread.
            let before = other.refused.load(SeqCst);
            while other.refused.load(SeqCst) < before + 3 {
                tokio::task::yield_now().await;
            }
            1
        };
        let first = computes.get_or_set("a", Timeout::Default, compute);
        let second = waits.get_or_set("a", Timeout::Default, async || 2);
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.unwrap(), second.unwrap()), (1, 1));
        // A future that is dropped while it waits does not block later ones of its process.
        let claim = one.claims.claim(ClaimKey::Computation(":1:b"));
        let mut dropped = Box::pin(waits.get_or_set("b", Timeout::Default, async || 3));
        poll_fn(|context| {
            assert!(dropped.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        drop((dropped, claim));
        assert_eq!(waits.get_or_set("b", Timeout::Default, async || 4).await.unwrap(), 4);
    });
}
