//! The space role: the right to empty segments and to take checkpoints, of one thread of one process.

use std::convert::Infallible;
use std::sync::MutexGuard;

use crate::engine::Engine;
use crate::engine::index::{Role, RoleGuard, Waited, busy};
use crate::error::Result;

/// The right to empty segments and to take checkpoints: one thread of one process has it.
pub(crate) struct SpaceRole<'a> {
    _turn: RoleGuard<'a>,
    _thread: MutexGuard<'a, ()>,
}

impl Engine {
    /// Waits for the turn to empty segments.
    ///
    /// # Errors
    /// `Busy` if another process has it for so long that it must be stopped.
    pub(crate) fn space_role(&self) -> Result<SpaceRole<'_>> {
        let Waited::Acquired(turn) = self.space_role_or(|| Ok(None::<Infallible>))?;
        Ok(turn)
    }

    /// The same, or what `instead` says while another process has it, whichever comes first.
    pub(crate) fn space_role_or<I>(
        &self,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<SpaceRole<'_>, I>> {
        let thread = self.emptying.enter().ok_or_else(|| busy("make room").with_path(&self.dir))?;
        let between = || {
            // Whoever has the turn may wait for this process to let go of what was removed.
            self.log.unmap_new_drops();
            instead()
        };
        let waited =
            self.index.acquire_or(Role::Space, between).map_err(|e| e.with_path(&self.dir));
        Ok(match self.emptying.share_timeout(waited)? {
            Waited::Acquired(turn) => Waited::Acquired(SpaceRole { _turn: turn, _thread: thread }),
            Waited::Instead(instead) => Waited::Instead(instead),
        })
    }

    /// The same, if nobody has it.
    pub(crate) fn try_space_role(&self) -> Result<Option<SpaceRole<'_>>> {
        let Some(thread) = self.emptying.try_enter() else { return Ok(None) };
        let turn = self.index.try_acquire(Role::Space)?;
        Ok(turn.map(|turn| SpaceRole { _turn: turn, _thread: thread }))
    }
}
