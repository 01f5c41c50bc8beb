//! Single flight: of those who miss a key at the same time, one computes and the others wait.
//!
//! The flights of all caches of the process are under one mutex, with which computation waits for which, so
//! that one which would wait for itself is told so instead: directly (a closure asks for its own key), along a
//! chain (A asks for B, B for A), and across threads and caches (one computes A and asks for B, another
//! computes B and asks for A). What is known is what a computation itself asks for, on the thread that it runs
//! on at that moment; so it does not matter whether it is a closure or a future, and how many of them a thread
//! or a task has under way. What a computation starts elsewhere, as a thread or a task, is not seen through.
//!
//! Callers wait with their thread or as a future, for the same flights. The one thing that does not go together
//! is a thread of an async runtime that would wait, with the thread, for a future: that future may need the
//! very thread to go on. Such a caller computes for itself.
//!
//! The mutex is taken on a miss only, a few times, for a few map operations.
//!
//! That is within a process. Between processes that share a store the leader of a flight has the claim to compute
//! (see [`turn`](super::turn)), and lets go of it before the flight lands.
//!
//! A process that was forked has none of the threads that lead and await the flights of its parent, and one of them may
//! have had the mutex. So it begins with no flights and a mutex of its own. What its one thread has of the parent's, a
//! computation or a place among those who wait, is let go of without a lock.

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

static TOWER: EachEpoch<Mutex<Tower>> = EachEpoch::new();

#[derive(Default)]
struct Tower {
    flights: HashMap<Id, Arc<Flight>>,
    /// By the number of a flight: the computations that wait for it.
    held_up: HashMap<u64, Vec<Arc<Flight>>>,
}

/// How many flights have landed. Changed under the mutex, read also without, so that hits do not take it.
static LANDINGS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The computation that this thread is in, the innermost one.
    static WITHIN: RefCell<Option<Arc<Flight>>> = const { RefCell::new(None) };
}

/// A cache of this process, and a stored key.
type Id = (u64, Box<str>);

struct Flight {
    number: u64,
    epoch: Epoch,
    led_by: Caller,
    /// The computation that asked for this one.
    parent: Option<Arc<Flight>>,
    waiters: AtomicU64,
    /// What the leader brought for those who wait: the value's MessagePack, or nothing, if it failed or
    /// nobody was waiting.
    landed: OnceLock<Option<Bytes>>,
    has_landed: Condvar,
    /// Of the futures that wait, by the numbers of their tickets.
    wakers: Mutex<HashMap<u64, Waker>>,
}

/// How a caller goes about its flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// It waits and computes with its thread.
    Thread,
    /// It is a future, and gives its thread back while it waits or its computation does.
    Future,
}

impl Caller {
    /// Whether it must not wait for a flight that is led by `leader`.
    fn must_not_wait_for(self, leader: Self) -> bool {
        #[cfg(feature = "async")]
        let on_runtime = || tokio::runtime::Handle::try_current().is_ok();
        #[cfg(not(feature = "async"))]
        let on_runtime = || false;
        self == Self::Thread && leader == Self::Future && on_runtime()
    }
}

fn tower() -> MutexGuard<'static, Tower> {
    // No code of a caller's runs under the mutex, so a panic cannot have left it half changed.
    TOWER.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The computation that this thread is in, if it is in one (none while the thread ends).
fn within() -> Option<Arc<Flight>> {
    WITHIN.try_with(|within| within.borrow().clone()).unwrap_or_default()
}

/// The computation that some thread is in, to be taken to another.
pub(super) struct Computation(Option<Arc<Flight>>);

impl Computation {
    #[cfg(feature = "async")]
    pub(super) fn here() -> Self {
        Self(within())
    }

    /// Says that what this thread does belongs to the computation, until the result is dropped.
    pub(super) fn enter(self) -> Within {
        Within { before: WITHIN.try_with(|within| within.replace(self.0)).unwrap_or_default() }
    }
}

