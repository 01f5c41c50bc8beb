//! Tests of the public API: the promises that Django's recorded answers (`tests/conformance.rs`)
//! do not cover. One file per promise, each on every backend. No test sleeps; the tests set the
//! clock.
//!
//! Shows invariant I35.

// A file in `tests` is always compiled with `test`. The attribute tells clippy that the helpers
// are test code too.
#![cfg(test)]

#[path = "../common/mod.rs"]
mod common;

mod add;
mod bounds;
mod bytes;
mod clear;
mod compare_and_swap;
mod configure;
mod counters;
mod dummy;
mod errors;
mod expiry;
mod get_or_set;
mod iteration;
mod jitter;
mod keys;
mod leases;
mod many;
mod negative_entries;
mod options;
mod read_only;
mod shared;
mod single_flight;
mod soft_expiry;
mod streams;
mod temporary;
mod values;
mod versions;
mod zero_timeouts;

use std::time::Duration;

use common::for_each_backend;
use keepwarm::{Cache, ManualClock};

/// Runs `test` on every backend with a new cache whose clock moves only when the test moves it.
fn with_cache(test: impl Fn(Cache, ManualClock)) {
    for_each_backend(|make| {
        let clock = ManualClock::new();
        test(make.builder().clock(clock.clone()).open().unwrap(), clock);
    });
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
