//! The counters of an engine, in 16 stripes. A thread counts in one stripe, which it shares with
//! few other threads. So counting a read seldom takes a cache line from another core.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::entry::Stats;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Counter {
    Hits,
    Misses,
    HotHits,
    Commits,
    Evicted,
    Expired,
    Corrupt,
    CopiedBytes,
}

const COUNTERS: usize = 8;
const STRIPES: usize = 16;

#[derive(Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; COUNTERS]);

#[derive(Default)]
pub(crate) struct Counters([Stripe; STRIPES]);

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES
    };
}

impl Counters {
    pub(crate) fn add(&self, counter: Counter, n: u64) {
        let stripe = STRIPE.try_with(|s| *s).unwrap_or(0);
        self.0[stripe].0[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn one(&self, counter: Counter) {
        self.add(counter, 1);
    }

    fn total(&self, counter: Counter) -> u64 {
        self.0.iter().map(|s| s.0[counter as usize].load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn totals(&self) -> Stats {
        Stats {
            hits: self.total(Counter::Hits),
            misses: self.total(Counter::Misses),
            hot_hits: self.total(Counter::HotHits),
            commits: self.total(Counter::Commits),
            evicted: self.total(Counter::Evicted),
            expired: self.total(Counter::Expired),
            corrupt: self.total(Counter::Corrupt),
            copied_bytes: self.total(Counter::CopiedBytes),
            ..Stats::default()
        }
    }
}
