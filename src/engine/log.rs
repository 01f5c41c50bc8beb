//! The log: the segments, the active one that is appended to, and the space they take.
//!
//! Segments are rotated one after the other, and a new one takes its first record only when nothing is in
//! flight in the one before. So every sequence in a segment is lower than every sequence in a later one, and
//! dropping the oldest segment never brings an old value back: whatever it superseded is older still, and gone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

use super::index::{Index, MAX_OFFSET, SegmentState};
use super::layout;
use super::record::{self, Draft};
use super::segment::{self, Account, Segment, SpaceInUse};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::file::{self, HeldDirectory};
use crate::sys::step;

/// The active segment is filled with zeros this far ahead of its tail, in the writing call: stores into pages
/// that a `pwrite` made are several times cheaper than those that fault on an unwritten extent.
const ZERO_AHEAD: u32 = 64 << 10;

/// A hold on a segment for the length of a call.
pub(crate) struct SegmentGuard {
    held: Guard<Option<Arc<Segment>>>,
    id: u32,
}

impl SegmentGuard {
    /// The segment that was asked for, if it is there: its place may be another one's by now.
    pub(crate) fn get(&self) -> Option<&Arc<Segment>> {
        self.held.as_ref().filter(|segment| segment.id == self.id)
    }
}

pub(crate) struct Log {
    dir: PathBuf,
    held: HeldDirectory,
    table: Box<[ArcSwapOption<Segment>]>,
    space: SpaceInUse,
    budget: u64,
    segment_len: u64,
    active: Mutex<Option<Active>>,
    /// Whether the active segment is so full that the next one should be made.
    wants_spare: AtomicBool,
    /// The next active segment, made ahead of time.
    spare: Mutex<Option<Arc<Segment>>>,
    /// Every segment that is in the table but the active and the spare one, oldest first.
    sealed: Mutex<BTreeMap<u32, Arc<Segment>>>,
    /// Held while a segment goes, so that they go one after the other, oldest first: if a younger one were off the
    /// disk before an older one, a kill in between would bring back what it superseded.
    dropping: Mutex<()>,
}

struct Active {
    segment: Arc<Segment>,
    tail: u32,
    zeroed: u32,
}

/// Space in the active segment for one record.
pub(crate) struct Reservation {
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.segment.finish();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What makes room in the log: told to give up a segment, it removes every entry in it from the index.
pub(crate) trait Evacuate {
    fn evacuate(&self, segment: &Segment);

