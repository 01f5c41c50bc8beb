//! Space: which segments are emptied so that their bytes come back, what is copied out of them, and what goes.
//!
//! A segment in which little is alive is compacted: what is alive is copied. Where everything is full of what is alive,
//! the oldest segment goes, and only what was used since it was written is copied out of it, up to the same small share.
//! So for each byte that callers write, at most a quarter is copied. Copies are on the disk before the index names
//! them; the emptied segment stays until a checkpoint that began later has come to its end.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::blob::Haste;
use crate::engine::format::record::Draft;
use crate::engine::format::sizing;
use crate::engine::index::busy;
use crate::engine::index::{Role, SegmentInfo, SegmentState, Waited};
use crate::engine::log::append::RecordReservation;
use crate::engine::ops::compaction::{COPY_SHARE, Evacuate};
use crate::engine::ops::space_role::SpaceRole;
use crate::engine::shared::accounting::Reservation;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::wait::Backoff;

/// When nobody writes, a segment is compacted if at most one in so many of its bytes is alive.
const IDLE_SHARE: u64 = 2;
/// Dead bytes are left alone while they are fewer than this many segments, or than what is alive.
const SLACK_SEGMENTS: u64 = 4;
/// So many segments whose owners are gone are left for those who come.
const ORPHANS: usize = 8;

/// What is known of a sealed segment, for the choice of the next to be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    id: u32,
    len: u64,
    live: u64,
    failed: bool,
}

/// The segment to empty next, of all that are sealed, oldest first, when there is need for space.
/// Keeps invariant I33.
fn choose(sealed: &[Candidate]) -> Option<(u32, Evacuate)> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some((failed.id, Evacuate::Copy));
    }
    match emptiest(sealed) {
        Some(c) if c.live <= c.len / COPY_SHARE => Some((c.id, Evacuate::Copy)),
        _ => sealed.first().map(|oldest| (oldest.id, Evacuate::Evict)),
    }
}

/// The segment to compact when there is no need: only if much is dead.
fn choose_idle(sealed: &[Candidate], segment_len: u64, quiet: bool) -> Option<u32> {
    if let Some(failed) = sealed.iter().find(|c| c.failed) {
        return Some(failed.id);
    }
    let emptiest = emptiest(sealed)?;
    let (len, live) =
        sealed.iter().fold((0, 0), |(len, live), c| (len + c.len, live + c.live.min(c.len)));
    let much = len - live > live.max(SLACK_SEGMENTS * segment_len);
    let share = if quiet { IDLE_SHARE } else { COPY_SHARE };
    (emptiest.live == 0 || (much && emptiest.live <= emptiest.len / share)).then_some(emptiest.id)
}

/// The one in which the smallest part is alive; the oldest of several.
fn emptiest(sealed: &[Candidate]) -> Option<&Candidate> {
    sealed.iter().min_by_key(|c| u128::from(c.live) * (1 << 20) / u128::from(c.len.max(1)))
}

impl Engine {
    fn candidates(&self) -> Vec<Candidate> {
        let of =
            |s: SegmentInfo| Candidate { id: s.id, len: s.len, live: s.live, failed: s.failed };
        self.index.segments_in(SegmentState::Sealed).into_iter().map(of).collect()
    }

    /// Space in the log for a record of this shape.
    pub(crate) fn reserve(&self, draft: &Draft) -> Result<RecordReservation> {
        let len = self.log.len_of(draft)?;
        loop {
            if let Some(reservation) = self.log.reserve(len)? {
                return Ok(reservation);
            }
            self.provide(len, false)?;
        }
    }

    /// Sees to it that the next segment is there, and says whether it is. `ahead`: nobody waits for it, and it waits for
    /// nobody.
    pub(crate) fn provide(&self, len: u32, ahead: bool) -> Result<bool> {
        if ahead {
            self.log.provide(len, true, &|bytes| self.claim_room(bytes), &|| Ok(false))
        } else {
            self.log.provide(len, false, &|bytes| self.make_space(bytes).map(Some), &|| {
                self.give_up_oldest()
            })
        }
    }

