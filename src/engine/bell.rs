//! The bell: what wakes the background thread.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Wakes the background thread.
#[derive(Default)]
pub(crate) struct Bell {
    calls: Mutex<Calls>,
    rung: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) work: bool,
    pub(crate) sweep: bool,
    pub(crate) stop: bool,
}

impl Calls {
    pub(crate) fn is_any(self) -> bool {
        self.work || self.sweep || self.stop
    }
}

impl Bell {
    pub(crate) fn call(&self, change: impl FnOnce(&mut Calls)) {
        change(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_one();
    }

    /// There is something to do.
    pub(crate) fn ring(&self) {
        self.call(|calls| calls.work = true);
    }

    /// There are entries of an older generation to sweep.
    pub(crate) fn ring_for_sweep(&self) {
        self.call(|calls| calls.sweep = true);
    }

    /// Waits for a call, or for `at_most`.
    pub(crate) fn wait(&self, at_most: Duration) -> Calls {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.rung.wait_timeout_while(calls, at_most, |calls| !calls.is_any());
        let mut calls = waited.unwrap_or_else(PoisonError::into_inner).0;
        let found = *calls;
        *calls = Calls { stop: found.stop, ..Calls::default() };
        found
    }
}
