//! A mutex in front of a lock between processes. The threads of one process wait for each other
//! here, and only the first waits for other processes.
//!
//! A process that holds such a lock may be stopped, so the wait for it has a time-out. All threads
//! share it: when the first times out, those behind it time out too, or each would wait as long
//! again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::{ErrorKind, Result};

/// A value that one thread at a time holds, while it may wait long for another process.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue<T> {
    first: Mutex<T>,
    /// How often the first thread timed out.
    timeouts: AtomicU64,
}

impl<T> WaitQueue<T> {
    /// Waits until this thread is the first. `None` if a thread before it timed out meanwhile.
    pub(crate) fn enter(&self) -> Option<MutexGuard<'_, T>> {
        self.enter_after(|| {})
    }

    fn enter_after(&self, waits: impl FnOnce()) -> Option<MutexGuard<'_, T>> {
        let timeouts = self.timeouts.load(Ordering::Acquire);
        waits();
        let first = self.wait();
        (self.timeouts.load(Ordering::Acquire) == timeouts).then_some(first)
    }

    /// The same, but only if no other thread is the first now.
    pub(crate) fn try_enter(&self) -> Option<MutexGuard<'_, T>> {
        match self.first.try_lock() {
            Ok(first) => Some(first),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until this thread is the first, also after a time-out of another thread.
    pub(crate) fn wait(&self) -> MutexGuard<'_, T> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the waiting threads time out too, if `result` says that the caller, which is the
    /// first, timed out waiting for another process.
    pub(crate) fn share_timeout<R>(&self, result: Result<R>) -> Result<R> {
        result.inspect_err(|error| {
            if error.kind() == ErrorKind::Busy {
                self.timeouts.fetch_add(1, Ordering::Release);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::engine::format::geometry::Geometry;
    use crate::engine::index::{Index, ProcessSlot};
    use crate::engine::index::{Role, Waited, busy};
    use crate::sys::fork::OwnFile;
    use crate::sys::storage::{File, SYSTEM};
    use std::convert::Infallible;

    #[test]
    fn waiting_threads_share_the_timeout_of_the_first() {
        let queue = WaitQueue::<()>::default();
        let (waits, is_waiting) = mpsc::channel();
        std::thread::scope(|threads| {
            let first = queue.enter().unwrap();
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    let waits = waits.clone();
                    threads.spawn(|| queue.enter_after(move || waits.send(()).unwrap()).is_some())
                })
                .collect();
            waiters.iter().for_each(|_| is_waiting.recv().unwrap());
            let failed: Result<()> = queue.share_timeout(Err(busy("test")));
            assert_eq!(failed.unwrap_err().kind(), ErrorKind::Busy);
            drop(first);
            assert!(waiters.into_iter().all(|waiter| !waiter.join().unwrap()));
        });
        assert!(queue.enter().is_some(), "a later thread waits with a time-out of its own");
        assert!(queue.share_timeout(Ok(())).is_ok());
    }

    #[test]
    fn a_wait_for_a_role_ends_when_the_role_is_not_needed_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let process = |number| {
            let locks =
                OwnFile::to_lock(|| SYSTEM.open_or_create(&path).map(|(file, _)| file)).unwrap();
            let process_slot = ProcessSlot::new(Arc::new(locks), number);
            Index::create(&File::nameless().unwrap(), Geometry::for_entries(10, 16), process_slot)
                .unwrap()
        };
        let (this, other) = (process(1), process(2));
        let role = other.try_acquire(Role::Space).unwrap().expect("it is free");
        let mut asked = 0;
        let waited = this.acquire_or(Role::Space, || {
            asked += 1;
            Ok((asked == 3).then_some("room"))
        });
        assert!(matches!(waited, Ok(Waited::Instead("room"))));
        drop(role);
        let waited = this.acquire_or(Role::Space, || Ok(None::<Infallible>));
        assert!(matches!(waited, Ok(Waited::Acquired(_))));
    }
}
