//! The bell: wakes the background thread. Callers set flags and ring; the thread waits until a flag
//! is set or a time is over, then takes the flags.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Wakes the background thread.
#[derive(Default)]
pub(crate) struct Bell {
    calls: Mutex<Calls>,
    rung: Condvar,
}

/// Why the background thread was woken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    /// There is work of any kind.
    pub(crate) work: bool,
    /// There are entries of an older generation.
    pub(crate) sweep: bool,
    /// The thread must end. Never reset.
    pub(crate) stop: bool,
}

impl Calls {
    pub(crate) fn is_any(self) -> bool {
        self.work || self.sweep || self.stop
    }
}

impl Bell {
    /// Changes the flags and wakes the thread.
    pub(crate) fn call(&self, change: impl FnOnce(&mut Calls)) {
        change(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        self.rung.notify_one();
    }

    /// Wakes the thread because there is work.
    pub(crate) fn ring(&self) {
        self.call(|calls| calls.work = true);
    }

    /// Wakes the thread because there are entries of an older generation to sweep.
    pub(crate) fn ring_for_sweep(&self) {
        self.call(|calls| calls.sweep = true);
    }

    /// Waits until a flag is set, at most for `at_most`. Takes and resets the flags.
    pub(crate) fn wait(&self, at_most: Duration) -> Calls {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.rung.wait_timeout_while(calls, at_most, |calls| !calls.is_any());
        let mut calls = waited.unwrap_or_else(PoisonError::into_inner).0;
        let found = *calls;
        *calls = Calls { stop: found.stop, ..Calls::default() };
        found
    }
}