    /// Gives up a blob, if all of them take more than `beyond` bytes. `false` if none went.
    fn give_up_blob(&self, beyond: u64) -> bool {
        let _ = beyond;
        false
    }
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
        let table = (0..index.geometry().segments).map(|_| ArcSwapOption::empty()).collect();
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
            sealed: Mutex::new(BTreeMap::new()),
            dropping: Mutex::new(()),
        };
        for segment in segments {
            let segment = Arc::new(segment);
            log.slot(segment.id).store(Some(segment.clone()));
            lock(&log.sealed).insert(segment.id, segment);
        }
        log.resume(index, end);
        Ok(log)
    }

    /// Goes on writing at `tail` of the newest segment, if there is room and it is of the usual length.
    fn resume(&self, index: &Index, tail: Option<u32>) {
        let mut sealed = lock(&self.sealed);
        let Some(newest) = sealed.last_entry() else { return };
        let room = segment::HEADER_LEN as u64..newest.get().len();
        let usable = |t: &u32| room.contains(&u64::from(*t)) && (*t as usize).is_multiple_of(record::ALIGN);
        let is_whole = |_: &u32| newest.get().len() <= self.segment_len && newest.get().fill_holes().is_ok();
        if let Some(tail) = tail.filter(usable).filter(is_whole) {
            let segment = newest.remove();
            index.set_segment(segment.id, SegmentState::Active);
            *lock(&self.active) = Some(Active { segment, tail, zeroed: tail });
        } else {
            newest.get().seal();
        }
    }

    fn slot(&self, id: u32) -> &ArcSwapOption<Segment> {
        // The length is a power of two.
        &self.table[id as usize & (self.table.len() - 1)]
    }

    /// Holds segment `id`, if it is there.
    pub(crate) fn segment(&self, id: u32) -> SegmentGuard {
        SegmentGuard { held: self.slot(id).load(), id }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.space.bytes()
    }

    /// The bytes that there are for segments and blobs.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether segments and blobs take more than there is for them.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.space.bytes() > self.budget
    }

    /// The longest value that is stored in the log itself.
    pub(crate) fn largest_in_log(&self) -> u64 {
        layout::largest_in_log(self.segment_len)
    }

    /// The longest record there may be.
    pub(crate) fn max_record_len(&self) -> u64 {
        layout::max_record_len(self.budget)
    }

    /// Space for a record of this shape. The caller must not hold another reservation or a bucket lock.
    pub(crate) fn reserve(
        &self,
        draft: &Draft,
        index: &Index,
        evacuate: &dyn Evacuate,
    ) -> Result<Reservation> {
        let len = draft.len().filter(|len| u64::from(*len) <= self.max_record_len());
        let len = len.ok_or_else(|| {
            let most = self.max_record_len();
            Error::new(ErrorKind::ValueTooLarge, "reserve")
                .with_source(format!("key and value take {} bytes of at most {most}", draft.body_len))
        })?;
        let mut active = lock(&self.active);
        let fits = |a: &Active| {
            // Behind a large record a segment may go on beyond what an entry word reaches.
            let reachable = u64::from(a.tail) < MAX_OFFSET;
            reachable && u64::from(a.tail) + u64::from(len) <= a.segment.len() && !a.segment.has_failed()
        };
        if !active.as_ref().is_some_and(fits) {
            self.rotate(&mut active, len, index, evacuate)?;
        }
        let Some(active) = active.as_mut() else {
            return Err(Error::new(ErrorKind::Interrupted, "reserve"));
        };
        let end = active.tail + len;
        if end > active.zeroed {
            let ahead = end.saturating_add(ZERO_AHEAD).min(active.segment.len() as u32);
            active.segment.zero(active.zeroed, ahead)?;
            active.zeroed = ahead;
        }
        let offset = active.tail;
        active.segment.begin(offset, len);
        if u64::from(end) > active.segment.len() / 2 && u64::from(offset) <= active.segment.len() / 2 {
            self.wants_spare.store(true, Ordering::Relaxed);
        }
        active.tail = end;
        index.set_segment_tail(active.segment.id, end);
        Ok(Reservation { segment: active.segment.clone(), offset, len })
    }

    /// Seals the active segment and begins the next one, which has room for a record of `len`.
    fn rotate(
        &self,
        active: &mut Option<Active>,
        len: u32,
        index: &Index,
        evacuate: &dyn Evacuate,
    ) -> Result<()> {
        let needed = u64::from(len) + segment::HEADER_LEN as u64;
        let mut spare = lock(&self.spare);
        let next = match spare.take() {
            Some(spare) if spare.len() >= needed => spare,
            Some(spare) => {
                self.discard(index, &spare);
                self.create(needed, index, evacuate)?
            }
            None => self.create(needed, index, evacuate)?,
        };
        drop(spare);
        step!("log::rotating");
        if let Some(old) = active.take() {
            let mut wait = super::index::Backoff::default();
            while !old.segment.is_drained() {
                wait.pause();
            }
            let state = if old.segment.has_failed() { SegmentState::Failed } else { SegmentState::Sealed };
            index.set_segment(old.segment.id, state);
            old.segment.seal();
            lock(&self.sealed).insert(old.segment.id, old.segment);
        }
        let start = segment::HEADER_LEN as u32;
        *active = Some(Active { segment: next, tail: start, zeroed: start });
        Ok(())
    }

    /// A new segment with room for `needed` bytes, in the table and nowhere else. Gives up the oldest
    /// segments until there is space for it.
    fn create(&self, needed: u64, index: &Index, evacuate: &dyn Evacuate) -> Result<Arc<Segment>> {
        self.held.check_in_place().map_err(|e| Error::io("create segment", &self.dir, e))?;
        let len = if needed > self.segment_len { needed.next_multiple_of(4096) } else { self.segment_len };
        // What a disk that is full takes at most: some more than the new segment needs. If that is not enough, others
        // fill it faster than it can be emptied.
        let mut spares = 2 * len.div_ceil(self.segment_len);
        loop {
            let Some(id) = index.next_segment_id() else {
                // The table is full of small segments from a time when max_bytes was smaller.
                if self.drop_oldest(index, evacuate)? {
                    continue;
                }
                return Err(Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir));
            };
            let account = self.make_space(len, index, evacuate)?;
            match Segment::create(&self.dir, id, account) {
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
                    self.slot(id).store(Some(segment.clone()));
                    return Ok(segment);
                }
                // The disk is full before max_bytes is: what is oldest makes room here too.
                Err(e)
                    if e.kind() == ErrorKind::NoSpace
                        && spares > 0
                        && self.drop_oldest(index, evacuate)? =>
                {
                    spares -= 1;
                }
                // A file of that name that is none of ours stays, and keeps its name.
                Err(e) if is_taken(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Space for `len` bytes on disk. Blobs beyond their share of the space make room for it, then the oldest
    /// segments, then any blob.
    pub(crate) fn make_space(&self, len: u64, index: &Index, evacuate: &dyn Evacuate) -> Result<Account> {
        let mut wait = super::index::Backoff::default();
        loop {
            if let Some(account) = self.space.account_within(len, self.budget) {
                return Ok(account);
            }
            if evacuate.give_up_blob(layout::blob_share(self.budget))
                || self.drop_oldest(index, evacuate)?
                || evacuate.give_up_blob(0)
            {
                continue;
            }
            // What is gone may still be held for a moment, by a read or until a sync is done.
            if !self.space.is_syncing() && wait.is_long() {
                return Err(Error::new(ErrorKind::NoSpace, "reserve").with_path(&self.dir).with_source(
                    "max_bytes is taken by values that the program still holds or writes, or by files that are not \
                     ours",
                ));
            }
            wait.pause();
        }
    }

    /// Gives up the oldest sealed segment with all that is in it. `false` if there is none.
    pub(crate) fn drop_oldest(&self, index: &Index, evacuate: &dyn Evacuate) -> Result<bool> {
        self.drop_oldest_if(index, evacuate, |_| true)
    }

    /// The same, if it `is_due`.
    fn drop_oldest_if(
        &self,
        index: &Index,
        evacuate: &dyn Evacuate,
        is_due: impl Fn(&Segment) -> bool,
    ) -> Result<bool> {
        let _dropping = lock(&self.dropping);
        let oldest = lock(&self.sealed).first_key_value().map(|(id, segment)| (*id, segment.clone()));
        let Some((id, segment)) = oldest.filter(|(_, segment)| is_due(segment)) else { return Ok(false) };
        lock(&self.sealed).remove(&id);
        evacuate.evacuate(&segment);
        index.set_segment(id, SegmentState::Emptied);
        step!("log::emptied");
        if let Err(e) = self.remove_file(&segment) {
            // It must go before any younger one, or a recovery finds old values without what superseded them.
            let error = Error::io("remove", &segment.path, e);
            lock(&self.sealed).insert(id, segment);
            return Err(error);
        }
        self.forget(index, id);
        drop(segment);
        step!("log::removed");
        // So that no crash can undo this one's removal and keep that of a later one.
        file::sync_dir(&self.dir).map_err(|e| Error::io("sync directory", &self.dir, e))?;
        Ok(true)
    }

    /// Takes a segment that was never written to out of the table and off the disk.
    fn discard(&self, index: &Index, segment: &Arc<Segment>) {
        self.forget(index, segment.id);
        if let Err(e) = self.remove_file(segment) {
            tracing::warn!(path = %segment.path.display(), error = %e, "cannot remove a segment");
        }
    }

    fn forget(&self, index: &Index, id: u32) {
        self.slot(id).store(None);
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

    /// Whether [`prepare_spare`](Log::prepare_spare) has something to do.
    pub(crate) fn wants_spare(&self) -> bool {
        self.wants_spare.load(Ordering::Relaxed)
    }

    /// Makes the next active segment ahead of time, if the one in use is half full.
    pub(crate) fn prepare_spare(&self, index: &Index, evacuate: &dyn Evacuate) -> Result<()> {
        if !self.wants_spare.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        // The lock is held meanwhile: a rotation that needs the spare waits for it, and segments come into use
        // in the order of their ids.
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            *spare = Some(self.create(self.segment_len, index, evacuate)?);
        }
        Ok(())
    }

    /// Gives up the oldest segments until the log fits its budget, and those that are dead for as long as they
    /// are the oldest.
    pub(crate) fn trim(
        &self,
        index: &Index,
        evacuate: &dyn Evacuate,
        is_dead: impl Fn(&Segment) -> bool,
    ) -> Result<()> {
        let is_due = |oldest: &Segment| self.space.bytes() > self.budget || is_dead(oldest);
        while self.drop_oldest_if(index, evacuate, is_due)? {}
        Ok(())
    }

    /// The ids of all segments but the spare one, oldest first. Whoever goes through them holds one at a time:
    /// a segment that is held keeps its space.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let active = lock(&self.active);
        let mut all: Vec<_> = lock(&self.sealed).keys().copied().collect();
        all.extend(active.as_ref().map(|a| a.segment.id));
        all
    }

    /// Stops appending: the active segment is sealed, its tail noted, and the spare one removed.
    pub(crate) fn retire(&self, index: &Index) {
        if let Some(spare) = lock(&self.spare).take() {
            self.discard(index, &spare);
        }
        if let Some(old) = lock(&self.active).take() {
            index.set_segment(old.segment.id, SegmentState::Sealed);
            index.set_end_of_log(old.segment.id, old.tail);
            old.segment.seal();
            lock(&self.sealed).insert(old.segment.id, old.segment);
        }
    }
}

