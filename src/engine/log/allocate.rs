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
    /// `evict` frees space where the disk or the table is full, and returns the bytes that came
    /// back. With `ahead`, no writer waits for the segment, so this waits for no other thread.
    /// Returns whether there is a spare.
    pub(crate) fn provide(
        &self,
        len: u32,
        ahead: bool,
        make_room: &dyn Fn(u64) -> Result<Option<Reservation>>,
        evict: &dyn Fn() -> Result<u64>,
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
                let segment =
                    self.spare.share_timeout(self.create(reservation, len, ahead, evict))?;
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

    /// Continues a segment of a dead process as the segment for copies, if there is one with room
    /// and the copies have none.
    pub(crate) fn adopt_for_copies(&self) -> Result<()> {
        let least = sizing::largest_in_log(self.segment_len()).min(self.segment_len() / 4) as u32;
        let mut copies = lock(&self.copies);
        if !copies.as_ref().is_some_and(|tail| tail.has_room(least, &self.index))
            && let Some(orphan) = self.adopt(least)?
            && let Some(full) = copies.replace(orphan)
        {
            self.seal(full);
        }
        Ok(())
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
    /// many processes write or the disk has little space, or as long as the record needs.
    fn len_for(&self, len: u32) -> u64 {
        let writers = self.index.attached_processes().max(1);
        // Each has up to three: the active one, the spare, and the one for copies.
        let fair = (self.budget() / (8 * writers)).max(1);
        // Where the file system does not say, it refuses if need be, and less is tried then.
        let free = self.held.free_space().map_or(u64::MAX, |free| free.bytes);
        let on_disk = sizing::segment_len(self.budget().min(self.bytes().saturating_add(free)));
        let usual = self.segment_len().min(1 << fair.ilog2()).min(on_disk);
        usual.max(least_for(len))
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

    /// Creates and activates a segment of the bytes in `reservation`, for a record of `len`. Where
    /// the disk refuses, shorter ones are tried. Where even the shortest is refused, or the table
    /// is full, `evict` frees some space; it returns 0 if there is nothing to evict.
    fn create(
        &self,
        reservation: Reservation,
        len: u32,
        zeroed: bool,
        evict: &dyn Fn() -> Result<u64>,
    ) -> Result<Arc<Segment>> {
        let most = reservation.bytes();
        let mut lengths = Lengths::new(most, least_for(len));
        let no_space = || {
            self.explain_no_space(Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir))
        };
        self.held.check_in_place().map_err(|e| Error::io("create segment", &self.dir, e))?;
        // The bytes that were evicted for a full disk: at most somewhat more than the new segment
        // needs. If that is not enough, others fill the disk faster than evictions free it.
        let mut evicted = 0;
        // How often a full table is met: its rows are freed when all processes have unmapped them.
        let mut rows = self.index.geometry().segments;
        let mut reservation = Some(reservation);
        loop {
            let (is_claimed, len) = (reservation.is_some(), lengths.len);
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
                if rows > 0 && evict()? > 0 {
                    rows -= 1;
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
                    // A foreign file has that name: it stays, and the next id is tried.
                    if is(&e, io::ErrorKind::AlreadyExists) {
                        continue;
                    }
                    if e.kind() != ErrorKind::NoSpace {
                        return Err(e);
                    }
                    // The disk is full before max_bytes is reached: evict here too. But not for
                    // the shortest segments, unless nothing can be evicted: each eviction costs a
                    // checkpoint.
                    let is_short = lengths.is_second && len <= (most / 4).max(lengths.least);
                    if is_short && evicted < 2 * len {
                        let freed = evict()?;
                        evicted += freed;
                        if freed > 0 {
                            lengths = Lengths::new(most.min(1 << freed.ilog2()), lengths.least);
                            continue;
                        }
                    }
                    if !lengths.shorten() {
                        return Err(e);
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
            // If this fails too, the next recovery finds a segment without records.
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
            // If this fails, the next recovery finds a segment without records.
            let _ = storage.remove(&segment.path);
            return Err(Error::new(ErrorKind::LockLost, "create segment").with_path(&segment.path));
        }
        Ok(segment)
    }

    /// Reserves bytes for a segment for copies: of the usual length, or what is left.
    fn reserve_for_copies(&self, len: u32) -> Result<Option<Reservation>> {
        let (usual, budget) = (self.len_for(len), self.budget());
        if let Some(reservation) = self.space.reserve_within(usual, budget)? {
            return Ok(Some(reservation));
        }
        let left = budget.saturating_sub(self.bytes()) & !4095;
        let needed = u64::from(len) + segment_header::LEN as u64;
        if left < needed { Ok(None) } else { self.space.reserve_within(left.min(usual), budget) }
    }

    /// Reserves space for a copy of a record, in the segment for copies, which is created if there
    /// is none with room. The guard keeps other threads from copying.
    pub(crate) fn reserve_copy(
        &self,
        copies: &mut Copies<'_>,
        len: u32,
    ) -> Result<RecordReservation> {
        if !copies.0.as_ref().is_some_and(|tail| tail.has_room(len, &self.index)) {
            let reservation = self.reserve_for_copies(len)?;
            let reservation = reservation.ok_or_else(|| {
                Error::new(ErrorKind::NoSpace, "copy records in").with_path(&self.dir)
            })?;
            let next = self.create(reservation, len, false, &|| Ok(0))?;
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

/// The length of the shortest segment for a record of `len`.
fn least_for(len: u32) -> u64 {
    let needed = u64::from(len) + segment_header::LEN as u64;
    needed.next_multiple_of(4096).max(sizing::MIN_SEGMENT)
}

/// The lengths of a segment that are tried one after the other on a disk that refuses: the first
/// one twice, because the reason may be gone, then a quarter each time.
struct Lengths {
    len: u64,
    least: u64,
    is_second: bool,
}

impl Lengths {
    fn new(len: u64, least: u64) -> Self {
        Self { len: len.max(least), least, is_second: false }
    }

    /// Takes the next length. `false` if there is none.
    fn shorten(&mut self) -> bool {
        let shorter = if self.is_second { (self.len / 4).max(self.least) } else { self.len };
        let is_other = !self.is_second || shorter < self.len;
        (self.len, self.is_second) = (shorter, true);
        is_other
    }
}
