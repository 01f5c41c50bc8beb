//! The flight table: the single flights of this process, and the wait-for graph between them.
//!
//! A *flight* is one computation of one key of one cache. The first caller that misses the key
//! starts it and is its *leader*. Callers that miss the key while it runs are its *waiters*; they
//! receive the value of the leader, or look the key up again if the leader failed.
//!
//! The wait-for graph has the flights as nodes. A flight has an edge to the flight that it waits
//! for, and a parent flight waits for the child that its computation started. Before a computation
//! waits for a flight, [`FlightTable::waits_for`] searches the graph. If the wait would close a
//! cycle, the caller gets `Recursion` instead of a deadlock. This covers a closure that asks for
//! its own key, a chain (A asks for B, B for A), and a cycle across threads and caches (one thread
//! computes A and asks for B, another computes B and asks for A).
//!
//! The graph knows what a computation itself asks for, on the thread that runs it at that moment.
//! So closures and futures are treated alike, and a thread or a task may have any number of them in
//! progress. A thread or a task that a computation starts is not tracked.
//!
//! Callers wait with their thread or as a future, for the same flights. One combination is not
//! allowed: a thread of an async runtime must not block on a flight that a future leads, because
//! that future may need the thread to make progress. Such a caller computes the value itself.
//!
//! One mutex guards the table and the graph, for all caches of the process. Only a miss takes it: a
//! few times, for a few map operations each.
//!
//! The table covers one process. Between processes that share a store, the leader of a flight also
//! holds the claim to compute (see [`single_flight`](super::single_flight)), and releases it before
//! the flight completes.
//!
//! After a `fork` the child has none of the threads that lead and await the flights of its parent,
//! and one of those threads may have held the mutex. So the child starts with an empty table and a
//! new mutex. A leader or a waiter that its one thread inherited is dropped without a lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::backend::Claim;
use crate::sys::fork::{EachEpoch, Epoch};

static TABLE: EachEpoch<Mutex<FlightTable>> = EachEpoch::new();

#[derive(Default)]
struct FlightTable {
    flights: HashMap<FlightKey, Arc<Flight>>,
    /// The edges of the wait-for graph, reversed: a flight's id, and the flights that wait for it.
    waiting: HashMap<u64, Vec<Arc<Flight>>>,
}

/// How many flights have completed. Written under the mutex, also read without it, so that a hit
/// does not take it.
static COMPLETIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The innermost computation that this thread runs.
    static CURRENT: RefCell<Option<Arc<Flight>>> = const { RefCell::new(None) };
}

/// The number of a cache in this process, and a stored key.
type FlightKey = (u64, Box<str>);

struct Flight {
    id: u64,
    epoch: Epoch,
    led_by: Caller,
    /// The computation that started this one.
    parent: Option<Arc<Flight>>,
    waiters: AtomicU64,
    /// Set when the flight completes: the value as MessagePack; `None` if the leader failed or had
    /// no waiters.
    result: OnceLock<Option<Bytes>>,
    completed: Condvar,
    /// The wakers of the waiting futures, by the ids of their [`Waiter`]s.
    wakers: Mutex<HashMap<u64, Waker>>,
}

/// How a caller waits and computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// It blocks its thread while it waits or computes.
    Thread,
    /// It is a future, and returns its thread to the runtime while it waits or its computation
    /// does.
    Future,
}

impl Caller {
    /// Whether it must not wait for a flight that `leader` leads: it would block a thread of the
    /// runtime that the flight may need.
    fn must_not_wait_for(self, leader: Self) -> bool {
        #[cfg(feature = "async")]
        let on_runtime = || tokio::runtime::Handle::try_current().is_ok();
        #[cfg(not(feature = "async"))]
        let on_runtime = || false;
        self == Self::Thread && leader == Self::Future && on_runtime()
    }
}

fn table() -> MutexGuard<'static, FlightTable> {
    // No foreign code runs under the mutex, so a panic cannot have left the table half changed.
    TABLE.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The computation that this thread runs, if any. `None` while the thread is being torn down.
fn current() -> Option<Arc<Flight>> {
    CURRENT.try_with(|current| current.borrow().clone()).unwrap_or_default()
}

