//! Changing the limits of a directory that is open. All processes go by those in the index's header, so the change is
//! theirs at once; `state` keeps them for whoever opens the directory when nobody has it open.

use crate::engine::Engine;
use crate::engine::format::sizing;
use crate::error::Result;
use crate::limits::{Limits, NewLimits};
use crate::sys::step;

impl Engine {
    /// What counts now, for all processes.
    pub(crate) fn limits(&self) -> Limits {
        self.index.limits()
    }

    /// Changes the limits for all processes, and says what counts now.
    ///
    /// # Errors
    /// If `state` cannot be written, or another process is stopped that empties segments. Nothing has changed then.
    pub(crate) fn configure(&self, new: &NewLimits) -> Result<Limits> {
        // One process at a time, also with those that write `state`.
        let turn = self.space_role()?;
        let asked = new.over(self.index.asked_limits());
        let counts = sizing::possible(asked, self.index.geometry());
        // Before they count, so that no insert has to make up for it.
        self.evict_beyond(counts.max_entries);
        self.checkpoints()?.set_limits(asked).map_err(|e| self.state_error(e))?;
        step!("configure::written");
        self.index.set_limits(asked, counts);
        drop(turn);
        tracing::info!(dir = %self.dir.display(), ?asked, ?counts, "the limits were changed");
        // What came in between, and what of the bytes is this process's to give up. The background does the rest.
        if let Err(error) = self.keep_entries().and_then(|()| self.make_space(0).map(drop)) {
            tracing::info!(%error, "not yet within the limits that were set");
        }
        self.bell.ring();
        Ok(counts)
    }
}
