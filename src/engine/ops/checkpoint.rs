//! Checkpoints: snapshots of the index. A recovery then need not replay the whole log, and emptied
//! segments can be removed. Readers and writers continue meanwhile.
//!
//! ```text
//! Z := the emptied segments and the dead blobs
//! P := the offset up to which each active segment is finished; S := the next sequence
//! wait until no clear is under way; copy each chain at a moment when its lock is free
//! write the copies; sync every segment; write the header
//! note in `state` that this snapshot is the current one
//! remove Z
//! ```
//!
//! A record with a sequence below S was published before its chain was copied, so it is in the
//! snapshot or superseded. All other records are at or behind P, or in newer segments. Only what
//! was emptied before S is removed, and only when no older snapshot can be used any more. So no
//! crash restores an entry that a record of a removed segment superseded, and no tombstone must be
//! kept.

use std::io;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::blob::Haste;
use crate::engine::format::geometry::Geometry;
use crate::engine::format::sizing;
use crate::engine::format::snapshot::{self, Header};
use crate::engine::index::{Packed, Role, SegmentInfo, SegmentState};
use crate::engine::ops::space_role::SpaceRole;
use crate::engine::shared::checkpoint_files::{CheckpointFiles, NAMES};
use crate::engine::shared::snapshot_file::{self, SnapshotWriter};
use crate::engine::{Engine, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;
use crate::sys::storage::{File, HUGE_PIECES};

/// A checkpoint is due after this many bytes were appended to the log since the last one, and
const LEAST_LOG: u64 = 16 << 20;
/// after this many times the size of the snapshot;
const LOG_FOR_SNAPSHOT: u64 = 4;
/// or after this time, if anything was written.
const PERIOD: Duration = Duration::from_secs(30);

/// How often a checkpoint starts over because the cache is cleared meanwhile.
const SWEEPS: usize = 8;

/// The number of the next snapshot: `current` is the current one, `last` the last one begun. The
/// file of the current snapshot is not overwritten. That of a failed attempt is, although its
/// header may have reached the disk. Keeps invariant I19.
fn number_after(current: u64, last: u64) -> u64 {
    let next = current.max(last) + 1;
    if current > 0 && next % 2 == current % 2 { next + 1 } else { next }
}

/// Where a snapshot starts: recovery replays the log from here.
struct SnapshotStart {
    segments: Vec<SegmentInfo>,
    sequence: u64,
    generation: u32,
}

/// Gives the file its length, and voids a snapshot that was written there completely but never
/// became the `current` one: after a power cut its header must not stand before blocks of another
/// snapshot.
fn prepare_file(file: &File, current: u64, geometry: Geometry) -> io::Result<()> {
    if file.len()? != sizing::snapshot_len(geometry) {
        file.reset(sizing::snapshot_len(geometry), HUGE_PIECES)?;
    }
    if snapshot_file::header(file)?.is_some_and(|there| there.number > current) {
        snapshot_file::void(file)?;
    }
    Ok(())
}

impl Engine {
    /// The checkpoint files, locked for this thread.
    ///
    /// # Errors
    /// `ReadOnly` if this process is attached read-only.
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
            // Another process took a checkpoint.
            (checkpoints.seen, checkpoints.last) = (newest, Instant::now());
        }
        let since = self.index.logged_since_checkpoint();
        let enough = LEAST_LOG.max(LOG_FOR_SNAPSHOT * 8 * self.index.count());
        since >= enough || (since > 0 && checkpoints.last.elapsed() >= PERIOD)
    }

    /// Takes a snapshot, and removes the segments and blobs that were emptied or dead before. Costs
    /// a pass over the index, a write of eight bytes per entry, and a sync of each segment that was
    /// written to since the last checkpoint.
    ///
    /// # Errors
    /// If the disk refuses, or a lock of the index is held for too long. Then nothing is removed,
    /// and the previous snapshot stays the current one.
    // Keeps invariant I18.
    pub(crate) fn checkpoint(&self, _role: &SpaceRole<'_>) -> Result<()> {
        let mut checkpoints = self.checkpoints()?;
        let CheckpointFiles { state, files, .. } = &mut *checkpoints;
        let (emptied, dead) = (self.log.emptied_ids(), self.recount_blobs(Haste::Later));
        let logged = self.index.logged();
        let start = self.settle_start()?;
        step!("checkpoint::begun");
        state.refresh().map_err(|e| self.state_error(e))?;
        let current = state.snapshot().unwrap_or(0);
        let next = number_after(current, self.index.last_snapshot());
        self.index.set_last_snapshot(next);
        let which = (next % 2) as usize;
        let (file, path) = (&files[which], self.dir.join(NAMES[which]));
        let io_error = |e| Error::io("write", &path, e);
        prepare_file(file, current, self.index.geometry()).map_err(io_error)?;
        let mut writer = SnapshotWriter::new(file, next).map_err(io_error)?;
        self.write_snapshot(&mut writer, &path, &start)?;
        self.sync_snapshot(&mut writer, &path)?;
        writer.commit(self.snapshot_header(&start)).map_err(io_error)?;
        self.index.heartbeat(Role::Space);
        state.set_snapshot(next, self.index.asked_limits()).map_err(|e| self.state_error(e))?;
        self.index.heartbeat(Role::Space);
        step!("checkpoint::counted");
        self.index.set_checkpointed(logged);
        (checkpoints.seen, checkpoints.last) = (next, Instant::now());
        self.release_blobs(&dead);
        self.log.drop_emptied(&emptied);
        Ok(())
    }

    /// Sweeps entries of older generations, until none is left at a moment when no clear is under
    /// way. Returns where the snapshot starts at that moment.
    fn settle_start(&self) -> Result<SnapshotStart> {
        for _ in 0..SWEEPS {
            // The snapshot leaves out the words of older generations; together with the current
            // ones they could exceed the room that it has.
            let swept = self.index.generation();
            if !self.index.is_swept(swept) {
                self.reap_all();
                // Some entries could not be removed; the next sweep could not remove them either.
                if !self.index.is_swept(swept) {
                    break;
                }
            }
            let segments: Vec<_> = self.index.segments().collect();
            let sequence = self.index.last_sequence() + 1;
            let generation = self.settled_generation()?;
            if self.index.is_swept(generation) {
                return Ok(SnapshotStart { segments, sequence, generation });
            }
        }
        Err(self.checkpoint_busy())
    }

    /// Writes the chains of the index, and the segments with the offset at which each replay
    /// starts.
    fn write_snapshot(
        &self,
        writer: &mut SnapshotWriter<'_>,
        path: &Path,
        start: &SnapshotStart,
    ) -> Result<()> {
        let io_error = |e| Error::io("write", path, e);
        let mut packed = Packed::default();
        for chain in 0..self.index.geometry().primaries {
            if !self.index.pack(chain, &mut packed) {
                return Err(self.checkpoint_busy());
            }
            writer.chain(chain, &packed.primary, &packed.overflow).map_err(io_error)?;
        }
        for segment in start
            .segments
            .iter()
            .filter(|s| matches!(s.state, SegmentState::Active | SegmentState::Sealed))
        {
            let from = match segment.state {
                SegmentState::Active => segment.finished,
                // After the next open, a process may continue to append to this segment.
                _ if segment.tail > 0 => segment.tail,
                _ => snapshot::SEALED,
            };
            writer.segment(segment.id, from, segment.live).map_err(io_error)?;
        }
        Ok(())
    }

    /// Syncs the snapshot's contents and the log. Each sync is followed by a heartbeat: a process
    /// that waits for the space role sees that this one is not stalled, even on a slow disk.
    fn sync_snapshot(&self, writer: &mut SnapshotWriter<'_>, path: &Path) -> Result<()> {
        let heartbeat = || self.index.heartbeat(Role::Space);
        writer.finish().map_err(|e| Error::io("write", path, e))?;
        heartbeat();
        // Emptied segments need no sync: no word names them, and their records are older than the
        // snapshot.
        self.log.sync_each(false, heartbeat)
    }

    fn snapshot_header(&self, start: &SnapshotStart) -> Header {
        Header {
            sequence: start.sequence,
            generation: start.generation,
            recency: self.index.recency(),
            next_segment: self.index.unused_segment_id(),
            primaries: self.index.geometry().primaries,
            ..Header::default()
        }
    }

    fn checkpoint_busy(&self) -> Error {
        Error::new(ErrorKind::Busy, "checkpoint").with_path(&self.dir)
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
    fn the_current_snapshot_is_never_overwritten() {
        assert_eq!(number_after(0, 0), 1);
        assert_eq!(number_after(1, 1), 2);
        assert_eq!(number_after(1, 2), 4, "the second failed, or its process died");
        assert_eq!(number_after(4, 4), 5);
        for current in 1..20 {
            for last in current..30 {
                let next = number_after(current, last);
                assert!(next > last && next % 2 != current % 2, "{current} {last} {next}");
            }
        }
    }
}
