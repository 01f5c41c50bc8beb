//! Roles: work that one process at a time does for all. Each role is a byte of the lock file.
//!
//! The kernel releases the byte of a dead holder. A living holder proves progress with a heartbeat,
//! a counter in the header of the index. A waiter times out if the heartbeat of its role has not
//! changed for a time in which only a stopped process makes no progress.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::Index;
use crate::engine::format::index_header::{MOST_PROCESSES, at};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::atomic::Ordering;
use crate::sys::fork::OwnFile;
use crate::sys::lock;
use crate::sys::wait::Backoff;

/// What one process at a time may do. The bytes of the roles follow those of the processes.
/// Keeps invariant I24: the kernel releases the byte of a dead process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Background work on the directory. Held for as long as its process is attached.
    Leader,
    /// Free segments, and take checkpoints.
    Space,
    /// Claim bytes within `max_bytes`.
    Admission,
    /// Cull in the inserting call.
    Cull,
    /// Count the entries again.
    Count,
}

impl Role {
    fn byte(self) -> i64 {
        i64::from(MOST_PROCESSES) + 1 + self as i64
    }

    /// The word of the header that is the heartbeat of the role. No process waits for the others.
    fn heartbeat_at(self) -> Option<usize> {
        match self {
            Self::Leader | Self::Count => None,
            Self::Space => Some(at::HEARTBEATS),
            Self::Admission => Some(at::HEARTBEATS + 1),
            Self::Cull => Some(at::HEARTBEATS + 2),
        }
    }

    /// How long a waiter waits for the next heartbeat. Only a stopped holder needs longer.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Leader | Self::Count => Duration::ZERO,
            // A checkpoint waits for the disk, and sends a heartbeat after each file.
            Self::Space => Duration::from_secs(10),
            Self::Admission | Self::Cull => Duration::from_secs(1),
        }
    }
}

/// The result of waiting for a role.
pub(crate) enum Waited<T, I> {
    Acquired(T),
    /// The role is not needed any more.
    Instead(I),
}

/// The error of a wait for a role that timed out.
pub(crate) fn busy(operation: &'static str) -> Error {
    let why = "timed out waiting for another process to free space; it may be stopped";
    Error::new(ErrorKind::Busy, operation).with_source(why)
}

/// A role that this process holds until this is dropped. It excludes other processes only: the
/// threads of a process need a lock of their own.
#[derive(Debug)]
pub(crate) struct RoleGuard<'a> {
    locks: Option<&'a OwnFile>,
    role: Role,
}

impl Drop for RoleGuard<'_> {
    fn drop(&mut self) {
        let locks = self.locks.filter(|locks| locks.is_ours());
        if let Some(Err(error)) = locks.map(|locks| lock::unlock(locks, self.role.byte())) {
            tracing::error!(role = ?self.role, %error, "cannot release a lock");
        }
    }
}

impl Index {
    /// Acquires a role, if no other process holds it.
    ///
    /// # Errors
    /// If the kernel refuses the lock.
    pub(crate) fn try_acquire(&self, role: Role) -> Result<Option<RoleGuard<'_>>> {
        let Some(locks) = self.process_slot.locks.as_deref() else {
            return Ok(Some(RoleGuard { locks: None, role }));
        };
        let taken = lock::try_lock(locks, role.byte());
        let taken =
            taken.map_err(|e| Error::new(ErrorKind::Io, "lock the directory").with_source(e))?;
        if taken {
            self.heartbeat(role);
        }
        Ok(taken.then_some(RoleGuard { locks: Some(locks), role }))
    }

    /// Shows that this process, which holds `role`, makes progress. All waiters for the role start
    /// their timeout again.
    pub(crate) fn heartbeat(&self, role: Role) {
        if let Some(at) = role.heartbeat_at() {
            self.words()[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of heartbeats of the role; each acquisition is one too.
    pub(crate) fn heartbeats(&self, role: Role) -> u64 {
        role.heartbeat_at().map_or(0, |at| self.words()[at].load(Ordering::Relaxed))
    }

    /// Acquires a role; waits while another process holds it.
    ///
    /// # Errors
    /// `Busy` if the role had no heartbeat for the role's [patience](Role::patience), or if other
    /// processes acquired it first for six times that long; or if the kernel refuses the lock.
    pub(crate) fn acquire(&self, role: Role) -> Result<RoleGuard<'_>> {
        let Waited::Acquired(held) = self.acquire_or(role, || Ok(None::<Infallible>))?;
        Ok(held)
    }

    /// The same, but stops waiting when `instead` returns a value: the role is not needed any more.
    /// Calls `instead` about once a millisecond.
    ///
    /// # Errors
    /// As [`acquire`](Index::acquire), or the error of `instead`.
    pub(crate) fn acquire_or<I>(
        &self,
        role: Role,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<RoleGuard<'_>, I>> {
        const ASKED_EVERY: Duration = Duration::from_millis(1);
        /// The longest wait, in multiples of the patience, while heartbeats arrive: many processes
        /// may wait for the role, and each holds it for some time.
        const MOST_PATIENCE: u32 = 6;
        let (mut wait, started) = (Backoff::default(), Instant::now());
        let mut asked = started;
        // The first holder may release the role at once, so the timeout starts now.
        let (mut heartbeats, mut last_heartbeat) = (self.heartbeats(role), started);
        loop {
            if let Some(held) = self.try_acquire(role)? {
                return Ok(Waited::Acquired(held));
            }
            let now = self.heartbeats(role);
            if now != heartbeats {
                (heartbeats, last_heartbeat) = (now, Instant::now());
            }
            let is_timed_out = || {
                last_heartbeat.elapsed() > role.patience()
                    || started.elapsed() > MOST_PATIENCE * role.patience()
            };
            if wait.owner_had_time() && is_timed_out() {
                return Err(busy("lock the directory"));
            }
            if asked.elapsed() > ASKED_EVERY {
                if let Some(instead) = instead()? {
                    return Ok(Waited::Instead(instead));
                }
                asked = Instant::now();
            }
            wait.pause();
        }
    }
}
