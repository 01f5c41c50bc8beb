//! The turn to empty segments and to take checkpoints, and how it is waited for: not for ever, as a process that is
//! stopped may have it, however many threads wait.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::Engine;
pub(super) use super::index::busy;
use super::index::{HeldTurn, Turn, Waited};
use crate::error::{ErrorKind, Result};

/// What one thread at a time has, which may wait long for another process then. If it gives up, those give up with it
/// that wait for it: one after the other, each would wait as long again.
#[derive(Debug, Default)]
pub(super) struct Queue<T> {
    first: Mutex<T>,
    given_up: AtomicU64,
}

impl<T> Queue<T> {
    /// Waits until it is this thread's. `None` if one that was before it gave up meanwhile.
    pub(super) fn enter(&self) -> Option<MutexGuard<'_, T>> {
        self.enter_after(|| {})
    }

    fn enter_after(&self, waits: impl FnOnce()) -> Option<MutexGuard<'_, T>> {
        let given_up = self.given_up.load(Ordering::Acquire);
        waits();
        let first = self.wait();
        (self.given_up.load(Ordering::Acquire) == given_up).then_some(first)
    }

    /// The same, if nobody has it.
    pub(super) fn try_enter(&self) -> Option<MutexGuard<'_, T>> {
        match self.first.try_lock() {
            Ok(first) => Some(first),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until it is this thread's, whoever gave up.
    pub(super) fn wait(&self) -> MutexGuard<'_, T> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so to those that wait, if `result` is that another process was waited for in vain. Whoever calls this has it.
    pub(super) fn unless_given_up<R>(&self, result: Result<R>) -> Result<R> {
        result.inspect_err(|error| {
            if error.kind() == ErrorKind::Busy {
                self.given_up.fetch_add(1, Ordering::Release);
            }
        })
    }
}

/// The right to empty segments and to take checkpoints: one thread of one process has it.
pub(super) struct SpaceTurn<'a> {
    _turn: HeldTurn<'a>,
    _thread: MutexGuard<'a, ()>,
}

impl Engine {
    /// Waits for the turn to empty segments.
    ///
    /// # Errors
    /// `Busy` if another process has it for so long that it must be stopped.
    pub(super) fn space_turn(&self) -> Result<SpaceTurn<'_>> {
        let Waited::Turn(turn) = self.space_turn_or(|| Ok(None::<Infallible>))?;
        Ok(turn)
    }

    /// The same, or what `instead` says while another process has it, whichever comes first.
    pub(super) fn space_turn_or<I>(
        &self,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<SpaceTurn<'_>, I>> {
        let thread = self.emptying.enter().ok_or_else(|| busy("make room").with_path(&self.dir))?;
        let between = || {
            // Whoever has the turn may wait for this process to let go of what was removed.
            self.log.keep_up();
            instead()
        };
        let waited =
            self.index.wait_for_turn(Turn::Space, between).map_err(|e| e.with_path(&self.dir));
        Ok(match self.emptying.unless_given_up(waited)? {
            Waited::Turn(turn) => Waited::Turn(SpaceTurn { _turn: turn, _thread: thread }),
            Waited::Instead(instead) => Waited::Instead(instead),
        })
    }

    /// The same, if nobody has it.
    pub(super) fn space_turn_now(&self) -> Result<Option<SpaceTurn<'_>>> {
        let Some(thread) = self.emptying.try_enter() else { return Ok(None) };
        let turn = self.index.take_turn(Turn::Space)?;
        Ok(turn.map(|turn| SpaceTurn { _turn: turn, _thread: thread }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::engine::index::{Geometry, Index, Membership};
    use crate::sys::file;
    use crate::sys::fork::OwnFile;

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
                OwnFile::to_lock(|| file::open_or_create(&path).map(|(file, _)| file)).unwrap();
            let membership = Membership::new(Arc::new(locks), number);
            Index::create(&tempfile::tempfile().unwrap(), Geometry::for_entries(10, 16), membership)
                .unwrap()
        };
        let (this, other) = (process(1), process(2));
        let turn = other.take_turn(Turn::Space).unwrap().expect("nobody has it");
        let mut asked = 0;
        let waited = this.wait_for_turn(Turn::Space, || {
            asked += 1;
            Ok((asked == 3).then_some("room"))
        });
        assert!(matches!(waited, Ok(Waited::Instead("room"))));
        drop(turn);
        let waited = this.wait_for_turn(Turn::Space, || Ok(None::<Infallible>));
        assert!(matches!(waited, Ok(Waited::Turn(_))));
    }
}