impl Tower {
    /// Whether `flight` cannot land before the computation `me` has gone on: whether `flight` is `me`, or is
    /// among those that wait for it, or asked for it, or wait for those, and so on.
    fn depends_on(&self, flight: &Arc<Flight>, me: Arc<Flight>) -> bool {
        let mut reached = vec![me];
        let mut next = 0;
        while let Some(at) = reached.get(next).cloned() {
            if Arc::ptr_eq(&at, flight) {
                return true;
            }
            next += 1;
            let held_up = self.held_up.get(&at.number).into_iter().flatten();
            for other in held_up.chain(&at.parent) {
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

/// How a caller that missed a key goes on.
pub(super) enum Joined {
    /// It computes.
    Lead(Lead),
    /// Somebody else does, and it waits.
    Wait(Ticket),
    /// It would wait for itself.
    Recursion,
}

/// A flight of one's own.
pub(super) struct Lead {
    pub(super) leader: Leader,
    /// Whether some flight has landed since the moment that was given, so that the value may be there by now.
    pub(super) stale: bool,
}

/// A moment, for [`Flights::join`]: taken before a key is looked for.
pub(super) struct Moment(u64);

impl Flights {
    pub(super) fn new() -> Self {
        static CACHES: AtomicU64 = AtomicU64::new(0);
        Self(CACHES.fetch_add(1, Relaxed))
    }

    pub(super) fn moment() -> Moment {
        Moment(LANDINGS.load(Acquire))
    }

    /// Joins the flight for `key`, if there is one; else begins one. The key was looked for, and missed, after
    /// `missed_since`.
    pub(super) fn join(&self, key: &str, missed_since: &Moment, caller: Caller) -> Joined {
        let id: Id = (self.0, key.into());
        let within = within();
        let mut tower = tower();
        let Some(flight) = tower.flights.get(&id).cloned() else {
            return Joined::Lead(tower.begin(id, within, missed_since, caller));
        };
        if within.as_ref().is_some_and(|me| tower.depends_on(&flight, me.clone())) {
            return Joined::Recursion;
        }
        if caller.must_not_wait_for(flight.led_by) {
            return Joined::Lead(Lead::since(missed_since, Leader::new(id, within, caller)));
        }
        if let Some(me) = &within {
            tower.held_up.entry(flight.number).or_default().push(me.clone());
        }
        flight.waiters.fetch_add(1, Relaxed);
        Joined::Wait(Ticket { number: next_number(), flight, within })
    }

    /// Begins a flight for `key` if there is none.
    pub(super) fn lead(&self, key: &str, looked_since: &Moment, caller: Caller) -> Option<Lead> {
        let id: Id = (self.0, key.into());
        let within = within();
        let mut tower = tower();
        (!tower.flights.contains_key(&id)).then(|| tower.begin(id, within, looked_since, caller))
    }
}

impl Tower {
    fn begin(
        &mut self,
        id: Id,
        within: Option<Arc<Flight>>,
        since: &Moment,
        caller: Caller,
    ) -> Lead {
        let leader = Leader::new(id.clone(), within, caller);
        self.flights.insert(id, leader.flight.clone());
        Lead::since(since, leader)
    }
}

impl Lead {
    fn since(moment: &Moment, leader: Leader) -> Self {
        Self { leader, stale: LANDINGS.load(Relaxed) != moment.0 }
    }
}

/// Numbers for flights and tickets.
fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    NUMBERS.fetch_add(1, Relaxed)
}

/// A place among those who wait for a flight: waits with the thread, or is awaited.
pub(super) struct Ticket {
    number: u64,
    flight: Arc<Flight>,
    /// The computation that waits, if it is in one.
    within: Option<Arc<Flight>>,
}

impl Ticket {
    /// Waits until the flight has landed, and returns the value that it brought; `None` if one has to look for
    /// oneself.
    pub(super) fn wait(self) -> Option<Bytes> {
        let mut tower = tower();
        while !self.flight.epoch.is_over() {
            if let Some(value) = self.flight.landed.get() {
                drop(tower);
                return value.clone();
            }
            tower = self.flight.has_landed.wait(tower).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Future for Ticket {
    type Output = Option<Bytes>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.flight.epoch.is_over() {
            return Poll::Ready(None);
        }
        let mut wakers = self.flight.wakers();
        // Looked at under the mutex, which whoever wakes takes after the landing.
        match self.flight.landed.get() {
            Some(value) => Poll::Ready(value.clone()),
            None => {
                let before = wakers.insert(self.number, context.waker().clone());
                drop(wakers);
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.flight.epoch.is_over() {
            return;
        }
        self.flight.waiters.fetch_sub(1, Relaxed);
        let waker = self.flight.wakers().remove(&self.number);
        drop(waker);
        let Some(me) = &self.within else { return };
        let mut tower = tower();
        if let Some(held_up) = tower.held_up.get_mut(&self.flight.number) {
            if let Some(at) = held_up.iter().position(|other| Arc::ptr_eq(other, me)) {
                held_up.swap_remove(at);
            }
            if held_up.is_empty() {
                tower.held_up.remove(&self.flight.number);
            }
        }
    }
}

/// The right to compute the value of one key. When it is dropped, by a panic too, those who wait go on.
pub(super) struct Leader {
    id: Id,
    flight: Arc<Flight>,
    /// That no other process computes it.
    pub(super) claim: Claim,
}

impl Flight {
    fn wakers(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        // Wakers, which are foreign code, are called and dropped outside it.
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leader {
    fn new(id: Id, parent: Option<Arc<Flight>>, led_by: Caller) -> Self {
        let flight = Flight {
            number: next_number(),
            epoch: Epoch::now(),
            led_by,
            parent,
            waiters: AtomicU64::new(0),
            landed: OnceLock::new(),
            has_landed: Condvar::new(),
            wakers: Mutex::default(),
        };
        Self { id, flight: Arc::new(flight), claim: Claim::default() }
    }

    /// Says that what this thread does is the computation, until the result is dropped.
    pub(super) fn enter(&self) -> Within {
        Computation(Some(self.flight.clone())).enter()
    }

    /// Whether it can do no harm to wait for a computation of this process that is not among its flights: not if
    /// that one may wait for what this one belongs to, or for this thread.
    pub(super) fn may_wait_for_others_here(&self) -> bool {
        let Flight { parent, led_by, .. } = &*self.flight;
        parent.is_none() && !led_by.must_not_wait_for(Caller::Future)
    }

    /// Ends the flight and hands `value` to those who wait, if anybody does.
    pub(super) fn land(self, value: &[u8]) {
        if self.flight.waiters.load(Relaxed) > 0 {
            let _ = self.flight.landed.set(Some(Bytes::copy_from_slice(value)));
        }
    }
}

/// The time that a thread spends in a computation.
pub(super) struct Within {
    before: Option<Arc<Flight>>,
}

impl Drop for Within {
    fn drop(&mut self) {
        let before = self.before.take();
        drop(WITHIN.try_with(|within| within.replace(before)));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // First, or whoever leads the next flight would find it taken.
        drop(mem::take(&mut self.claim));
        if self.flight.epoch.is_over() {
            return;
        }
        let mut tower = tower();
        // One that computes for itself alone is not among them.
        if tower.flights.get(&self.id).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            tower.flights.remove(&self.id);
        }
        LANDINGS.fetch_add(1, Release);
        self.flight.landed.get_or_init(|| None);
        // To wake is a system call, also where nobody waits. They are counted under the mutex.
        if self.flight.waiters.load(Relaxed) > 0 {
            self.flight.has_landed.notify_all();
        }
        drop(tower);
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
        match flights.join(key, &Flights::moment(), Caller::Thread) {
            Joined::Lead(lead) => lead.leader,
            _ => panic!("nobody else is computing {key}"),
        }
    }

    fn waits(flights: &Flights, key: &str) -> Option<Bytes> {
        match flights.join(key, &Flights::moment(), Caller::Thread) {
            Joined::Wait(ticket) => ticket.wait(),
            _ => panic!("somebody is computing {key}"),
        }
    }

    /// Waits until `count` callers wait for `leader`: a condition, not a length of time.
    fn until_awaited(leader: &Leader, count: u64) {
        while leader.flight.waiters.load(Relaxed) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn those_who_wait_are_handed_the_value() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| waits(&flights, "a").is_some_and(|value| value == "x")))
                .collect();
            until_awaited(&leader, 8);
            leader.land(b"x");
            assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
        });
    }

    #[test]
    fn a_leader_that_gives_up_wakes_everybody() {
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
    fn another_key_or_cache_is_another_flight() {
        let (one, other) = (Flights::new(), Flights::new());
        let _leaders = (lead(&one, "a"), lead(&one, "b"), lead(&other, "a"));
    }

    #[test]
    fn a_computation_does_not_wait_for_itself() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        let within = leader.enter();
        assert!(matches!(flights.join("a", &Flights::moment(), Caller::Thread), Joined::Recursion));
        // Whoever is not in the computation may wait for it, on the same thread too.
        drop(within);
        assert!(matches!(flights.join("a", &Flights::moment(), Caller::Thread), Joined::Wait(_)));
    }

    #[test]
    fn a_circle_of_three_threads_is_found() {
        let flights = Flights::new();
        let a = lead(&flights, "a");
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let (flights, tell_b) = (&flights, tell.clone());
            scope.spawn(move || {
                let b = lead(flights, "b");
                let _within = b.enter();
                tell_b.send(()).unwrap();
                waits(flights, "a");
            });
            told.recv().unwrap();
            until_awaited(&a, 1);
            scope.spawn(move || {
                let c = lead(flights, "c");
                let _within = c.enter();
                tell.send(()).unwrap();
                waits(flights, "b");
            });
            told.recv().unwrap();
            while tower()
                .flights
                .get(&(flights.0, "b".into()))
                .is_none_or(|b| b.waiters.load(Relaxed) == 0)
            {
                thread::yield_now();
            }
            // c waits for b, b for a, and a is ours.
            let within = a.enter();
            assert!(matches!(
                flights.join("c", &Flights::moment(), Caller::Thread),
                Joined::Recursion
            ));
            drop((within, a));
        });
    }

    #[test]
    fn a_landing_since_the_miss_is_told() {
        let flights = Flights::new();
        let before = Flights::moment();
        drop(lead(&flights, "a"));
        assert!(matches!(
            flights.join("a", &before, Caller::Thread),
            Joined::Lead(Lead { stale: true, .. })
        ));
    }
}
