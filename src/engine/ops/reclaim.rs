//! Reclaiming space: which segments and blobs are emptied so that their bytes are freed, and how a
//! caller waits for them.
//!
//! A segment with few live bytes is compacted: its live records are copied. If every segment is
//! full of live records, the oldest is evicted, and only records that were used since it was
//! written are copied out of it, up to the same small share. So for each byte that callers write,
//! at most a quarter is copied. Copies are on the disk before the index names them; the emptied
//! segment stays until a checkpoint that began later is complete.
//!
//! ```text
//! make_space(bytes), with the space role, until the bytes are claimed:
//!   clean up after dead processes; unmap dropped segments
//!   too little space will be freed:    evict a blob beyond the blobs' share, else empty a segment
//!   an emptied segment has a file:     take a checkpoint, which removes it
//!   else                               wait for processes that still map dropped segments, or fail
//! ```

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::blob::Haste;
use crate::engine::format::sizing;
use crate::engine::index::{Role, SegmentInfo, SegmentState, Waited, busy};
use crate::engine::ops::candidates::{Candidate, choose, choose_idle};
use crate::engine::ops::compaction::Evacuate;
use crate::engine::ops::space_role::SpaceRole;
use crate::engine::shared::accounting::Reservation;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::wait::Backoff;

/// So many segments of dead owners are left for processes that attach later.
const ORPHANS: usize = 8;
/// How long bytes that other processes hold are waited for.
const OTHERS_RELEASE: Duration = Duration::from_secs(5);
/// A chain is locked for microseconds. An error that says otherwise is retried for this long.
const LOCKS_ARE_FREE: Duration = Duration::from_secs(2);
/// Bytes that another process released can be evicted this much later.
const SETTLED: Duration = Duration::from_millis(250);

/// The result of one round of [`make_space`](Engine::make_space).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Something was emptied or removed: try again at once.
    Progress,
    /// A lock of the index was held for longer than usual: try again after a pause.
    Blocked,
    /// There is nothing to empty or to remove.
    Exhausted,
}

/// A search for space that has the space role.
struct Search<'a> {
    role: SpaceRole<'a>,
    bytes: u64,
    /// When the caller began to wait for the role.
    started: Instant,
    /// When it acquired the role.
    acquired: Instant,
    /// When bytes of other processes were last seen.
    last_held: Instant,
    /// Bytes that were emptied and are still there after a checkpoint: their files cannot be
    /// removed.
    stuck: u64,
    wait: Backoff,
}

impl Search<'_> {
    /// Whether the error may be gone in a moment: its holder was descheduled, or is stopped.
    fn is_brief(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Busy && self.acquired.elapsed() < LOCKS_ARE_FREE
    }

    /// The round that `error` ends, if it may be gone in a moment.
    fn blocked(&self, error: Error) -> Result<Round> {
        if self.is_brief(&error) { Ok(Round::Blocked) } else { Err(error) }
    }
}

impl Engine {
    fn candidates(&self) -> Vec<Candidate> {
        self.index.segments_in(SegmentState::Sealed).into_iter().map(Candidate::from).collect()
    }

    /// The bound on segments and blobs. It leaves room for the segment for copies.
    fn most_bytes(&self) -> u64 {
        self.log.budget().saturating_sub(self.log.segment_len())
    }

    /// Whether `bytes` more, and the segment for copies beside them, are within the bounds.
    fn is_room_for(&self, bytes: u64) -> bool {
        self.log.bytes() + bytes <= self.most_bytes()
    }

    /// The bytes of segments and blobs that no entry names. The next checkpoint removes them.
    pub(crate) fn emptied_bytes(&self) -> u64 {
        self.dead_blobs(Haste::Later);
        let (_, dead) = self.blobs.bytes();
        self.log.emptied_bytes() + dead
    }

    /// Claims `bytes` more, if they are within `max_bytes`.
    pub(crate) fn claim_room(&self, bytes: u64) -> Result<Option<Reservation>> {
        self.log.space().reserve_within(bytes, self.most_bytes())
    }

    /// The bytes of segments that are removed, and that some process still maps. They are freed
    /// when all have unmapped them.
    fn dropped_bytes(&self) -> u64 {
        self.index.segments_in(SegmentState::Dropped).iter().map(|segment| segment.len).sum()
    }

