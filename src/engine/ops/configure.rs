//! Configuration: changes the limits of an open directory.
//!
//! All processes read the limits from the index's header, so a change applies to all of them at
//! once. `state` keeps the limits for the next process that opens the directory when it is not
//! open.

use crate::engine::Engine;
use crate::engine::format::sizing;
use crate::error::Result;
use crate::limits::{Limits, NewLimits};
use crate::sys::step;

impl Engine {
    /// The limits that are in force, for all processes.
    pub(crate) fn limits(&self) -> Limits {
        self.index.limits()
    }

    /// Changes the limits for all processes. Returns the limits that are in force now.
    ///
    /// # Errors
    /// If `state` cannot be written, or a process that holds the space role is stopped. Nothing has
    /// changed then.
    pub(crate) fn configure(&self, new: &NewLimits) -> Result<Limits> {
        // One process at a time. The role also excludes the other writers of `state`.
        let role = self.space_role()?;
        let asked = new.over(self.index.asked_limits());
        let counts = sizing::possible(asked, self.index.geometry());
        // Evicted before the limits are in force, so that no insert has to do it.
        self.evict_beyond(counts.max_entries);
        self.checkpoints()?.set_limits(asked).map_err(|e| self.state_error(e))?;
        step!("configure::written");
        self.index.set_limits(asked, counts);
        drop(role);
        tracing::info!(dir = %self.dir.display(), ?asked, ?counts, "the limits were changed");
        // Evicts entries that were inserted meanwhile, and releases this process's share of the
        // bytes. The background does the rest.
        if let Err(error) = self.keep_entries().and_then(|()| self.make_space(0).map(drop)) {
            tracing::info!(%error, "the new limits are not met yet");
        }
        self.bell.ring();
        Ok(counts)
    }
}