impl Log {
    /// Gives up all segments: after this nothing can be read or written. What programs hold stays and counts.
    pub(crate) fn let_go(&self) {
        *lock(&self.active) = None;
        *lock(&self.spare) = None;
        lock(&self.sealed).clear();
        self.table.iter().for_each(|slot| slot.store(None));
    }
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

    /// Says that it was called, and waits until it may go on.
    struct Slow {
        called: std::sync::mpsc::SyncSender<()>,
        go_on: Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl Evacuate for Slow {
        fn evacuate(&self, _: &Segment) {
            self.called.send(()).unwrap();
            let _ = lock(&self.go_on).recv_timeout(std::time::Duration::from_millis(200));
        }
    }

    struct Nothing;

    impl Evacuate for Nothing {
        fn evacuate(&self, _: &Segment) {}
    }

    #[test]
    fn a_younger_segment_never_goes_before_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let index = Index::create(&file, Geometry::for_entries(10, 16), 1).unwrap();
        let space = SpaceInUse::default();
        let segments: Vec<_> =
            (1..=2).map(|id| Segment::create(dir.path(), id, space.account(16 << 10)).unwrap()).collect();
        let paths: Vec<_> = segments.iter().map(|s| s.path.clone()).collect();
        let log = Log::new(dir.path(), &index, 1 << 20, space, segments, None).unwrap();
        let (called, was_called) = std::sync::mpsc::sync_channel(1);
        let (_go_on, waits) = std::sync::mpsc::sync_channel(1);
        let slow = Slow { called, go_on: Mutex::new(waits) };
        std::thread::scope(|scope| {
            scope.spawn(|| log.drop_oldest(&index, &slow).unwrap());
            was_called.recv().unwrap();
            assert!(log.drop_oldest(&index, &Nothing).unwrap());
            assert!(!paths[1].exists() && !paths[0].exists(), "the older one is still there");
        });
    }
}
