//! The supply of segments to append to: an orphan that this process adopts, or a new one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::engine::format::segment_header;
use crate::engine::format::sizing;
use crate::engine::index::busy;
use crate::engine::index::{SegmentInfo, SegmentState};
use crate::engine::log::append::{RecordReservation, Tail};
use crate::engine::log::segment::{Segment, SegmentFile};
use crate::engine::log::{Copies, Log, is, lock};
use crate::engine::shared::accounting::Reservation;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;

impl Log {
    /// Ensures that there is a spare with room for a record of `len`. `make_room` reserves the
    /// given number of bytes within `max_bytes`, and returns `None` if there is no room now.
    /// `evict` frees space where the disk or the table is full. With `ahead`, no writer waits for
    /// the segment, so this waits for no other thread. Returns whether there is a spare.
    pub(crate) fn provide(
        &self,
        len: u32,
        ahead: bool,
        make_room: &dyn Fn(u64) -> Result<Option<Reservation>>,
        evict: &dyn Fn() -> Result<bool>,
    ) -> Result<bool> {
        // A rotation that needs the spare waits for it, so segments are used in the order of their
        // ids.
        let mut spare = match self.spare.try_enter() {
            Some(spare) => spare,
            None if ahead => return Ok(true),
            None => match self.spare.enter() {
                Some(spare) => spare,
                // Another thread may have provided it since.
                None if self.spare.try_enter().is_some_and(|spare| self.serves(&spare, len)) => {
                    return Ok(true);
                }
                None => return Err(busy("reserve").with_path(&self.dir)),
            },
        };
        self.needs_spare.store(false, Ordering::Relaxed);
        if self.serves(&spare, len) {
            return Ok(true);
        }
        if let Some(small) = spare.take() {
            // Other processes may need no more room than it has.
            self.orphan(&small);
        }
        *spare = match self.adopt(len)? {
            Some(orphan) => Some(orphan),
            None => {
                let reserved = make_room(self.len_for(len));
                let Some(reservation) = self.spare.share_timeout(reserved)? else {
                    return Ok(false);
                };
                let segment = self.spare.share_timeout(self.create(reservation, ahead, evict))?;
                Some(Tail::new(segment, segment_header::LEN as u32))
            }
        };
        Ok(true)
    }

    fn serves(&self, spare: &Option<Tail>, len: u32) -> bool {
        spare.as_ref().is_some_and(|spare| spare.has_room(len, &self.index))
    }

    /// Adopts an orphan with room for a record of `len`, if there is one. Seals orphans without
    /// room.
    fn adopt(&self, len: u32) -> Result<Option<Tail>> {
        for SegmentInfo { id, owner, .. } in self.index.orphans() {
            if !self.index.adopt_segment(id, owner) {
                continue;
            }
            // From here on no other process changes it.
            let end = self
                .index
                .segment(id)
                .map_or(0, |segment| segment.tail)
                .max(segment_header::LEN as u32);
            let path = self.dir.join(Segment::file_name(id));
            // Held so that a reader cannot insert another mapping of it: only the object through
            // which this process appends knows what must be synced.
            let _opening = lock(&self.opening);
            if let Some(read) = self.map.remove(id).filter(|read| read.is_pinned()) {
                // Values that the program holds keep the old mapping beside the new one.
                read.count_as_held();
            }
            let segment =
                match Segment::open(self.held.storage(), &path, id, self.access, &self.space) {
                    Ok(SegmentFile::Segment(segment)) => Arc::new(segment),
                    Ok(_) => {
                        self.index.seal_segment(id);
                        continue;
                    }
                    Err(e) if is(&e, io::ErrorKind::NotFound) => {
                        self.index.seal_segment(id);
                        continue;
                    }
                    Err(e) => {
                        self.index.orphan_segment(id);
                        return Err(e);
                    }
                };
            self.map.insert(&segment);
            // The records of its last owner may not be on the disk.
            segment.mark_dirty();
            let tail = Tail::new(segment.clone(), end);
            if self.can_resume(&segment, end) && tail.has_room(len, &self.index) {
                step!("log::adopted");
                self.index.set_segment_tail(id, end, end);
                return Ok(Some(tail));
            }
            self.seal(tail);
        }
        Ok(None)
    }

    /// Seals all orphans except the `kept` oldest.
    pub(crate) fn seal_orphans(&self, kept: usize) {
        for SegmentInfo { id, owner, .. } in self.index.orphans().into_iter().skip(kept) {
            if self.index.adopt_segment(id, owner) {
                self.index.seal_segment(id);
            }
        }
    }

    /// Aborts the segments that dead processes were creating. The next checkpoint removes their
    /// files, or a later one if the disk refuses.
    pub(crate) fn abort_segments_of_dead(&self) {
        for SegmentInfo { id, owner, .. } in self.index.segments_in(SegmentState::Creating) {
            // A segment without an owner is being created at this moment. If the owner has detached
            // since the table was read, the segment was activated before, and the abort fails.
            if !owner.is_none() && !self.index.is_alive(owner) {
                self.index.abort_segment(id);
            }
        }
    }

