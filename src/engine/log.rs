//! The log: the segments, the active one that is appended to, and the space they take.
//!
//! ```text
//! spare -> active -> sealed -> emptied -> removed
//! ```
//!
//! A segment is emptied when no entry word names it any more ([`space`](super::space)), and removed after a checkpoint
//! that began later: until then a recovery may need it. Records are appended to the active segment; copies of
//! records that are to stay, to another one, the copies' own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::index::{Index, SegmentState, Word};
use super::layout;
use super::record::{self, Draft};
use super::segment::{self, Segment};
use super::table::{SegmentGuard, Table};
use super::tail::{Reservation, Tail};
use super::usage::{Account, SpaceInUse};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::file::{self, HeldDirectory};
use crate::sys::step;

pub(crate) struct Log {
    dir: PathBuf,
    held: HeldDirectory,
    table: Table,
    space: SpaceInUse,
    budget: u64,
    segment_len: u64,
    active: Mutex<Option<Tail>>,
    /// Whether the active segment is so full that the next one should be made.
    wants_spare: AtomicBool,
    /// The next active segment, made ahead of time. Held while one is made; never waited for with `active` held.
    spare: Mutex<Option<Arc<Segment>>>,
    /// Where the copies go. Held by whoever copies.
    copies: Mutex<Option<Tail>>,
    /// Every segment that takes no records any more and is not emptied, oldest first.
    sealed: Mutex<BTreeMap<u32, Arc<Segment>>>,
    /// Segments that no entry names any more, until a checkpoint has come and gone.
    emptied: Mutex<BTreeMap<u32, Arc<Segment>>>,
    /// Bytes that were reserved, ever.
    appended: AtomicU64,
    /// Where the log ends, as segment and place, while there is no active segment: a later life may go on there.
    end: Mutex<(u32, u32)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// A log over `segments`, oldest first. It goes on at `end` of the newest if there is room, so that a directory
    /// that is opened again and again does not take a segment each time; all others are sealed.
    pub(crate) fn new(
        dir: &Path,
        index: &Index,
        budget: u64,
        space: SpaceInUse,
        segments: Vec<Segment>,
        end: Option<u32>,
    ) -> Result<Self> {
        let table = Table::new(index.geometry().segments);
        let held = HeldDirectory::open(dir).map_err(|e| Error::io("open", dir, e))?;
        let log = Self {
            dir: dir.to_owned(),
            held,
            table,
            space,
            budget,
            segment_len: layout::segment_len(budget),
            active: Mutex::new(None),
            wants_spare: AtomicBool::new(false),
            spare: Mutex::new(None),
            copies: Mutex::new(None),
            sealed: Mutex::new(BTreeMap::new()),
            emptied: Mutex::new(BTreeMap::new()),
            appended: AtomicU64::new(0),
            end: Mutex::new(segments.last().map_or((0, 0), |newest| (newest.id, end.unwrap_or(u32::MAX)))),
        };
        for segment in segments {
            let segment = Arc::new(segment);
            log.table.enter(&segment);
            index.set_segment(segment.id, SegmentState::Sealed);
            lock(&log.sealed).insert(segment.id, segment);
        }
        log.resume(index, end);
        Ok(log)
    }

    /// Goes on writing at `end` of the newest segment, if there is room and it is of the usual length.
    fn resume(&self, index: &Index, end: Option<u32>) {
        let mut sealed = lock(&self.sealed);
        let Some(newest) = sealed.last_entry() else { return };
        let room = segment::HEADER_LEN as u64..newest.get().len();
        let usable = |t: &u32| room.contains(&u64::from(*t)) && (*t as usize).is_multiple_of(record::ALIGN);
        let is_whole = |_: &u32| newest.get().len() <= self.segment_len && newest.get().fill_holes().is_ok();
        if let Some(end) = end.filter(usable).filter(is_whole) {
            let segment = newest.remove();
            index.set_segment(segment.id, SegmentState::Active);
            *lock(&self.active) = Some(Tail::new(segment, end));
        } else {
            newest.get().seal(index.recency());
        }
    }

    /// Fetches the record that `word` names ahead of its use.
    pub(crate) fn prefetch(&self, word: Word) {
        self.table.prefetch(word);
    }

    /// Holds segment `id`, if it is there.
    pub(crate) fn segment(&self, id: u32) -> SegmentGuard {
        self.table.hold(id)
    }

