//! The turn to empty segments and to take checkpoints, and how it is waited for: not for ever, as a process that is
//! stopped may have it, however many threads wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::error::{ErrorKind, Result};

/// What one thread at a time has, which may wait long for another process then. If it gives up, those give up with it
/// that wait for it: one after the other, each would wait as long again.
#[derive(Debug, Default)]
pub(crate) struct Queue<T> {
    first: Mutex<T>,
    given_up: AtomicU64,
}

impl<T> Queue<T> {
    /// Waits until it is this thread's. `None` if one that was before it gave up meanwhile.
    pub(crate) fn enter(&self) -> Option<MutexGuard<'_, T>> {
        self.enter_after(|| {})
    }

    fn enter_after(&self, waits: impl FnOnce()) -> Option<MutexGuard<'_, T>> {
        let given_up = self.given_up.load(Ordering::Acquire);
        waits();
        let first = self.wait();
        (self.given_up.load(Ordering::Acquire) == given_up).then_some(first)
    }

    /// The same, if nobody has it.
    pub(crate) fn try_enter(&self) -> Option<MutexGuard<'_, T>> {
        match self.first.try_lock() {
            Ok(first) => Some(first),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until it is this thread's, whoever gave up.
    pub(crate) fn wait(&self) -> MutexGuard<'_, T> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so to those that wait, if `result` is that another process was waited for in vain. Whoever calls this has it.
    pub(crate) fn unless_given_up<R>(&self, result: Result<R>) -> Result<R> {
        result.inspect_err(|error| {
            if error.kind() == ErrorKind::Busy {
                self.given_up.fetch_add(1, Ordering::Release);
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
    fn who_waits_gives_up_with_the_one_before() {
        let queue = Queue::<()>::default();
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
            let failed: Result<()> = queue.unless_given_up(Err(busy("test")));
            assert_eq!(failed.unwrap_err().kind(), ErrorKind::Busy);
            drop(first);
            assert!(waiters.into_iter().all(|waiter| !waiter.join().unwrap()));
        });
        assert!(queue.enter().is_some(), "who comes later waits for himself");
        assert!(queue.unless_given_up(Ok(())).is_ok());
    }

    #[test]
    fn a_turn_of_another_process_is_waited_for_until_there_is_no_need_of_it() {
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
        let turn = other.try_acquire(Role::Space).unwrap().expect("nobody has it");
        let mut asked = 0;
        let waited = this.acquire_or(Role::Space, || {
            asked += 1;
            Ok((asked == 3).then_some("room"))
        });
        assert!(matches!(waited, Ok(Waited::Instead("room"))));
        drop(turn);
        let waited = this.acquire_or(Role::Space, || Ok(None::<Infallible>));
        assert!(matches!(waited, Ok(Waited::Acquired(_))));
    }
}
