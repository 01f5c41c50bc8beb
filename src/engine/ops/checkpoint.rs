//! CheckpointFiles: snapshots of the index, taken while everybody goes on, so that a recovery need not replay the whole log
//! and emptied segments may go.
//!
//! ```text
//! Z := the emptied segments and the dead blobs; P := where each active segment is finished; S := the next sequence
//! wait until no clear is under way; copy each chain at a moment when nobody has it locked
//! write the copies; sync every segment; write the header; note in `state` that this snapshot counts
//! remove Z
//! ```
//!
//! A record with a sequence below S was published before its chain was copied, so it is in the snapshot or superseded;
//! the others are at P or behind, or in segments that are newer. Only what was emptied before S goes, and only when nothing older than this snapshot can
//! be used any more: so no crash brings back what a removed segment superseded, and no tombstone has to be kept.

use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::blob::Haste;
use crate::engine::format::sizing;
use crate::engine::format::snapshot::{self, Header};
use crate::engine::index::{Packed, Role, SegmentState};
use crate::engine::ops::space_role::SpaceRole;
use crate::engine::shared::checkpoint_files::{CheckpointFiles, NAMES};
use crate::engine::shared::snapshot_file::{self, SnapshotWriter};
use crate::engine::{Engine, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;
use crate::sys::storage::HUGE_PIECES;

/// A checkpoint is due when the log has taken so many bytes since the last one,
const LEAST_LOG: u64 = 16 << 20;
/// and so many times the snapshot's own,
const LOG_FOR_SNAPSHOT: u64 = 4;
/// or after this time if anything was written at all.
const PERIOD: Duration = Duration::from_secs(30);

/// How often a checkpoint begins again because somebody clears the cache.
const SWEEPS: usize = 8;

/// The number of the next snapshot, where `current` is the one that counts and `last` the last that was begun. What
/// counts is not written over: an attempt that failed, whose header may be there after all, is.
/// Keeps invariant I19.
fn number_after(current: u64, last: u64) -> u64 {
    let next = current.max(last) + 1;
    if current > 0 && next % 2 == current % 2 { next + 1 } else { next }
}

impl Engine {
    /// # Errors
    /// If this process only looks on.
    pub(crate) fn checkpoints(&self) -> Result<MutexGuard<'_, CheckpointFiles>> {
        match &self.mode {
            Mode::ReadWrite(checkpoints) => {
                Ok(checkpoints.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Mode::ReadOnly(_) => {
                Err(Error::new(ErrorKind::ReadOnly, "change").with_path(&self.dir))
            }
        }
    }

    pub(crate) fn is_checkpoint_due(&self) -> bool {
        let Ok(mut checkpoints) = self.checkpoints() else { return false };
        let newest = self.index.last_snapshot();
        if checkpoints.seen != newest {
            // Another process took one.
            (checkpoints.seen, checkpoints.last) = (newest, Instant::now());
        }
        let since = self.index.logged_since_checkpoint();
        let enough = LEAST_LOG.max(LOG_FOR_SNAPSHOT * 8 * self.index.count());
        since >= enough || (since > 0 && checkpoints.last.elapsed() >= PERIOD)
    }

    /// Takes a snapshot, and removes what was emptied before. Costs a pass over the index, a write of eight bytes for each
    /// entry, and a sync of each segment that was written to since the last one.
    ///
    /// # Errors
    /// If the disk refuses, or somebody holds a lock of the index for too long. Nothing is removed then, and the snapshot
    /// before goes on to count.
    // Keeps invariant I18.
    pub(crate) fn checkpoint(&self, _turn: &SpaceRole<'_>) -> Result<()> {
        let mut checkpoints = self.checkpoints()?;
        let CheckpointFiles { state, files, .. } = &mut *checkpoints;
        let busy = || Error::new(ErrorKind::Busy, "checkpoint").with_path(&self.dir);
        let geometry = self.index.geometry();
        let (emptied, dead) = (self.log.emptied_ids(), self.recount_blobs(Haste::Later));
        let logged = self.index.logged();
        let mut begin = None;
        for _ in 0..SWEEPS {
            // Words of older generations do not count, and there may be more of them than the snapshot has room for.
            let swept = self.index.generation();
            if !self.index.is_swept(swept) {
                self.reap_all();
                // Something had to stay, as it would the next time.
                if !self.index.is_swept(swept) {
                    break;
                }
            }
            let places: Vec<_> = self.index.segments().collect();
            let sequence = self.index.last_sequence() + 1;
            let generation = self.settled_generation()?;
            begin =
                Some((places, sequence, generation)).filter(|_| self.index.is_swept(generation));
            if begin.is_some() {
                break;
            }
        }
        let (places, sequence, generation) = begin.ok_or_else(busy)?;
        step!("checkpoint::begun");
        state.refresh().map_err(|e| self.state_error(e))?;
        let next = number_after(state.snapshot().unwrap_or(0), self.index.last_snapshot());
        self.index.set_last_snapshot(next);
        let which = (next % 2) as usize;
        let path = self.dir.join(NAMES[which]);
        let io_error = |e| Error::io("write", &path, e);
        let file = &files[which];
        if file.len().map_err(io_error)? != sizing::snapshot_len(geometry) {
            file.reset(sizing::snapshot_len(geometry), HUGE_PIECES).map_err(io_error)?;
        }
        // One that was written whole and never came to count: a power cut must not leave its header over other blocks.
        let counts = state.snapshot().unwrap_or(0);
        if snapshot_file::header(file).map_err(io_error)?.is_some_and(|there| there.number > counts)
        {
            snapshot_file::void(file).map_err(io_error)?;
        }
        let mut writer = SnapshotWriter::new(file, next).map_err(io_error)?;
        let mut packed = Packed::default();
        for chain in 0..geometry.primaries {
            if !self.index.pack(chain, &mut packed) {
                return Err(busy());
            }
            writer.chain(chain, &packed.primary, &packed.overflow).map_err(io_error)?;
        }
        for segment in
            places.iter().filter(|s| matches!(s.state, SegmentState::Active | SegmentState::Sealed))
        {
            let from = match segment.state {
                SegmentState::Active => segment.finished,
                // The next life may go on with it.
                _ if segment.tail > 0 => segment.tail,
                _ => snapshot::SEALED,
            };
            writer.segment(segment.id, from, segment.live).map_err(io_error)?;
        }
        // Whoever waits for the turn sees after each sync that this is not at a standstill, however slow the disk is.
        let goes_on = || self.index.heartbeat(Role::Space);
        writer.finish().map_err(io_error)?;
        goes_on();
        // What is emptied need not be: no word names it, and what it has is older than the snapshot.
        self.log.sync_each(false, goes_on)?;
        let header = Header {
            sequence,
            generation,
            recency: self.index.recency(),
            next_segment: self.index.unused_segment_id(),
            primaries: geometry.primaries,
            ..Header::default()
        };
        writer.commit(header).map_err(io_error)?;
        goes_on();
        state.set_snapshot(next, self.index.asked_limits()).map_err(|e| self.state_error(e))?;
        goes_on();
        step!("checkpoint::counted");
        self.index.set_checkpointed(logged);
        (checkpoints.seen, checkpoints.last) = (next, Instant::now());
        self.release_blobs(&dead);
        self.log.drop_emptied(&emptied);
        Ok(())
    }

    pub(crate) fn state_error(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.dir.join(Path::new("state")), error)
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::ops::checkpoint::number_after;

    // Shows invariant I19.
    #[test]
    fn the_snapshot_that_counts_is_never_written_over() {
        assert_eq!(number_after(0, 0), 1);
        assert_eq!(number_after(1, 1), 2);
        assert_eq!(number_after(1, 2), 4, "the second failed, or died");
        assert_eq!(number_after(4, 4), 5);
        for current in 1..20 {
            for last in current..30 {
                let next = number_after(current, last);
                assert!(next > last && next % 2 != current % 2, "{current} {last} {next}");
            }
        }
    }
}