/// The computation that a thread runs, so that work for it can move to another thread.
pub(super) struct Computation(Option<Arc<Flight>>);

impl Computation {
    #[cfg(feature = "async")]
    pub(super) fn current() -> Self {
        Self(current())
    }

    /// Marks this thread as running the computation, until the guard is dropped.
    pub(super) fn enter(self) -> Entered {
        Entered { outer: CURRENT.try_with(|current| current.replace(self.0)).unwrap_or_default() }
    }
}

impl FlightTable {
    /// Whether `flight` waits for the computation `me`, directly or through others, so that it
    /// cannot complete before `me` continues. A breadth-first search from `me` along the reversed
    /// edges.
    fn waits_for(&self, flight: &Arc<Flight>, me: Arc<Flight>) -> bool {
        let mut reached = vec![me];
        let mut next = 0;
        while let Some(at) = reached.get(next).cloned() {
            if Arc::ptr_eq(&at, flight) {
                return true;
            }
            next += 1;
            let waiting = self.waiting.get(&at.id).into_iter().flatten();
            for other in waiting.chain(&at.parent) {
                if !reached.iter().any(|seen| Arc::ptr_eq(seen, other)) {
                    reached.push(other.clone());
                }
            }
        }
        false
    }
}

/// The flights of one cache.
pub(super) struct Flights(u64);

/// What a caller that missed a key must do.
pub(super) enum Joined {
    /// Compute: it is the leader of a new flight.
    Lead(StartedFlight),
    /// Wait for the leader of the flight.
    Wait(Waiter),
    /// Fail: it would wait for itself.
    Recursion,
}

/// A flight that the caller has just started.
pub(super) struct StartedFlight {
    pub(super) leader: Leader,
    /// Whether any flight completed after the given count was read. If so, the value may have been
    /// stored since the caller's lookup, and the caller must look again before it computes.
    pub(super) lookup_is_outdated: bool,
}

/// A count of completed flights, for [`Flights::join`]. The caller reads it before it looks a key
/// up.
pub(super) struct CompletionCount(u64);

impl Flights {
    pub(super) fn new() -> Self {
        static CACHES: AtomicU64 = AtomicU64::new(0);
        Self(CACHES.fetch_add(1, Relaxed))
    }

    /// How many flights have completed so far, in all caches of the process.
    pub(super) fn completions() -> CompletionCount {
        CompletionCount(COMPLETIONS.load(Acquire))
    }

    /// Joins the flight of `key`, or starts one. The caller missed the key in a lookup that began
    /// after it read `before_lookup`.
    pub(super) fn join(
        &self,
        key: &str,
        before_lookup: &CompletionCount,
        caller: Caller,
    ) -> Joined {
        let key: FlightKey = (self.0, key.into());
        let parent = current();
        let mut table = table();
        let Some(flight) = table.flights.get(&key).cloned() else {
            return Joined::Lead(table.start(key, parent, before_lookup, caller));
        };
        if parent.as_ref().is_some_and(|me| table.waits_for(&flight, me.clone())) {
            return Joined::Recursion;
        }
        if caller.must_not_wait_for(flight.led_by) {
            let leader = Leader::new(key, parent, caller);
            return Joined::Lead(StartedFlight::new(leader, before_lookup));
        }
        if let Some(me) = &parent {
            table.waiting.entry(flight.id).or_default().push(me.clone());
        }
        flight.waiters.fetch_add(1, Relaxed);
        Joined::Wait(Waiter { id: next_id(), flight, computation: parent })
    }

    /// Starts a flight of `key` if there is none.
    pub(super) fn lead(
        &self,
        key: &str,
        before_lookup: &CompletionCount,
        caller: Caller,
    ) -> Option<StartedFlight> {
        let key: FlightKey = (self.0, key.into());
        let parent = current();
        let mut table = table();
        (!table.flights.contains_key(&key)).then(|| table.start(key, parent, before_lookup, caller))
    }
}

impl FlightTable {
    fn start(
        &mut self,
        key: FlightKey,
        parent: Option<Arc<Flight>>,
        before_lookup: &CompletionCount,
        caller: Caller,
    ) -> StartedFlight {
        let leader = Leader::new(key.clone(), parent, caller);
        self.flights.insert(key, leader.flight.clone());
        StartedFlight::new(leader, before_lookup)
    }
}