    /// Bytes of all segments, those included that are unlinked and still mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.space.bytes()
    }

    pub(crate) fn space(&self) -> &SpaceInUse {
        &self.space
    }

    /// The most that all segments may take.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    pub(crate) fn segment_len(&self) -> u64 {
        self.segment_len
    }

    /// Bytes that were reserved since the log was opened.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// The longest record there may be.
    pub(crate) fn max_record_len(&self) -> u64 {
        layout::max_record_len(self.budget)
    }

    /// The longest value that is stored in the log itself.
    pub(crate) fn largest_in_log(&self) -> u64 {
        layout::largest_in_log(self.segment_len)
    }

    /// The length of a record of this shape.
    pub(crate) fn len_of(&self, draft: &Draft) -> Result<u32> {
        let len = draft.len().filter(|len| u64::from(*len) <= self.max_record_len());
        len.ok_or_else(|| {
            let most = self.max_record_len();
            Error::new(ErrorKind::ValueTooLarge, "reserve")
                .with_source(format!("key and value take {} bytes of at most {most}", draft.body_len))
        })
    }

    /// Space for a record of `len` bytes. `None` if it needs a segment that is not there:
    /// [`provide`](Log::provide) one and ask again. The caller must not hold another reservation or a bucket lock.
    pub(crate) fn reserve(&self, len: u32, index: &Index) -> Result<Option<Reservation>> {
        let mut active = lock(&self.active);
        if !active.as_ref().is_some_and(|tail| tail.has_room(len)) && !self.rotate(&mut active, len, index) {
            return Ok(None);
        }
        let Some(tail) = active.as_mut() else { return Ok(None) };
        let reservation = tail.reserve(len, index)?;
        let half = tail.segment.len() / 2;
        if u64::from(tail.end) > half && u64::from(reservation.offset) <= half {
            self.wants_spare.store(true, Ordering::Relaxed);
        }
        self.appended.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok(Some(reservation))
    }

    /// Seals the active segment and begins the next one, if it is there and has room for a record of `len`.
    fn rotate(&self, active: &mut Option<Tail>, len: u32, index: &Index) -> bool {
        // Whoever makes the next one may need the active one before it is done.
        let Ok(mut spare) = self.spare.try_lock() else { return false };
        let Some(next) = spare.take_if(|spare| spare.len() >= needed_for(len)) else { return false };
        step!("log::rotating");
        if let Some(old) = active.take() {
            let mut wait = super::index::Backoff::default();
            while !old.segment.is_drained() {
                wait.pause();
            }
            self.seal(index, old.segment);
        }
        *active = Some(Tail::new(next, segment::HEADER_LEN as u32));
        true
    }

    /// Puts a segment among those that take no records any more.
    fn seal(&self, index: &Index, segment: Arc<Segment>) {
        let state = if segment.has_failed() { SegmentState::Failed } else { SegmentState::Sealed };
        index.set_segment(segment.id, state);
        segment.seal(index.recency());
        lock(&self.sealed).insert(segment.id, segment);
    }

    /// Whether the next active segment should be made.
    pub(crate) fn wants_spare(&self) -> bool {
        self.wants_spare.load(Ordering::Relaxed)
    }

    /// Makes the next active segment, with room for a record of `len`, unless it is there. `make_room` sees to it
    /// that so many bytes may be taken, and takes them. `ahead`: nobody waits for it.
    pub(crate) fn provide(
        &self,
        len: u32,
        ahead: bool,
        index: &Index,
        make_room: &dyn Fn(u64) -> Result<Account>,
        give_up: &dyn Fn() -> Result<bool>,
    ) -> Result<()> {
        let (needed, segment_len) = (needed_for(len), self.len_for(len));
        // A rotation that needs the spare waits for it, and segments come into use in the order of their ids.
        let mut spare = lock(&self.spare);
        self.wants_spare.store(false, Ordering::Relaxed);
        if spare.as_ref().is_some_and(|spare| spare.len() >= needed) {
            return Ok(());
        }
        if let Some(small) = spare.take() {
            self.discard(index, &small);
        }
        *spare = Some(self.create(make_room(segment_len)?, ahead, index, give_up)?);
        Ok(())
    }

    /// The length of a new segment that is to hold a record of `len`: the usual one, if there is room in it.
    fn len_for(&self, len: u32) -> u64 {
        let needed = needed_for(len);
        if needed > self.segment_len { needed.next_multiple_of(4096) } else { self.segment_len }
    }

    /// A new segment of the bytes in `account`, in the table and nowhere else. Where the disk or the table is full, `give_up`
    /// gives some space back, or says that there is none.
    fn create(
        &self,
        account: Account,
        zeroed: bool,
        index: &Index,
        give_up: &dyn Fn() -> Result<bool>,
    ) -> Result<Arc<Segment>> {
        let len = account.bytes();
        let mut account = Some(account);
        let no_space = || Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir);
        self.held.check_in_place().map_err(|e| Error::io("create segment", &self.dir, e))?;
        // What a disk that is full takes at most: some more than the new segment needs. If that is not enough, others
        // fill it faster than it can be emptied.
        let mut spares = 2 * len.div_ceil(self.segment_len);
        loop {
            let Some(id) = index.next_segment_id() else {
                // The table is full of small segments from a time when max_bytes was smaller.
                if give_up()? {
                    continue;
                }
                return Err(no_space());
            };
            let account = account.take().or_else(|| self.space.account_within(len, self.budget));
            match Segment::create(&self.dir, id, account.ok_or_else(no_space)?, zeroed) {
                Ok(segment) => {
                    // Or a power cut could take the file with all that was synced into it.
                    if let Err(e) = file::sync_dir(&self.dir) {
                        let _ = file::remove(&segment.path);
                        return Err(Error::io("sync directory", &self.dir, e));
                    }
                    let segment = Arc::new(segment);
                    // A place that is free should be all zeros; what is not would make a live segment seem dead.
                    index.set_segment(id, SegmentState::Free);
                    index.set_segment(id, SegmentState::Active);
                    self.table.enter(&segment);
                    return Ok(segment);
                }
                // The disk is full before max_bytes is: what is there makes room here too.
                Err(e) if e.kind() == ErrorKind::NoSpace && spares > 0 && give_up()? => spares -= 1,
                // A file of that name that is none of ours stays, and keeps its name.
                Err(e) if is_taken(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Space for a copy of a record, in the segment for copies, which is made if there is none with room. The guard
    /// keeps others from copying.
    pub(crate) fn reserve_copy(
        &self,
        copies: &mut Copies<'_>,
        len: u32,
        index: &Index,
    ) -> Result<Reservation> {
        if !copies.0.as_ref().is_some_and(|tail| tail.has_room(len)) {
            let segment_len = self.len_for(len);
            let account = self.space.account_within(segment_len, self.budget);
            let account = account
                .ok_or_else(|| Error::new(ErrorKind::NoSpace, "copy records in").with_path(&self.dir))?;
            let next = self.create(account, false, index, &|| Ok(false))?;
            if let Some(full) = copies.0.take() {
                self.seal(index, full.segment);
            }
            *copies.0 = Some(Tail::new(next, segment::HEADER_LEN as u32));
        }
        match copies.0.as_mut() {
            Some(tail) if tail.has_room(len) => tail.reserve(len, index),
            _ => Err(Error::new(ErrorKind::ValueTooLarge, "copy")),
        }
    }

    /// The right to copy records.
    pub(crate) fn copies(&self) -> Copies<'_> {
        Copies(lock(&self.copies))
    }

    /// Whether a segment of `id` takes no records any more and is not emptied yet.
    pub(crate) fn is_sealed(&self, id: u32) -> bool {
        lock(&self.sealed).contains_key(&id)
    }

    /// The segments that take no records any more and are not emptied, oldest first. A segment that is held keeps
    /// its space.
    pub(crate) fn sealed(&self) -> Vec<Arc<Segment>> {
        lock(&self.sealed).values().cloned().collect()
    }

    /// Says that no entry names `segment` any more. Its file goes with the next checkpoint that begins.
    pub(crate) fn set_emptied(&self, index: &Index, segment: &Arc<Segment>) {
        if self.is_sealed(segment.id) {
            index.set_segment(segment.id, SegmentState::Emptied);
            // In this order: whoever syncs all segments finds it in one place or the other.
            lock(&self.emptied).insert(segment.id, segment.clone());
            lock(&self.sealed).remove(&segment.id);
            step!("log::emptied");
        }
    }

    pub(crate) fn emptied_bytes(&self) -> u64 {
        lock(&self.emptied).values().map(|segment| segment.len()).sum()
    }

    /// The segments that are emptied now.
    pub(crate) fn emptied_ids(&self) -> Vec<u32> {
        lock(&self.emptied).keys().copied().collect()
    }

    /// Removes emptied segments. A checkpoint that began after they were emptied is on the disk. What cannot be removed
    /// stays, and counts.
    pub(crate) fn release(&self, index: &Index, ids: &[u32]) {
        for id in ids {
            let Some(segment) = lock(&self.emptied).get(id).cloned() else { continue };
            if let Err(error) = self.remove_file(&segment) {
                tracing::warn!(path = %segment.path.display(), %error, "cannot remove a segment");
                continue;
            }
            step!("log::removed");
            lock(&self.emptied).remove(id);
            self.forget(index, *id);
        }
    }

    /// Takes a segment that was never written to out of the table and off the disk.
    fn discard(&self, index: &Index, segment: &Arc<Segment>) {
        self.forget(index, segment.id);
        if let Err(e) = self.remove_file(segment) {
            tracing::warn!(path = %segment.path.display(), error = %e, "cannot remove a segment");
        }
    }

    fn forget(&self, index: &Index, id: u32) {
        self.table.forget(id);
        index.set_segment(id, SegmentState::Free);
    }

    /// By name: a file of that name in another directory, put in the place of this one, is none of ours.
    fn remove_file(&self, segment: &Segment) -> io::Result<()> {
        self.held.check_in_place()?;
        match file::remove(&segment.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Where the records that are stamped from now on will be: in a segment from a place on, or in segments of higher
    /// ids. What is before is finished.
    pub(crate) fn position(&self) -> (u32, u32) {
        let mut active = lock(&self.active);
        match active.as_mut() {
            Some(tail) => (tail.segment.id, tail.drained()),
            None => *lock(&self.end),
        }
    }

    /// The ids of all segments that have records, oldest first. Whoever goes through them holds one at a time:
    /// a segment that is held keeps its space.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let mut all = self.named();
        all.extend(lock(&self.emptied).keys());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The same without those that no entry names any more.
    pub(crate) fn named(&self) -> Vec<u32> {
        let mut all = Vec::new();
        // One lock after the other, in the order in which segments move on.
        all.extend(lock(&self.active).as_ref().map(|tail| tail.segment.id));
        all.extend(lock(&self.copies).as_ref().map(|tail| tail.segment.id));
        all.extend(lock(&self.sealed).keys());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Seals what is appended to and could not be synced.
    pub(crate) fn seal_failed(&self, index: &Index) {
        for tail in [&self.active, &self.copies] {
            let failed = lock(tail).take_if(|tail| tail.segment.has_failed());
            if let Some(Tail { segment, .. }) = failed {
                let mut wait = super::index::Backoff::default();
                while !segment.is_drained() {
                    wait.pause();
                }
                self.seal(index, segment);
            }
        }
    }

    /// Stops appending: the active segment is sealed, its tail noted, and the spare one removed.
    pub(crate) fn retire(&self, index: &Index) {
        if let Some(spare) = lock(&self.spare).take() {
            self.discard(index, &spare);
        }
        if let Some(old) = lock(&self.copies).take() {
            self.seal(index, old.segment);
        }
        if let Some(old) = lock(&self.active).take() {
            index.set_end_of_log(old.segment.id, old.end);
            *lock(&self.end) = (old.segment.id, old.end);
            self.seal(index, old.segment);
        }
    }

    /// Gives up all segments: after this nothing can be read or written. What programs hold stays and counts.
    pub(crate) fn let_go(&self) {
        *lock(&self.active) = None;
        *lock(&self.spare) = None;
        *lock(&self.copies) = None;
        lock(&self.sealed).clear();
        lock(&self.emptied).clear();
        self.table.clear();
    }
}

/// The right to copy records, one holder at a time.
pub(crate) struct Copies<'a>(MutexGuard<'a, Option<Tail>>);

/// The length of a segment that has room for a record of `len`.
fn needed_for(len: u32) -> u64 {
    u64::from(len) + segment::HEADER_LEN as u64
}

fn is_taken(error: &Error) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|s| s.downcast_ref::<std::io::Error>());
    cause.is_some_and(|e| e.kind() == std::io::ErrorKind::AlreadyExists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::index::Geometry;

    #[test]
    fn a_log_that_is_closed_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let index = Index::create(&file, Geometry::for_entries(10, 16), 1).unwrap();
        let space = SpaceInUse::default();
        let segment = Segment::create(dir.path(), 1, space.account(16 << 10), false).unwrap();
        let begin = segment::HEADER_LEN as u32;
        let log = Log::new(dir.path(), &index, 1 << 20, space, vec![segment], Some(begin)).unwrap();
        let reserved = log.reserve(64, &index).unwrap().unwrap();
        drop(reserved);
        log.retire(&index);
        // The next life appends there, and a recovery from a snapshot that was taken now must look there.
        assert_eq!(log.position(), (1, begin + 64));
        assert_eq!(index.end_of_log(1), Some(begin + 64));
    }
}