    /// What all may take, so that there is room for the segment for copies.
    fn most_bytes(&self) -> u64 {
        self.log.budget().saturating_sub(self.log.segment_len())
    }

    /// Whether `bytes` more would be within the bounds, and the segment for copies beside them.
    fn is_room_for(&self, bytes: u64) -> bool {
        self.log.bytes() + bytes <= self.most_bytes()
    }

    /// The bytes of segments and blobs that no entry names any more, and which a checkpoint gives back.
    pub(crate) fn emptied_bytes(&self) -> u64 {
        self.dead_blobs(Haste::Later);
        let (_, dead) = self.blobs.bytes();
        self.log.emptied_bytes() + dead
    }

    /// Takes `bytes` more, if there is room for them within `max_bytes`.
    fn claim_room(&self, bytes: u64) -> Result<Option<Reservation>> {
        self.log.space().reserve_within(bytes, self.most_bytes())
    }

    /// The bytes of segments that are removed, and which not all processes have let go of. They come back.
    fn going_bytes(&self) -> u64 {
        self.index.segments_in(SegmentState::Dropped).iter().map(|segment| segment.len).sum()
    }

    /// Makes room for `bytes` more within `max_bytes`, and takes them.
    pub(crate) fn make_space(&self, bytes: u64) -> Result<Reservation> {
        if let Some(reservation) = self.claim_room(bytes)? {
            return Ok(reservation);
        }
        self.log.seal_oversized();
        let (mut wait, started, drops) = (Backoff::default(), Instant::now(), self.index.drops());
        // However many have the turn one after the other, what somebody who is stopped keeps comes back to none of them.
        let is_in_vain =
            || started.elapsed() > Role::Space.patience() && self.index.drops_seen_by_all() < drops;
        let instead = || match self.claim_room(bytes)? {
            None if is_in_vain() => Err(busy("reserve").with_path(&self.dir)),
            claimed => Ok(claimed),
        };
        let turn = match self.space_role_or(instead)? {
            Waited::Acquired(turn) => turn,
            Waited::Instead(reservation) => return Ok(reservation),
        };
        /// What other programs hold, they may let go of soon.
        const OTHERS_LET_GO: Duration = Duration::from_secs(5);
        /// A chain is locked for microseconds.
        const LOCKS_ARE_FREE: Duration = Duration::from_secs(2);
        /// What they let go of is there to be given up a moment later.
        const SETTLED: Duration = Duration::from_millis(250);
        let turned = Instant::now();
        let mut last_held = turned;
        // What was emptied and is still there after a checkpoint: its files cannot be removed.
        let mut stuck = 0;
        loop {
            if let Some(reservation) = self.claim_room(bytes)? {
                return Ok(reservation);
            }
            self.clean_up_after_dead();
            self.log.seal_oversized();
            self.log.free_dropped();
            let emptied = self.emptied_bytes();
            let comes_back = emptied.saturating_sub(stuck);
            let is_enough =
                self.log.bytes() + bytes <= self.most_bytes() + comes_back + self.going_bytes();
            // Whoever holds a lock of the index longer than usual has had no processor, or is stopped.
            let is_brief =
                |e: &Error| e.kind() == ErrorKind::Busy && turned.elapsed() < LOCKS_ARE_FREE;
            if !is_enough {
                match self.give_up_one(&turn) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(e) if is_brief(&e) => {
                        wait.pause();
                        continue;
                    }
                    Err(e) => return Err(e),
                }
            }
            if comes_back > 0 {
                match self.secure(&turn) {
                    Ok(()) => {}
                    // Nothing was removed, so nothing more need be given up.
                    Err(e) if is_brief(&e) => {
                        wait.pause();
                        continue;
                    }
                    Err(e) => return Err(e),
                }
                let left = self.emptied_bytes();
                if left < emptied {
                    continue;
                }
                stuck = left;
            }
            // What is gone may still be held for a moment, by a read or until a sync is done.
            let is_going =
                |s: SegmentInfo| s.state == SegmentState::Dropped || self.log.is_oversized(&s);
            // A process that does nothing lets go once a second, unless it waits for the disk.
            let is_going = self.index.segments().any(is_going);
            if is_going || self.index.bytes_of_others() > 0 {
                last_held = Instant::now();
            }
            let is_patient = if is_going {
                started.elapsed() < Role::Space.patience()
            } else {
                turned.elapsed() < OTHERS_LET_GO
            };
            let others_hold = is_patient && last_held.elapsed() < SETTLED;
            if !self.log.space().is_syncing() && !others_hold && wait.is_long() {
                if is_going {
                    return Err(busy("reserve").with_path(&self.dir));
                }
                let error = Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir).with_source(
                    "max_bytes is taken by values that the program still holds or writes, or by files that are not \
                     ours",
                );
                return Err(self.log.blame_writers(error));
            }
            wait.pause();
        }
    }

    /// Gives up blobs beyond their share of the space, else a segment, else any blob. `false` if there is nothing.
    fn give_up_one(&self, turn: &SpaceRole<'_>) -> Result<bool> {
        let share = sizing::blob_share(self.log.budget());
        self.log.seal_orphans(0);
        Ok(self.evict_a_blob(share)? || self.empty_one(turn)? || self.evict_a_blob(0)?)
    }

    /// Gives up the oldest segment at once, or the coldest blob, as the disk is full. `false` if there is none.
    pub(crate) fn give_up_oldest(&self) -> Result<bool> {
        let turn = self.space_role()?;
        self.log.seal_orphans(0);
        match self.index.segments_in(SegmentState::Sealed).first() {
            Some(oldest) => {
                self.empty(oldest.id, Evacuate::Drop)?;
            }
            None if !self.evict_a_blob(0)? => return Ok(false),
            None => {}
        }
        self.secure(&turn)?;
        Ok(true)
    }

    /// A checkpoint. What is in segments that the disk refused to sync is copied into others before.
    fn secure(&self, turn: &SpaceRole<'_>) -> Result<()> {
        /// Each attempt may find another segment that fails.
        const ATTEMPTS: usize = 3;
        let mut done = self.checkpoint(turn);
        for _ in 0..ATTEMPTS {
            self.log.seal_failed();
            let failed: Vec<_> = self.candidates().into_iter().filter(|c| c.failed).collect();
            if done.is_ok() || failed.is_empty() {
                break;
            }
            for Candidate { id, .. } in failed {
                match self.empty(id, Evacuate::Copy) {
                    Ok(true) => {}
                    // What could be copied a moment later need not go.
                    Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
                    Ok(false) | Err(_) => drop(self.empty(id, Evacuate::Drop)?),
                }
            }
            done = self.checkpoint(turn);
        }
        done
    }

    /// Empties the segment that it costs least to empty. `false` if there is none.
    fn empty_one(&self, turn: &SpaceRole<'_>) -> Result<bool> {
        let Some((id, evacuate)) = choose(&self.candidates()) else { return Ok(false) };
        let mut emptied = self.empty(id, evacuate);
        if emptied.as_ref().is_err_and(|e| e.kind() == ErrorKind::NoSpace)
            && self.log.emptied_bytes() > 0
        {
            self.secure(turn)?;
            emptied = self.empty(id, evacuate);
        }
        match emptied {
            Ok(true) => Ok(true),
            // Its entries cannot be removed now, nor can those of another with them.
            Err(e) if e.kind() == ErrorKind::Busy => Err(e),
            // What cannot be copied goes: this always makes progress.
            Ok(false) | Err(_) => self.empty(id, Evacuate::Drop),
        }
    }

    /// Brings the log within its budget ahead of the writers, gives back some of what is dead, and takes a checkpoint if
    /// one is due. `quiet`: nobody writes. Says whether there is more to give back.
    pub(crate) fn keep_space(&self, quiet: bool) -> Result<bool> {
        // The next segment, and one more, so that a writer seldom waits for either.
        let wanted = 2 * self.log.segment_len();
        self.make_room_ahead(wanted)?;
        // One segment at a time, as others may be waiting, and more than this is to be done.
        let Some(turn) = self.try_space_role()? else { return Ok(false) };
        self.clean_up_after_dead();
        self.log.free_dropped();
        self.log.seal_orphans(ORPHANS);
        let more = self.compact_one(quiet);
        let emptied = self.emptied_bytes();
        let wants_back = emptied > 0
            && (!self.is_room_for(wanted) || (quiet && !more) || emptied > self.log.bytes() / 4);
        if wants_back || self.is_checkpoint_due() {
            self.secure(&turn)?;
        }
        Ok(more)
    }

    /// Gives back what no entry names any more.
    pub(crate) fn give_back(&self) -> Result<()> {
        let turn = self.space_role()?;
        self.log.free_dropped();
        if self.emptied_bytes() > 0 { self.secure(&turn) } else { Ok(()) }
    }

    /// Empties segments if there will soon be need of `wanted` bytes: so many that their removal is worth a checkpoint.
    fn make_room_ahead(&self, wanted: u64) -> Result<()> {
        let batch = self.log.segment_len().max(2 * sizing::snapshot_len(self.index.geometry()));
        let batch = wanted + batch.min(self.log.budget() / 16);
        if self.is_room_for(wanted) {
            return Ok(());
        }
        loop {
            let Some(turn) = self.try_space_role()? else { return Ok(()) };
            let comes_back = self.emptied_bytes() + self.going_bytes();
            let is_enough = self.log.bytes() + batch <= self.most_bytes() + comes_back;
            if is_enough || !self.give_up_one(&turn)? {
                return Ok(());
            }
        }
    }

    /// Compacts a segment in which little is alive, if much is dead. Says whether it did.
    fn compact_one(&self, quiet: bool) -> bool {
        let Some(id) = choose_idle(&self.candidates(), self.log.segment_len(), quiet) else {
            return false;
        };
        self.empty(id, Evacuate::Copy).unwrap_or_else(|error| {
            tracing::debug!(%error, segment = id, "a segment is not compacted now");
            false
        })
    }

    /// Whether nobody wrote since the last look.
    pub(crate) fn is_quiet(&self) -> bool {
        let appended = self.index.logged();
        self.seen_appended.swap(appended, Ordering::Relaxed) == appended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(live: &[u64]) -> Vec<Candidate> {
        let of = |(id, live): (usize, &u64)| Candidate {
            id: id as u32 + 1,
            len: 100,
            live: *live,
            failed: false,
        };
        live.iter().enumerate().map(of).collect()
    }

    #[test]
    fn what_is_nearly_dead_is_compacted_and_else_the_oldest_goes() {
        assert_eq!(choose(&candidates(&[90, 20, 60])), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&candidates(&[90, 21, 60])), Some((1, Evacuate::Evict)));
        assert_eq!(choose(&candidates(&[90, 0, 0])), Some((2, Evacuate::Copy)));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn what_failed_goes_first() {
        let mut all = candidates(&[0, 90]);
        all[1].failed = true;
        assert_eq!(choose(&all), Some((2, Evacuate::Copy)));
        assert_eq!(choose_idle(&all, 100, false), Some(2));
    }

    #[test]
    fn without_need_only_much_dead_space_is_given_back() {
        assert_eq!(choose_idle(&candidates(&[90, 30, 80]), 100, true), None, "little is dead");
        assert_eq!(choose_idle(&candidates(&[90, 0, 80]), 100, false), Some(2), "costs nothing");
        let sparse = candidates(&[40, 30, 40, 40, 40, 40, 40, 40]);
        assert_eq!(choose_idle(&sparse, 100, false), None, "somebody writes");
        assert_eq!(choose_idle(&sparse, 100, true), Some(2));
    }
}
