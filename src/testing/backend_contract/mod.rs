//! The conformance suite for backends: checks that a store keeps the promises of
//! [`Backend`](crate::backend).
//!
//! Give [`Contract`] a function that makes a fresh, empty backend each time, and assert on the
//! [`Report`]:
//!
//! ```
//! use keepwarm::Builder;
//! use keepwarm::testing::backend_contract::{Contract, Promise};
//!
//! let contract = Contract::new(|clock| Builder::in_memory().clock(clock).open_backend())
//!     // Checked are all promises, except those that are declared not to be made.
//!     .without(Promise::ComputationsAreClaimed);
//! # let contract = contract.only(&[Promise::AddHasOneWinner, Promise::ExpiredIsAbsent]);
//! contract.check().assert_kept();
//! ```
//!
//! Each [`Promise`] is one check with a name. A check runs on a thread of its own, on backends that
//! no other check has seen; one that panics, or has not returned after a minute, is broken too. All
//! of them take a second or two for a store in memory.
//!
//! The suite stores at most some hundred entries at a time, one of which has 1 MiB and the others
//! at most 64 KiB, and takes for granted that none of them is evicted. It takes for granted, too,
//! that no other program uses the store meanwhile.
//!
//! Where the server of a store keeps the time, say so with [`Contract::real_time`]. Then the checks
//! of expiry wait in earnest, and recorded operations that move the clock are left out.

mod asynchronous;
mod bench;
mod expiry;
mod failure;
mod promise;
mod recorded;
mod report;
mod store;
mod threads;
mod values;
mod verdict;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::backend::Backend;
use crate::error::Result;
use crate::time::ManualClock;

pub use promise::Promise;
pub use report::{Broken, Report};

use bench::Bench;
use verdict::Verdict;

/// How long a check may take before it counts as one that never returns.
const LIMIT: Duration = Duration::from_secs(60);

/// What is checked, and on which backend. See the [module](self).
#[derive(Clone)]
#[must_use = "nothing is checked until `check` is called"]
pub struct Contract {
    bench: Bench,
    exempt: BTreeSet<Promise>,
    only: Option<BTreeSet<Promise>>,
}

impl Contract {
    /// A contract for the backends that `make` makes: fresh and empty ones, that take the time from
    /// the clock they are given. What a backend needs for as long as it lives, such as a temporary
    /// directory, `make` has to keep.
    pub fn new(
        make: impl Fn(ManualClock) -> Result<Box<dyn Backend>> + Send + Sync + 'static,
    ) -> Self {
        Self { bench: Bench::new(Arc::new(make)), exempt: BTreeSet::new(), only: None }
    }

    /// The same contract for a store whose server keeps the time, and ends entries up to
    /// `resolution` late: checks of expiry wait for it. The clock that `make` is given means
    /// nothing then.
    pub fn real_time(mut self, resolution: Duration) -> Self {
        self.bench.real_time = Some(resolution);
        self
    }

    /// The same contract with a switch: after `switch(true)` every backend that was made fails as
    /// when its server is unreachable, until `switch(false)`. Without it,
    /// [`Promise::OutagesLoseNothing`] cannot be checked.
    pub fn outage(mut self, switch: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.bench.outage = Some(Arc::new(switch));
        self
    }

    /// The same contract without a promise that the store does not make.
    pub fn without(mut self, promise: Promise) -> Self {
        self.exempt.insert(promise);
        self
    }

    /// The same contract for a store that keeps nothing: without all promises about entries that
    /// are there.
    pub fn stores_nothing(mut self) -> Self {
        self.exempt.extend(Promise::ALL.iter().filter(|promise| promise.needs_entries()));
        self
    }

    /// Checks only these, of the promises that are made.
    pub fn only(mut self, promises: &[Promise]) -> Self {
        self.only = Some(promises.iter().copied().collect());
        self
    }

    /// Checks the promises, one after the other, and reports which are broken.
    pub fn check(&self) -> Report {
        let mut report = Report::default();
        for promise in Promise::ALL {
            if self.only.as_ref().is_some_and(|only| !only.contains(promise)) {
                continue;
            }
            if self.exempt.contains(promise) {
                report.exempt.push(*promise);
                continue;
            }
            match self.check_one(*promise) {
                Ok(Verdict::Kept) => report.kept.push(*promise),
                Ok(Verdict::Unchecked(why)) => report.unchecked.push((*promise, why)),
                Err(what) => report.broken.push(Broken { promise: *promise, what }),
            }
        }
        report
    }

    fn check_one(&self, promise: Promise) -> Result<Verdict, String> {
        let (bench, (tell, told)) = (self.bench.clone(), mpsc::channel());
        let checker = std::thread::Builder::new().name(format!("{promise:?}"));
        let check = promise.check();
        let spawned = checker.spawn(move || {
            let verdict = catch_unwind(AssertUnwindSafe(|| check(&bench)));
            // Nothing listens any more if the limit is over.
            let _ = tell.send(verdict.unwrap_or_else(|panic| Err(panicked(&*panic))));
        });
        spawned.map_err(|error| format!("no thread for the check: {error}"))?;
        told.recv_timeout(LIMIT)
            .unwrap_or_else(|_| Err(format!("the check did not return within {LIMIT:?}")))
    }
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract").field("exempt", &self.exempt).finish_non_exhaustive()
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("with a value that is no text"))
}
