//! Tests of `AsyncCache`: its promises beyond the answers of `Cache` (which `tests/conformance.rs`
//! compares). Which calls run on another thread, single flight among tasks and threads, and
//! dropped futures. Each test runs on every backend, on a runtime with one thread and on one with
//! several. No test sleeps.

// A file in `tests` is always compiled with `test`. The attribute tells clippy that the helpers
// are test code too.
#![cfg(test)]

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod flights;
mod iteration;
mod leases;
mod threads;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use common::for_each_backend;
use keepwarm::{AsyncCache, Builder, Clock, ManualClock, Timestamp};
use tokio::runtime::{self, Runtime};

/// The name of the threads of the runtimes.
const RUNTIME: &str = "runtime thread";

fn runtimes() -> [Runtime; 2] {
    let (mut one, mut many) =
        (runtime::Builder::new_current_thread(), runtime::Builder::new_multi_thread());
    [
        one.enable_all().thread_name(RUNTIME).build().unwrap(),
        many.enable_all().thread_name(RUNTIME).worker_threads(4).build().unwrap(),
    ]
}

/// A clock that counts its reads on threads of the runtime. The test's own thread is not counted.
#[derive(Clone, Default)]
struct CountingClock(ManualClock, Arc<AtomicUsize>);

impl Clock for CountingClock {
    fn now(&self) -> Timestamp {
        if thread::current().name() == Some(RUNTIME) {
            self.1.fetch_add(1, SeqCst);
        }
        self.0.now()
    }
}

impl CountingClock {
    /// Awaits a call that reads the clock; returns whether it did so on another thread.
    async fn left_the_thread<F: Future>(&self, call: F) -> (bool, F::Output) {
        let before = self.1.load(SeqCst);
        let output = call.await;
        (self.1.load(SeqCst) > before, output)
    }
}

/// Runs `test` on every backend and runtime, with a new cache each time.
fn with_cache(test: impl AsyncFn(AsyncCache, ManualClock)) {
    with_options(|builder| builder, test);
}

fn with_options<C: Clock + Clone + Default>(
    options: impl Fn(Builder) -> Builder,
    test: impl AsyncFn(AsyncCache, C),
) {
    for_each_backend(|make| {
        for runtime in runtimes() {
            let clock = C::default();
            let cache = options(make.builder().clock(clock.clone())).open().unwrap().into_async();
            runtime.block_on(test(cache, clock));
        }
    });
}

/// Polls `future` once and returns its output if it is ready.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    poll(pin!(future))
}

fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Yields for a while, so that the other tasks reach their wait.
async fn yield_for_a_while() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
