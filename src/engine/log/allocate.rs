//! Where the next segment comes from: one that an owner left behind, or a new one.

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
    /// Makes the next active segment, with room for a record of `len`, unless it is there. `make_room` sees to it
    /// that so many bytes may be taken, and takes them, or says that there is no room now. `ahead`: nobody waits for it, and
    /// it waits for nobody. Says whether there is a next one.
    pub(crate) fn provide(
        &self,
        len: u32,
        ahead: bool,
        make_room: &dyn Fn(u64) -> Result<Option<Reservation>>,
        give_up: &dyn Fn() -> Result<bool>,
    ) -> Result<bool> {
        // A rotation that needs the spare waits for it, and segments come into use in the order of their ids.
        let mut spare = match self.spare.try_enter() {
            Some(spare) => spare,
            None if ahead => return Ok(true),
            None => match self.spare.enter() {
                Some(spare) => spare,
                // Another one may have made it since.
                None if self.spare.try_enter().is_some_and(|spare| self.serves(&spare, len)) => {
                    return Ok(true);
                }
                None => return Err(busy("reserve").with_path(&self.dir)),
            },
        };
        self.wants_spare.store(false, Ordering::Relaxed);
        if self.serves(&spare, len) {
            return Ok(true);
        }
        if let Some(small) = spare.take() {
            // Others may need no more room than it has.
            self.index.leave_segment(small.segment.id);
        }
        *spare = match self.adopt(len)? {
            Some(orphan) => Some(orphan),
            None => {
                let made = make_room(self.len_for(len));
                let Some(reservation) = self.spare.unless_given_up(made)? else { return Ok(false) };
                let segment =
                    self.spare.unless_given_up(self.create(reservation, ahead, give_up))?;
                Some(Tail::new(segment, segment_header::LEN as u32))
            }
        };
        Ok(true)
    }

    fn serves(&self, spare: &Option<Tail>, len: u32) -> bool {
        spare.as_ref().is_some_and(|spare| spare.has_room(len, &self.index))
    }

    /// Goes on with a segment whose owner is gone, if there is one with room for a record of `len`.
    fn adopt(&self, len: u32) -> Result<Option<Tail>> {
        for SegmentInfo { id, owner, .. } in self.index.orphans() {
            if !self.index.adopt_segment(id, owner) {
                continue;
            }
            // Nobody else changes it from here on.
            let end = self
                .index
                .segment(id)
                .map_or(0, |segment| segment.tail)
                .max(segment_header::LEN as u32);
            let path = self.dir.join(Segment::file_name(id));
            // Or a reader could enter another one over it, of which nobody knows that it is written to.
            let _opening = lock(&self.opening);
            if let Some(read) = self.table.forget(id).filter(|read| read.is_pinned()) {
                // What the program holds stays mapped beside the one that is written to.
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
                        self.index.leave_segment(id);
                        return Err(e);
                    }
                };
            self.table.enter(&segment);
            // What its last owner wrote may not be on the disk.
            segment.mark_dirty();
            let tail = Tail::new(segment.clone(), end);
            if self.may_go_on(&segment, end) && tail.has_room(len, &self.index) {
                step!("log::adopted");
                self.index.set_segment_tail(id, end, end);
                return Ok(Some(tail));
            }
            self.seal(tail);
        }
        Ok(None)
    }

    /// Seals the segments whose owners are gone, all but so many.
    pub(crate) fn seal_orphans(&self, but: usize) {
        for SegmentInfo { id, owner, .. } in self.index.orphans().into_iter().skip(but) {
            if self.index.adopt_segment(id, owner) {
                self.index.seal_segment(id);
            }
        }
    }

    /// Has what the dead were making removed with the next checkpoint, and with another if the disk refuses.
    pub(crate) fn give_up_unborn(&self) {
        for SegmentInfo { id, owner, .. } in self.index.segments_in(SegmentState::Unborn) {
            // One that has no owner yet was begun at this moment. One whose owner has left since it was found was made whole
            // before, and is not unborn any more.
            if owner != 0 && !self.index.is_alive(owner) {
                self.index.move_segment(id, SegmentState::Unborn, SegmentState::Emptied);
            }
        }
    }

    /// The length of a new segment that is to hold a record of `len`: the usual one, if there is room in it, and a part
    /// of that where many processes write.
    fn len_for(&self, len: u32) -> u64 {
        let writers = self.index.attached_processes().max(1);
        let fair = (self.budget() / (4 * writers)).max(1);
        let usual = self.segment_len().min(1 << fair.ilog2()).max(sizing::MIN_SEGMENT);
        let needed = u64::from(len) + segment_header::LEN as u64;
        if needed > usual { needed.next_multiple_of(4096) } else { usual }
    }

    /// Says, of an error of one who found no room, that others append to so much of it that there is none, if they do.
    pub(crate) fn blame_writers(&self, error: Error) -> Error {
        let active = self.index.segments_in(SegmentState::Active);
        let bytes: u64 = active.iter().map(|segment| segment.len).sum();
        let places = self.index.geometry().segments as usize;
        if bytes <= self.budget() / 2 && active.len() <= places / 2 {
            return error;
        }
        error.with_source("too many processes write to so small a directory; raise max_bytes")
    }

    /// A new segment of the bytes in `reservation`. Where the disk or the table is full, `give_up` gives some space back, or
    /// says that there is none.
    fn create(
        &self,
        reservation: Reservation,
        zeroed: bool,
        give_up: &dyn Fn() -> Result<bool>,
    ) -> Result<Arc<Segment>> {
        let len = reservation.bytes();
        let no_space =
            || self.blame_writers(Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir));
        self.held.check_in_place().map_err(|e| Error::io("create segment", &self.dir, e))?;
        // What a disk that is full takes at most: some more than the new segment needs. If that is not enough, others
        // fill it faster than it can be emptied.
        let mut spares = 2 * len.div_ceil(self.segment_len());
        let mut reservation = Some(reservation);
        loop {
            let is_claimed = reservation.is_some();
            // The table counts it from now on.
            let Some(id) = self.space.hand_over(&mut reservation, || self.index.begin_segment(len))
            else {
                if self.index.are_ids_used_up() {
                    let why = "it has had as many segments as can be; remove it to start with an empty cache";
                    return Err(Error::new(ErrorKind::NoSpace, "reserve")
                        .with_path(&self.dir)
                        .with_source(why));
                }
                // The table is full of small segments: many write, or max_bytes was smaller.
                if give_up()? {
                    continue;
                }
                return Err(no_space());
            };
            if !is_claimed && self.space.bytes() > self.budget() {
                self.index.free_segment(id);
                return Err(no_space());
            }
            step!("log::begun");
            match self.make(id, len, zeroed) {
                Ok(segment) => return Ok(segment),
                Err(e) => {
                    self.index.free_segment(id);
                    match e {
                        // The disk is full before max_bytes is: what is there makes room here too.
                        e if e.kind() == ErrorKind::NoSpace && spares > 0 && give_up()? => {
                            spares -= 1
                        }
                        // A file of that name that is none of ours stays, and keeps its name.
                        e if is(&e, io::ErrorKind::AlreadyExists) => {}
                        e => return Err(e),
                    }
                }
            }
        }
    }

    pub(crate) fn make(&self, id: u32, len: u64, zeroed: bool) -> Result<Arc<Segment>> {
        let storage = self.held.storage();
        let segment = Segment::create(storage, &self.dir, id, len, zeroed, &self.space)?;
        // Or a power cut could take the file with all that was synced into it.
        if let Err(e) = storage.sync_dir(&self.dir) {
            let _ = storage.remove(&segment.path);
            return Err(Error::io("sync directory", &self.dir, e));
        }
        let segment = Arc::new(segment);
        let begin = segment_header::LEN as u32;
        self.index.set_segment_tail(id, begin, begin);
        let _opening = lock(&self.opening);
        self.table.enter(&segment);
        if !self.index.move_segment(id, SegmentState::Unborn, SegmentState::Active) {
            // Somebody took this process for dead.
            self.table.forget(id);
            let _ = storage.remove(&segment.path);
            return Err(Error::new(ErrorKind::LockLost, "create segment").with_path(&segment.path));
        }
        Ok(segment)
    }

    /// Space for a copy of a record, in the segment for copies, which is made if there is none with room. The guard
    /// keeps others from copying.
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
