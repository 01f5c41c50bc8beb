//! Whether the future that leads a flight is polled. One that waits for an event need not be; one
//! that was woken must be.

use std::sync::atomic::Ordering::Acquire;
#[cfg(any(feature = "async", test))]
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(feature = "async")]
use std::sync::{Arc, Mutex, PoisonError};
#[cfg(feature = "async")]
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// A leader that was woken and is not polled for so long loses its flight.
const LEFT_AFTER: Duration = Duration::from_secs(5);
/// How often the leaders are looked at, while there are any that futures wait for.
const INTERVAL: Duration = Duration::from_millis(100);
/// It was not woken since it was last polled.
const NOT_WOKEN: u64 = u64::MAX;

/// The polls of a leader. At first it counts as woken: the next thing that it does needs a poll.
pub(super) struct Polls {
    begun: Instant,
    is_polled: AtomicBool,
    /// When it was woken, in milliseconds since `begun`.
    woken_at: AtomicU64,
}

impl Polls {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, is_polled: AtomicBool::new(false), woken_at: AtomicU64::new(0) }
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_millis() as u64
    }

    #[cfg(any(feature = "async", test))]
    fn begin(&self) {
        self.is_polled.store(true, Relaxed);
        self.woken_at.store(NOT_WOKEN, Release);
    }

    #[cfg(any(feature = "async", test))]
    fn end(&self) {
        self.is_polled.store(false, Release);
    }

    #[cfg(any(feature = "async", test))]
    fn woken(&self, now: Instant) {
        // The first of several wake-ups counts.
        let _ = self.woken_at.compare_exchange(NOT_WOKEN, self.millis(now), AcqRel, Relaxed);
    }

    /// Whether it was woken long ago and not polled since.
    pub(super) fn is_left(&self, now: Instant) -> bool {
        let woken_at = self.woken_at.load(Acquire);
        !self.is_polled.load(Acquire)
            && woken_at != NOT_WOKEN
            && self.millis(now) >= woken_at.saturating_add(LEFT_AFTER.as_millis() as u64)
    }
}

/// Starts a thread that calls `look` again and again until it returns `false`. Returns whether it
/// started.
pub(super) fn watch(mut look: impl FnMut() -> bool + Send + 'static) -> bool {
    let run = move || {
        thread::sleep(INTERVAL);
        while look() {
            thread::sleep(INTERVAL);
        }
    };
    let started = thread::Builder::new().name("keepwarm-flights".into()).spawn(run);
    started.inspect_err(|error| tracing::warn!(%error, "cannot start a thread")).is_ok()
}

/// Notes the polls of a leader, and when it is woken.
#[cfg(feature = "async")]
pub(crate) struct Polled {
    note: Arc<Note>,
    waker: Waker,
}

#[cfg(feature = "async")]
struct Note {
    polls: Arc<Polls>,
    /// The waker of the task.
    outer: Mutex<Waker>,
}

#[cfg(feature = "async")]
impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.polls.woken(Instant::now());
        let outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        // A clone runs code of the executor, but a waker that is replaced meanwhile must not be
        // called: so it is taken out.
        let waker = std::mem::replace(&mut *{ outer }, Waker::noop().clone());
        waker.wake_by_ref();
        drop(waker);
    }
}

#[cfg(feature = "async")]
impl Polled {
    pub(super) fn new(polls: Arc<Polls>) -> Self {
        let note = Arc::new(Note { polls, outer: Mutex::new(Waker::noop().clone()) });
        Self { waker: note.clone().into(), note }
    }

    /// Polls `poll` as a part of the leader.
    pub(crate) fn poll<R>(
        &self,
        context: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        struct End<'a>(&'a Polls);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        let waker = context.waker().clone();
        let mut outer = self.note.outer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *outer, waker);
        drop(outer);
        drop(before);
        let polls = &*self.note.polls;
        polls.begin();
        let _end = End(polls);
        poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_left_if_it_is_woken_and_not_polled() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let polls = Polls::new(begun);
        assert!(!polls.is_left(at(4999)) && polls.is_left(at(5000)));
        polls.begin();
        polls.woken(at(10));
        assert!(!polls.is_left(at(9000)), "it is being polled");
        polls.end();
        assert!(!polls.is_left(at(5009)) && polls.is_left(at(5010)));
        polls.begin();
        polls.end();
        assert!(!polls.is_left(at(1_000_000)), "it waits for an event");
        polls.woken(at(6000));
        polls.woken(at(9000));
        assert!(!polls.is_left(at(10_999)) && polls.is_left(at(11_000)));
    }
}
