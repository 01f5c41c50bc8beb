//! Single flight: of the threads that miss a key at the same time, one computes and the others wait.
//!
//! The flights of all caches of the process are under one mutex, with who waits for which, so that a thread
//! which would wait for itself is told so instead: directly (a closure asks for its own key), along a chain
//! (A asks for B, B for A), and across threads and caches (one computes A and asks for B, another computes B
//! and asks for A). The mutex is taken on a miss only, twice, for a few map operations.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use bytes::Bytes;

static TOWER: LazyLock<Mutex<Tower>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Tower {
    flights: HashMap<Id, Arc<Flight>>,
    /// Which flight a thread waits for.
    waiting: HashMap<ThreadId, Arc<Flight>>,
}

/// How many flights have landed. Changed under the mutex, read also without, so that hits do not take it.
static LANDINGS: AtomicU64 = AtomicU64::new(0);

/// A cache of this process, and a stored key.
type Id = (u64, Box<str>);

struct Flight {
    leader: ThreadId,
    waiters: AtomicU64,
    /// What the leader brought for those who wait: the value's MessagePack, or nothing, if it failed or
    /// nobody was waiting.
    landed: OnceLock<Option<Bytes>>,
    has_landed: Condvar,
}

fn tower() -> MutexGuard<'static, Tower> {
    // No code of a caller's runs under the mutex, so a panic cannot have left it half changed.
    TOWER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tower {
    /// Whether `flight` cannot land before `thread` has gone on.
    fn depends_on(&self, flight: &Flight, thread: ThreadId) -> bool {
        let mut leader = flight.leader;
        loop {
            if leader == thread {
                return true;
            }
            // A thread whose flight has landed is still listed until it wakes, but waits no more.
            match self.waiting.get(&leader) {
                Some(next) if next.landed.get().is_none() => leader = next.leader,
                _ => return false,
            }
        }
    }
}

/// The flights of one cache.
pub(super) struct Flights(u64);

/// How a thread that missed a key goes on.
pub(super) enum Joined {
    /// It computes. `stale` says whether some flight has landed since the moment that it gave, so that the
    /// value may be there by now.
    Lead { leader: Leader, stale: bool },
    /// Another thread computed meanwhile, and this is the value; `None` if it has to look for itself.
    Landed(Option<Bytes>),
    /// It would wait for itself.
    Recursion,
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

    /// Joins the flight for `key`, if there is one, and waits until it has landed; else begins one. The key
    /// was looked for, and missed, after `missed_since`.
    pub(super) fn join(&self, key: &str, missed_since: &Moment) -> Joined {
        let me = thread::current().id();
        let id: Id = (self.0, key.into());
        let mut tower = tower();
        let Some(flight) = tower.flights.get(&id).cloned() else {
            let flight = Arc::new(Flight {
                leader: me,
                waiters: AtomicU64::new(0),
                landed: OnceLock::new(),
                has_landed: Condvar::new(),
            });
            tower.flights.insert(id.clone(), flight.clone());
            let stale = LANDINGS.load(Relaxed) != missed_since.0;
            return Joined::Lead { leader: Leader { id, flight }, stale };
        };
        if tower.depends_on(&flight, me) {
            return Joined::Recursion;
        }
        flight.waiters.fetch_add(1, Relaxed);
        tower.waiting.insert(me, flight.clone());
        loop {
            if let Some(value) = flight.landed.get() {
                tower.waiting.remove(&me);
                return Joined::Landed(value.clone());
            }
            tower = flight.has_landed.wait(tower).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The right to compute the value of one key. When it is dropped, by a panic too, those who wait go on.
pub(super) struct Leader {
    id: Id,
    flight: Arc<Flight>,
}

impl Leader {
    /// Whether anybody waits, so that it is worth bringing the value.
    pub(super) fn awaited(&self) -> bool {
        self.flight.waiters.load(Relaxed) > 0
    }

    /// Ends the flight and hands `value` to those who wait.
    pub(super) fn land(self, value: Bytes) {
        let _ = self.flight.landed.set(Some(value));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let mut tower = tower();
        tower.flights.remove(&self.id);
        LANDINGS.fetch_add(1, Release);
        self.flight.landed.get_or_init(|| None);
        self.flight.has_landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn lead(flights: &Flights, key: &str) -> Leader {
        match flights.join(key, &Flights::moment()) {
            Joined::Lead { leader, .. } => leader,
            _ => panic!("nobody else is computing {key}"),
        }
    }

    /// Waits until `count` threads wait for `leader`: a condition, not a length of time.
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
            let waiters: Vec<_> =
                (0..8).map(|_| scope.spawn(|| matches!(flights.join("a", &Flights::moment()), Joined::Landed(Some(v)) if v == "x"))).collect();
            until_awaited(&leader, 8);
            leader.land(Bytes::from_static(b"x"));
            assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
        });
    }

    #[test]
    fn a_leader_that_gives_up_wakes_everybody() {
        let flights = Flights::new();
        let leader = lead(&flights, "a");
        thread::scope(|scope| {
            let waiter =
                scope.spawn(|| matches!(flights.join("a", &Flights::moment()), Joined::Landed(None)));
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
    fn a_thread_does_not_wait_for_itself() {
        let flights = Flights::new();
        let _leader = lead(&flights, "a");
        assert!(matches!(flights.join("a", &Flights::moment()), Joined::Recursion));
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
                tell_b.send(()).unwrap();
                flights.join("a", &Flights::moment());
                drop(b);
            });
            told.recv().unwrap();
            until_awaited(&a, 1);
            scope.spawn(move || {
                let c = lead(flights, "c");
                tell.send(()).unwrap();
                flights.join("b", &Flights::moment());
                drop(c);
            });
            told.recv().unwrap();
            while tower().flights.get(&(flights.0, "b".into())).is_none_or(|b| b.waiters.load(Relaxed) == 0) {
                thread::yield_now();
            }
            // c waits for b, b for a, and a is ours.
            assert!(matches!(flights.join("c", &Flights::moment()), Joined::Recursion));
            drop(a);
        });
    }

    #[test]
    fn a_landing_since_the_miss_is_told() {
        let flights = Flights::new();
        let before = Flights::moment();
        drop(lead(&flights, "a"));
        assert!(matches!(flights.join("a", &before), Joined::Lead { stale: true, .. }));
    }
}