    /// Makes room for `bytes` more within `max_bytes`, and claims them.
    ///
    /// # Errors
    /// `Busy` if another process keeps the role or dropped segments for so long that it must be
    /// stopped. `NoSpace` if the program holds all space itself.
    pub(crate) fn make_space(&self, bytes: u64) -> Result<Reservation> {
        if let Some(reservation) = self.claim_room(bytes)? {
            return Ok(reservation);
        }
        self.log.seal_oversized();
        let (started, drops) = (Instant::now(), self.index.drops());
        // Whichever process has the role: the bytes that a stopped process holds are not freed.
        let is_in_vain =
            || started.elapsed() > Role::Space.patience() && self.index.drops_seen_by_all() < drops;
        let instead = || match self.claim_room(bytes)? {
            None if is_in_vain() => Err(busy("reserve").with_path(&self.dir)),
            claimed => Ok(claimed),
        };
        let role = match self.space_role_or(instead)? {
            Waited::Acquired(role) => role,
            Waited::Instead(reservation) => return Ok(reservation),
        };
        let (acquired, wait) = (Instant::now(), Backoff::default());
        let mut search =
            Search { role, bytes, started, acquired, last_held: acquired, stuck: 0, wait };
        loop {
            if let Some(reservation) = self.claim_room(bytes)? {
                return Ok(reservation);
            }
            match self.reclaim_some(&mut search)? {
                Round::Progress => continue,
                Round::Blocked => {}
                Round::Exhausted => self.check_for_releases(&mut search)?,
            }
            search.wait.pause();
        }
    }

    /// One round: empties something if too little will be freed, then removes what is emptied.
    fn reclaim_some(&self, search: &mut Search<'_>) -> Result<Round> {
        self.clean_up_after_dead();
        self.log.seal_oversized();
        self.log.free_dropped();
        let emptied = self.emptied_bytes();
        let comes_back = emptied.saturating_sub(search.stuck);
        let is_enough = self.log.bytes() + search.bytes
            <= self.most_bytes() + comes_back + self.dropped_bytes();
        if !is_enough {
            match self.empty_or_evict(&search.role) {
                Ok(true) => return Ok(Round::Progress),
                Ok(false) => {}
                Err(e) => return search.blocked(e),
            }
        }
        if comes_back == 0 {
            return Ok(Round::Exhausted);
        }
        if let Err(e) = self.secure(&search.role) {
            // Nothing was removed, so nothing more need be emptied.
            return search.blocked(e);
        }
        let left = self.emptied_bytes();
        if left < emptied {
            return Ok(Round::Progress);
        }
        search.stuck = left;
        Ok(Round::Exhausted)
    }