impl StartedFlight {
    fn new(leader: Leader, before_lookup: &CompletionCount) -> Self {
        Self { leader, lookup_is_outdated: COMPLETIONS.load(Relaxed) != before_lookup.0 }
    }
}

/// An id for a flight or a waiter.
fn next_id() -> u64 {
    static IDS: AtomicU64 = AtomicU64::new(0);
    IDS.fetch_add(1, Relaxed)
}

/// A waiter of a flight: call [`wait`](Waiter::wait) to block the thread, or await it.
pub(super) struct Waiter {
    id: u64,
    flight: Arc<Flight>,
    /// The computation that waits, if the caller runs one.
    computation: Option<Arc<Flight>>,
}

impl Waiter {
    /// Blocks until the flight completes, and returns its value. `None` if the caller must look the
    /// key up again: the leader failed, or the process was forked since.
    pub(super) fn wait(self) -> Option<Bytes> {
        let mut table = table();
        while !self.flight.epoch.is_over() {
            if let Some(value) = self.flight.result.get() {
                drop(table);
                return value.clone();
            }
            table = self.flight.completed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Future for Waiter {
    type Output = Option<Bytes>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.flight.epoch.is_over() {
            return Poll::Ready(None);
        }
        let mut wakers = self.flight.wakers();
        // Read under the mutex of the wakers. The leader takes that mutex after it sets the result,
        // so either this sees the result or the leader sees this waker.
        match self.flight.result.get() {
            Some(value) => Poll::Ready(value.clone()),
            None => {
                let before = wakers.insert(self.id, context.waker().clone());
                drop(wakers);
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.flight.epoch.is_over() {
            return;
        }
        self.flight.waiters.fetch_sub(1, Relaxed);
        let waker = self.flight.wakers().remove(&self.id);
        drop(waker);
        let Some(me) = &self.computation else { return };
        let mut table = table();
        if let Some(waiting) = table.waiting.get_mut(&self.flight.id) {
            if let Some(at) = waiting.iter().position(|other| Arc::ptr_eq(other, me)) {
                waiting.swap_remove(at);
            }
            if waiting.is_empty() {
                table.waiting.remove(&self.flight.id);
            }
        }
    }
}

/// The leader of a flight: the right of one caller to compute one key. Dropping it, also by a
/// panic, completes the flight and wakes its waiters.
pub(super) struct Leader {
    key: FlightKey,
    flight: Arc<Flight>,
    /// Keeps other processes from computing the key.
    pub(super) claim: Claim,
}

impl Flight {
    fn wakers(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        // Wakers are foreign code: they are called and dropped without the mutex.
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leader {
    fn new(key: FlightKey, parent: Option<Arc<Flight>>, led_by: Caller) -> Self {
        let flight = Flight {
            id: next_id(),
            epoch: Epoch::now(),
            led_by,
            parent,
            waiters: AtomicU64::new(0),
            result: OnceLock::new(),
            completed: Condvar::new(),
            wakers: Mutex::default(),
        };
        Self { key, flight: Arc::new(flight), claim: Claim::default() }
    }

    /// Marks this thread as running the computation, until the guard is dropped.
    pub(super) fn enter(&self) -> Entered {
        Computation(Some(self.flight.clone())).enter()
    }

    /// Whether the leader may wait for a computation of this process that is not a flight of this
    /// cache, so that the wait-for graph cannot check the wait. It must not if that computation may
    /// wait for the parent of this flight, or for this thread.
    pub(super) fn may_wait_unchecked(&self) -> bool {
        let Flight { parent, led_by, .. } = &*self.flight;
        parent.is_none() && !led_by.must_not_wait_for(Caller::Future)
    }

    /// Completes the flight with `value`, which is copied only if there is a waiter.
    pub(super) fn complete(self, value: &[u8]) {
        if self.flight.waiters.load(Relaxed) > 0 {
            let _ = self.flight.result.set(Some(Bytes::copy_from_slice(value)));
        }
    }
}

/// A guard: while it lives, its thread runs a computation.
pub(super) struct Entered {
    outer: Option<Arc<Flight>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let outer = self.outer.take();
        drop(CURRENT.try_with(|current| current.replace(outer)));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // First, or the leader of the next flight would find the claim taken.
        drop(mem::take(&mut self.claim));
        if self.flight.epoch.is_over() {
            return;
        }
        let mut table = table();
        // A caller that must not wait has a flight of its own, which is not in the table.
        if table.flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            table.flights.remove(&self.key);
        }
        COMPLETIONS.fetch_add(1, Release);
        self.flight.result.get_or_init(|| None);
        // A wake-up is a system call even without waiters. Waiters are counted under the mutex.
        if self.flight.waiters.load(Relaxed) > 0 {
            self.flight.completed.notify_all();
        }
        drop(table);
        let wakers = mem::take(&mut *self.flight.wakers());
        wakers.into_values().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn lead(flights: &Flights, key: &str) -> Leader {
        match flights.join(key, &Flights::completions(), Caller::Thread) {
            Joined::Lead(lead) => lead.leader,
            _ => panic!("no other caller computes {key}"),
        }
    }

    fn waits(flights: &Flights, key: &str) -> Option<Bytes> {
        match flights.join(key, &Flights::completions(), Caller::Thread) {
            Joined::Wait(waiter) => waiter.wait(),
            _ => panic!("another caller computes {key}"),
        }
    }

    /// Returns when `count` callers wait for `leader`. Waits for that condition, not for a fixed
    /// time.
    fn until_awaited(leader: &Leader, count: u64) {
        while leader.flight.waiters.load(Relaxed) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn waiters_receive_the_value_of_the_leader() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| waits(&flights, "a").is_some_and(|value| value == "x")))
                .collect();
            until_awaited(&leader, 8);
            leader.complete(b"x");
            assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
        });
    }

    #[test]
    fn a_leader_that_fails_wakes_its_waiters() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| waits(&flights, "a").is_none());
            until_awaited(&leader, 1);
            drop(leader);
            assert!(waiter.join().unwrap());
        });
        drop(lead(&flights, "a"));
    }

    #[test]
    fn each_key_of_each_cache_has_its_own_flight() {
        let (one, other) = (Flights::new(), Flights::new());
        let _leaders = (lead(&one, "a"), lead(&one, "b"), lead(&other, "a"));
    }

    #[test]
    fn a_computation_does_not_wait_for_itself() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        let entered = leader.enter();
        assert!(matches!(
            flights.join("a", &Flights::completions(), Caller::Thread),
            Joined::Recursion
        ));
        // A caller outside the computation may wait for it, on the same thread too.
        drop(entered);
        assert!(matches!(
            flights.join("a", &Flights::completions(), Caller::Thread),
            Joined::Wait(_)
        ));
    }

    #[test]
    fn a_wait_cycle_of_three_threads_is_detected() {
        let flights = Flights::new();
        let a = lead(&flights, "a");
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let (flights, tell_b) = (&flights, tell.clone());
            scope.spawn(move || {
                let b = lead(flights, "b");
                let _entered = b.enter();
                tell_b.send(()).unwrap();
                waits(flights, "a");
            });
            told.recv().unwrap();
            until_awaited(&a, 1);
            scope.spawn(move || {
                let c = lead(flights, "c");
                let _entered = c.enter();
                tell.send(()).unwrap();
                waits(flights, "b");
            });
            told.recv().unwrap();
            while table()
                .flights
                .get(&(flights.0, "b".into()))
                .is_none_or(|b| b.waiters.load(Relaxed) == 0)
            {
                thread::yield_now();
            }
            // c waits for b, and b waits for a, which this thread leads.
            let entered = a.enter();
            assert!(matches!(
                flights.join("c", &Flights::completions(), Caller::Thread),
                Joined::Recursion
            ));
            drop((entered, a));
        });
    }

    #[test]
    fn a_flight_that_completed_since_the_lookup_is_reported() {
        let flights = Flights::new();
        let before = Flights::completions();
        drop(lead(&flights, "a"));
        assert!(matches!(
            flights.join("a", &before, Caller::Thread),
            Joined::Lead(StartedFlight { lookup_is_outdated: true, .. })
        ));
    }
}