    /// The length of a new segment for a record of `len`: the usual length, or a part of it where
    /// many processes write, or as long as the record needs.
    fn len_for(&self, len: u32) -> u64 {
        let writers = self.index.attached_processes().max(1);
        let fair = (self.budget() / (4 * writers)).max(1);
        let usual = self.segment_len().min(1 << fair.ilog2()).max(sizing::MIN_SEGMENT);
        let needed = u64::from(len) + segment_header::LEN as u64;
        if needed > usual { needed.next_multiple_of(4096) } else { usual }
    }

    /// Adds to an error for lack of space that too many processes write, if active segments take
    /// more than half of the bytes or of the table.
    pub(crate) fn explain_no_space(&self, error: Error) -> Error {
        let active = self.index.segments_in(SegmentState::Active);
        let bytes: u64 = active.iter().map(|segment| segment.len).sum();
        let places = self.index.geometry().segments as usize;
        if bytes <= self.budget() / 2 && active.len() <= places / 2 {
            return error;
        }
        error.with_source("too many processes write to so small a directory; raise max_bytes")
    }

    /// Creates and activates a segment of the bytes in `reservation`. Where the disk or the table
    /// is full, `evict` frees some space; it returns `false` if there is nothing to evict.
    fn create(
        &self,
        reservation: Reservation,
        zeroed: bool,
        evict: &dyn Fn() -> Result<bool>,
    ) -> Result<Arc<Segment>> {
        let len = reservation.bytes();
        let no_space = || {
            self.explain_no_space(Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir))
        };
        self.held.check_in_place().map_err(|e| Error::io("create segment", &self.dir, e))?;
        // The most evictions for a full disk: somewhat more than the new segment needs. If that is
        // not enough, others fill the disk faster than evictions free it.
        let mut evictions = 2 * len.div_ceil(self.segment_len());
        let mut reservation = Some(reservation);
        loop {
            let is_claimed = reservation.is_some();
            // From here on the table counts the bytes.
            let Some(id) = self.space.transfer(&mut reservation, || self.index.create_segment(len))
            else {
                if self.index.are_ids_used_up() {
                    let why = "all segment ids are used; delete the directory to start empty";
                    return Err(Error::new(ErrorKind::NoSpace, "reserve")
                        .with_path(&self.dir)
                        .with_source(why));
                }
                // The table is full of small segments: many processes write, or max_bytes was
                // smaller.
                if evict()? {
                    continue;
                }
                return Err(no_space());
            };
            if !is_claimed && self.space.bytes() > self.budget() {
                self.index.free_segment(id);
                return Err(no_space());
            }
            step!("log::begun");
            match self.activate(id, len, zeroed) {
                Ok(segment) => return Ok(segment),
                Err(e) => {
                    self.index.free_segment(id);
                    match e {
                        // The disk is full before max_bytes is reached: evict here too.
                        e if e.kind() == ErrorKind::NoSpace && evictions > 0 && evict()? => {
                            evictions -= 1
                        }
                        // A foreign file has that name: it stays, and the next id is tried.
                        e if is(&e, io::ErrorKind::AlreadyExists) => {}
                        e => return Err(e),
                    }
                }
            }
        }
    }

    /// Creates the file of segment `id`, maps it, and activates the segment.
    pub(crate) fn activate(&self, id: u32, len: u64, zeroed: bool) -> Result<Arc<Segment>> {
        let storage = self.held.storage();
        let segment = Segment::create(storage, &self.dir, id, len, zeroed, &self.space)?;
        // Otherwise a power cut could lose the file, with all that was synced into it.
        if let Err(e) = storage.sync_dir(&self.dir) {
            let _ = storage.remove(&segment.path);
            return Err(Error::io("sync directory", &self.dir, e));
        }
        let segment = Arc::new(segment);
        let begin = segment_header::LEN as u32;
        self.index.set_segment_tail(id, begin, begin);
        let _opening = lock(&self.opening);
        self.map.insert(&segment);
        if !self.index.activate_segment(id) {
            // Another process took this one for dead, and aborted the segment.
            self.map.remove(id);
            let _ = storage.remove(&segment.path);
            return Err(Error::new(ErrorKind::LockLost, "create segment").with_path(&segment.path));
        }
        Ok(segment)
    }

    /// Reserves space for a copy of a record, in the segment for copies, which is created if there
    /// is none with room. The guard keeps other threads from copying.
    pub(crate) fn reserve_copy(
        &self,
        copies: &mut Copies<'_>,
        len: u32,
    ) -> Result<RecordReservation> {
        if !copies.0.as_ref().is_some_and(|tail| tail.has_room(len, &self.index)) {
            let reservation = self.space.reserve_within(self.len_for(len), self.budget())?;
            let reservation = reservation.ok_or_else(|| {
                Error::new(ErrorKind::NoSpace, "copy records in").with_path(&self.dir)
            })?;
            let next = self.create(reservation, false, &|| Ok(false))?;
            if let Some(full) = copies.0.replace(Tail::new(next, segment_header::LEN as u32)) {
                self.seal(full);
            }
        }
        match copies.0.as_mut() {
            Some(tail) if tail.has_room(len, &self.index) => tail.reserve(len, &self.index),
            _ => Err(Error::new(ErrorKind::ValueTooLarge, "copy")),
        }
    }
}