    /// Nothing is left to empty: whether other processes, a read or a sync may still release bytes.
    ///
    /// # Errors
    /// If none of them will.
    fn check_for_releases(&self, search: &mut Search<'_>) -> Result<()> {
        let releases =
            |s: SegmentInfo| s.state == SegmentState::Dropped || self.log.is_oversized(&s);
        // An idle process unmaps dropped segments once a second, unless it waits for the disk.
        let others_release = self.index.segments().any(releases);
        if others_release || self.index.bytes_of_others() > 0 {
            search.last_held = Instant::now();
        }
        let is_patient = if others_release {
            search.started.elapsed() < Role::Space.patience()
        } else {
            search.acquired.elapsed() < OTHERS_RELEASE
        };
        let others_hold = is_patient && search.last_held.elapsed() < SETTLED;
        if self.log.space().is_syncing() || others_hold || !search.wait.is_long() {
            return Ok(());
        }
        if others_release {
            return Err(busy("reserve").with_path(&self.dir));
        }
        let why = "max_bytes is taken by values that the program still holds or writes, or by \
                   files that are not ours";
        let error = Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir).with_source(why);
        Err(self.log.explain_no_space(error))
    }

    /// Evicts a blob beyond the blobs' share of the space, else empties a segment, else evicts any
    /// blob. `false` if there is none of these.
    fn empty_or_evict(&self, role: &SpaceRole<'_>) -> Result<bool> {
        let share = sizing::blob_share(self.log.budget());
        self.log.seal_orphans(0);
        Ok(self.evict_a_blob(share)? || self.empty_one(role)? || self.evict_a_blob(0)?)
    }

    /// Drops the oldest segment at once, or the coldest blob, because the disk is full. `false` if
    /// there is neither.
    pub(crate) fn evict_oldest(&self) -> Result<bool> {
        let role = self.space_role()?;
        self.log.seal_orphans(0);
        match self.index.segments_in(SegmentState::Sealed).first() {
            Some(oldest) => {
                self.empty(oldest.id, Evacuate::Drop)?;
            }
            None if !self.evict_a_blob(0)? => return Ok(false),
            None => {}
        }
        self.secure(&role)?;
        Ok(true)
    }

    /// A checkpoint. Records in segments that the disk refused to sync are copied into others
    /// before.
    fn secure(&self, role: &SpaceRole<'_>) -> Result<()> {
        /// Each attempt may find another segment that fails.
        const ATTEMPTS: usize = 3;
        let mut done = self.checkpoint(role);
        for _ in 0..ATTEMPTS {
            self.log.seal_failed();
            let failed: Vec<_> = self.candidates().into_iter().filter(|c| c.failed).collect();
            if done.is_ok() || failed.is_empty() {
                break;
            }
            for Candidate { id, .. } in failed {
                match self.empty(id, Evacuate::Copy) {
                    Ok(true) => {}
                    // Records that can be copied a moment later need not be dropped.
                    Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
                    Ok(false) | Err(_) => drop(self.empty(id, Evacuate::Drop)?),
                }
            }
            done = self.checkpoint(role);
        }
        done
    }

    /// Empties the segment that costs least. `false` if there is none.
    fn empty_one(&self, role: &SpaceRole<'_>) -> Result<bool> {
        let Some((id, evacuate)) = choose(&self.candidates()) else { return Ok(false) };
        let mut emptied = self.empty(id, evacuate);
        if emptied.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace)
            && self.log.emptied_bytes() > 0
        {
            self.secure(role)?;
            emptied = self.empty(id, evacuate);
        }
        match emptied {
            Ok(true) => Ok(true),
            // Its entries cannot be removed now; those of another segment could not either.
            Err(e) if e.kind() == ErrorKind::Busy => Err(e),
            // Records that cannot be copied are dropped: this always makes progress.
            Ok(false) | Err(_) => self.empty(id, Evacuate::Drop),
        }
    }

    /// Brings the log within its budget ahead of the writers, compacts, and takes a checkpoint if
    /// one is due. `quiet`: there are no writers. Says whether there is more to compact.
    pub(crate) fn keep_space(&self, quiet: bool) -> Result<bool> {
        // The next segment and one more, so that a writer seldom waits for either.
        let wanted = 2 * self.log.segment_len();
        self.make_room_ahead(wanted)?;
        // One segment in each round: others may wait for the role, and the background has other
        // work.
        let Some(role) = self.try_space_role()? else { return Ok(false) };
        self.clean_up_after_dead();
        self.log.free_dropped();
        self.log.seal_orphans(ORPHANS);
        let more = self.compact_one(quiet);
        let emptied = self.emptied_bytes();
        let wants_back = emptied > 0
            && (!self.is_room_for(wanted) || (quiet && !more) || emptied > self.log.bytes() / 4);
        if wants_back || self.is_checkpoint_due() {
            self.secure(&role)?;
        }
        Ok(more)
    }

    /// Removes all segments and blobs that no entry names.
    pub(crate) fn remove_emptied(&self) -> Result<()> {
        let role = self.space_role()?;
        self.log.free_dropped();
        if self.emptied_bytes() > 0 { self.secure(&role) } else { Ok(()) }
    }

    /// Empties segments if `wanted` bytes will be needed soon: so many that their removal is worth
    /// a checkpoint.
    fn make_room_ahead(&self, wanted: u64) -> Result<()> {
        let snapshots = 2 * sizing::snapshot_len(self.index.geometry());
        let batch = self.log.segment_len().max(snapshots);
        let batch = wanted + batch.min(self.log.budget() / 16);
        if self.is_room_for(wanted) {
            return Ok(());
        }
        loop {
            let Some(role) = self.try_space_role()? else { return Ok(()) };
            let comes_back = self.emptied_bytes() + self.dropped_bytes();
            let is_enough = self.log.bytes() + batch <= self.most_bytes() + comes_back;
            if is_enough || !self.empty_or_evict(&role)? {
                return Ok(());
            }
        }
    }

    /// Compacts a segment with few live bytes, if much is dead. Says whether it did.
    fn compact_one(&self, quiet: bool) -> bool {
        let segment_len = self.log.segment_len();
        let Some(id) = choose_idle(&self.candidates(), segment_len, quiet) else {
            return false;
        };
        self.empty(id, Evacuate::Copy).unwrap_or_else(|error| {
            tracing::debug!(%error, segment = id, "a segment is not compacted now");
            false
        })
    }

    /// Whether nothing was written since the last call.
    pub(crate) fn is_quiet(&self) -> bool {
        let appended = self.index.logged();
        self.seen_appended.swap(appended, Ordering::Relaxed) == appended
    }
}
