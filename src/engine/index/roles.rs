//! Roles: what one process at a time does for all. Each is a byte of the lock file.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use super::Index;
use crate::engine::format::index_header::{MOST_PROCESSES, at};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::atomic::Ordering;
use crate::sys::fork::OwnFile;
use crate::sys::lock;
use crate::sys::wait::Backoff;

/// What one process at a time may do. A byte of the lock file each, behind those of the processes.
/// Keeps invariant I24: the kernel releases the byte of a dead process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Lead: look after the directory when nobody asks for it. Held for as long as a process is attached.
    Leader,
    /// Empty segments, and take checkpoints.
    Space,
    /// Claim bytes within the bound.
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

    /// Where it is counted how often the role was taken, for those that are waited for.
    fn count_at(self) -> Option<usize> {
        match self {
            Self::Leader | Self::Count => None,
            Self::Space => Some(at::ROLES),
            Self::Admission => Some(at::ROLES + 1),
            Self::Cull => Some(at::ROLES + 2),
        }
    }

    /// How long one that has the role is waited for: so long that only one that is stopped is not done.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Leader | Self::Count => Duration::ZERO,
            // With checkpoints, which wait for the disk, and go on after each file.
            Self::Space => Duration::from_secs(10),
            Self::Admission | Self::Cull => Duration::from_secs(1),
        }
    }
}

/// What came of waiting for a role.
pub(crate) enum Waited<T, I> {
    Acquired(T),
    /// There is no need of it any more.
    Instead(I),
}

/// The error of whoever waited for a role in vain.
pub(crate) fn busy(operation: &'static str) -> Error {
    let why = "another process makes room, and does not come to its end; it may be stopped";
    Error::new(ErrorKind::Busy, operation).with_source(why)
}

/// A role among processes, had until this is dropped. Threads of one process need a lock of their own beside.
#[derive(Debug)]
pub(crate) struct RoleGuard<'a> {
    locks: Option<&'a OwnFile>,
    role: Role,
}

impl Drop for RoleGuard<'_> {
    fn drop(&mut self) {
        let locks = self.locks.filter(|locks| locks.is_ours());
        if let Some(Err(error)) = locks.map(|locks| lock::unlock(locks, self.role.byte())) {
            tracing::error!(role = ?self.role, %error, "cannot let go of a lock");
        }
    }
}

impl Index {
    /// Takes a role, if no other process has it.
    ///
    /// # Errors
    /// If the kernel refuses.
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

    /// Says, of a role that this process has, that it is at work: whoever waits for the role begins to count anew.
    pub(crate) fn heartbeat(&self, role: Role) {
        if let Some(count) = role.count_at() {
            self.words()[count].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often the role was taken, and whoever had it went on.
    pub(crate) fn heartbeats(&self, role: Role) -> u64 {
        role.count_at().map_or(0, |count| self.words()[count].load(Ordering::Relaxed))
    }

    /// The same, but waits for another process.
    ///
    /// # Errors
    /// `Busy` if one that has it does not go on for so long that it must be stopped, or very many were faster; or if the kernel
    /// refuses.
    pub(crate) fn acquire(&self, role: Role) -> Result<RoleGuard<'_>> {
        let Waited::Acquired(held) = self.acquire_or(role, || Ok(None::<Infallible>))?;
        Ok(held)
    }

    /// The same, or until `instead`, which is asked about once a millisecond, says that there is no need any more.
    ///
    /// # Errors
    /// As [`acquire`](Index::acquire), or what `instead` says.
    pub(crate) fn acquire_or<I>(
        &self,
        role: Role,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<RoleGuard<'_>, I>> {
        const ASKED_EVERY: Duration = Duration::from_millis(1);
        /// Where many wait for the role, and each takes its time.
        const MOST_TURNS: u32 = 6;
        let (mut wait, started) = (Backoff::default(), Instant::now());
        let mut asked = started;
        // Whoever had it at first may be done: then nobody is stopped yet.
        let (mut heartbeats, mut turned) = (self.heartbeats(role), started);
        loop {
            if let Some(held) = self.try_acquire(role)? {
                return Ok(Waited::Acquired(held));
            }
            let now = self.heartbeats(role);
            if now != heartbeats {
                (heartbeats, turned) = (now, Instant::now());
            }
            let is_over = || {
                turned.elapsed() > role.patience()
                    || started.elapsed() > MOST_TURNS * role.patience()
            };
            if wait.owner_had_time() && is_over() {
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
