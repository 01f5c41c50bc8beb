//! The space role: the right of one thread of one process to empty segments and take checkpoints.

use std::convert::Infallible;
use std::sync::MutexGuard;

use crate::engine::Engine;
use crate::engine::index::{Role, RoleGuard, Waited, busy};
use crate::error::Result;

/// Holds the space role, until it is dropped.
pub(crate) struct SpaceRole<'a> {
    _role: RoleGuard<'a>,
    _thread: MutexGuard<'a, ()>,
}

impl Engine {
    /// Waits for the space role.
    ///
    /// # Errors
    /// `Busy` if another process holds it without a heartbeat for so long that it must be stopped.
    pub(crate) fn space_role(&self) -> Result<SpaceRole<'_>> {
        let Waited::Acquired(role) = self.space_role_or(|| Ok(None::<Infallible>))?;
        Ok(role)
    }

    /// Waits for the space role, or until `instead` returns a value while another process holds it.
    pub(crate) fn space_role_or<I>(
        &self,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<SpaceRole<'_>, I>> {
        let thread =
            self.space_queue.enter().ok_or_else(|| busy("make room").with_path(&self.dir))?;
        let between = || {
            // The holder of the role may wait for this process to unmap segments that it removed.
            self.log.unmap_new_drops();
            instead()
        };
        let waited =
            self.index.acquire_or(Role::Space, between).map_err(|e| e.with_path(&self.dir));
        Ok(match self.space_queue.share_timeout(waited)? {
            Waited::Acquired(role) => Waited::Acquired(SpaceRole { _role: role, _thread: thread }),
            Waited::Instead(instead) => Waited::Instead(instead),
        })
    }

    /// The space role, if no other thread or process holds it.
    pub(crate) fn try_space_role(&self) -> Result<Option<SpaceRole<'_>>> {
        let Some(thread) = self.space_queue.try_enter() else { return Ok(None) };
        let role = self.index.try_acquire(Role::Space)?;
        Ok(role.map(|role| SpaceRole { _role: role, _thread: thread }))
    }
}
