//! The log: the segments that this process appends to, and those that it has mapped.
//!
//! ```text
//! unborn -> active -> sealed -> emptied -> dropped -> (free)
//! ```
//!
//! Which segments there are, and in what state, is in the table of the index, for all processes alike
//! ([`index::segments`](crate::engine::index)). Each process appends to segments of its own: to the active one, and copies of
//! records that are to stay to another. A segment of another process is opened when a word first leads there.
//!
//! A segment is emptied when no entry word names it any more ([`space`](crate::engine::ops::reclaim)), and its file is removed after a
//! checkpoint that began later: until then a recovery may need it. Then it is dropped, until all processes have let go
//! of it. A segment that is active and whose owner is gone is an orphan: whoever needs a segment goes on with it.

mod allocate;
pub(crate) mod append;
mod removal;
pub(crate) mod segment;
pub(crate) mod segment_map;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use self::segment::{Segment, SegmentFile};
use crate::engine::format::record::Draft;
use crate::engine::format::segment_header;
use crate::engine::format::sizing;
use crate::engine::format::word::ALIGN;
use crate::engine::format::word::Word;
use crate::engine::index::{Index, SegmentInfo, SegmentState};
use crate::engine::log::append::{RecordReservation, Tail};
use crate::engine::log::segment_map::{SegmentGuard, SegmentMap};
use crate::engine::shared::accounting::SpaceInUse;
use crate::engine::shared::wait_queue::Queue;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;
use crate::sys::storage::{Access, HeldDirectory, Storage};
use crate::sys::wait::Backoff;

pub(crate) struct Log {
    dir: PathBuf,
    held: HeldDirectory,
    access: Access,
    index: Arc<Index>,
    table: SegmentMap,
    space: SpaceInUse,
    /// What of `max_bytes` is not for segments.
    fixed_bytes: u64,
    active: Mutex<Option<Tail>>,
    /// Whether the active segment is so full that the next one should be made.
    wants_spare: AtomicBool,
    /// The next active segment, made ahead of time. Held while one is made; never waited for with `active` held.
    spare: Queue<Option<Tail>>,
    /// Where the copies go. Held by whoever copies.
    copies: Mutex<Option<Tail>>,
    /// What this process sealed and did not sync since.
    unsynced: Mutex<Vec<Arc<Segment>>>,
    /// Held while a segment of another process is opened.
    opening: Mutex<()>,
    /// Held while segments go that were removed, until what is kept of them counts.
    letting_go: Mutex<()>,
    /// Bytes that were reserved here.
    appended: AtomicU64,
    /// What the count of drops was when this process last let go of what was dropped.
    drops_seen: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// With `access` to read, nothing may be asked of it but what is there.
    pub(crate) fn new(
        storage: &'static dyn Storage,
        dir: &Path,
        access: Access,
        index: Arc<Index>,
        space: SpaceInUse,
    ) -> Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            access,
            held: HeldDirectory::open(storage, dir).map_err(|e| Error::io("open", dir, e))?,
            table: SegmentMap::new(index.geometry().segments),
            fixed_bytes: sizing::fixed_bytes(index.geometry()),
            index,
            space,
            active: Mutex::new(None),
            wants_spare: AtomicBool::new(false),
            spare: Queue::default(),
            copies: Mutex::new(None),
            unsynced: Mutex::new(Vec::new()),
            opening: Mutex::new(()),
            letting_go: Mutex::new(()),
            appended: AtomicU64::new(0),
            drops_seen: AtomicU64::new(0),
        })
    }

    /// Enters the segments that are there, when nobody else is attached. The log goes on at `end`, a segment and a place in
    /// it, if there is room, so that a directory that is opened again and again does not take a segment each time.
    pub(crate) fn enter(&self, segments: Vec<Segment>, end: Option<(u32, u32)>) {
        for segment in segments {
            self.index.enter_segment(segment.id, segment.len());
            let segment = Arc::new(segment);
            self.table.enter(&segment);
            match end.filter(|(id, end)| *id == segment.id && self.may_go_on(&segment, *end)) {
                Some((_, end)) => *lock(&self.active) = Some(self.go_on(segment, end)),
                None => segment.seal(),
            }
        }
    }

    /// Whether the log can go on at `end` of a segment.
    fn may_go_on(&self, segment: &Segment, end: u32) -> bool {
        let room = segment_header::LEN as u64..segment.len();
        room.contains(&u64::from(end))
            && (end as usize).is_multiple_of(ALIGN)
            && segment.len() <= self.segment_len()
            && segment.fill_holes().is_ok()
    }

    /// Takes a sealed segment into use again, when nobody else is attached.
    fn go_on(&self, segment: Arc<Segment>, end: u32) -> Tail {
        self.index.set_segment_tail(segment.id, end, end);
        self.index.move_segment(segment.id, SegmentState::Sealed, SegmentState::Active);
        self.index.adopt_segment(segment.id, 0);
        Tail::new(segment, end)
    }

    /// Fetches the record that `word` names ahead of its use.
    pub(crate) fn prefetch(&self, word: Word) {
        self.table.prefetch(word);
    }

    /// Holds segment `id`, if this process has it open.
    pub(crate) fn segment(&self, id: u32) -> SegmentGuard {
        self.table.hold(id)
    }

    /// Holds segment `id`, which is opened if it is another process's and there. Nothing where there is none.
    ///
    /// # Errors
    /// If the environment refuses to have it opened.
    #[inline]
    pub(crate) fn fetch(&self, id: u32) -> Result<SegmentGuard> {
        let here = self.table.hold(id);
        if here.get().is_some() { Ok(here) } else { self.open(id) }
    }

    /// Whether segment `id` has a file with records in it that may be opened.
    pub(crate) fn is_there(&self, id: u32) -> bool {
        use SegmentState::{Active, Emptied, Sealed};
        matches!(self.index.segment_state(id), Some(Active | Sealed | Emptied))
    }

    #[cold]
    fn open(&self, id: u32) -> Result<SegmentGuard> {
        if !self.is_there(id) {
            return Ok(self.table.hold(id));
        }
        let _opening = lock(&self.opening);
        let here = self.table.hold(id);
        if here.get().is_some() {
            return Ok(here);
        }
        drop(here);
        let path = self.dir.join(Segment::file_name(id));
        match Segment::open(self.held.storage(), &path, id, self.access, &self.space) {
            Ok(SegmentFile::Segment(segment)) => {
                // It is kept mapped and not open, as there are more segments than a process may have open files.
                segment.seal();
                let letting_go = lock(&self.letting_go);
                self.table.enter(&Arc::new(segment));
                // Its removal may have gone unnoticed if it came since. The fence goes with the one of `let_go_of_dropped`:
                // either this thread sees that it was dropped, or the other one that it is in the table.
                fence(Ordering::SeqCst);
                if !self.is_there(id) {
                    self.forget(id, &letting_go);
                }
            }
            Ok(SegmentFile::Unborn | SegmentFile::Foreign) => {}
            Err(e) if is(&e, io::ErrorKind::NotFound) => {}
            Err(e) => return Err(e),
        }
        Ok(self.table.hold(id))
    }

    /// Bytes of all segments and blobs, those included that are unlinked and still mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.space.bytes()
    }

    pub(crate) fn space(&self) -> &SpaceInUse {
        &self.space
    }

    /// The most that all segments may take.
    pub(crate) fn budget(&self) -> u64 {
        self.index.max_bytes().saturating_sub(self.fixed_bytes)
    }

    pub(crate) fn segment_len(&self) -> u64 {
        sizing::segment_len(self.budget())
    }

    /// Bytes that were reserved here since the log was opened.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// The longest record there may be.
    pub(crate) fn max_record_len(&self) -> u64 {
        sizing::max_record_len(self.budget())
    }

    /// The longest value that is stored in the log itself.
    pub(crate) fn largest_in_log(&self) -> u64 {
        sizing::largest_in_log(self.segment_len())
    }

    /// The length of a record of this shape.
    pub(crate) fn len_of(&self, draft: &Draft) -> Result<u32> {
        let len = draft.len().filter(|len| u64::from(*len) <= self.max_record_len());
        len.ok_or_else(|| {
            let most = self.max_record_len();
            Error::new(ErrorKind::ValueTooLarge, "reserve").with_source(format!(
                "key and value take {} bytes of at most {most}",
                draft.body_len
            ))
        })
    }

    /// Space for a record of `len` bytes. `None` if it needs a segment that is not there:
    /// [`provide`](Log::provide) one and ask again. The caller must not hold another reservation or a bucket lock.
    pub(crate) fn reserve(&self, len: u32) -> Result<Option<RecordReservation>> {
        self.keep_up();
        let mut active = lock(&self.active);
        if !active.as_ref().is_some_and(|tail| tail.has_room(len, &self.index))
            && !self.rotate(&mut active, len)
        {
            return Ok(None);
        }
        let Some(tail) = active.as_mut() else { return Ok(None) };
        let reservation = tail.reserve(len, &self.index)?;
        let half = tail.segment.len() / 2;
        if u64::from(tail.end) > half && u64::from(reservation.offset) <= half {
            self.wants_spare.store(true, Ordering::Relaxed);
        }
        self.appended.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok(Some(reservation))
    }

    /// Seals the active segment and begins the next one, if it is there and has room for a record of `len`.
    fn rotate(&self, active: &mut Option<Tail>, len: u32) -> bool {
        // Whoever makes the next one may need the active one before it is done.
        let Some(mut spare) = self.spare.try_enter() else { return false };
        let Some(next) = spare.take_if(|spare| spare.has_room(len, &self.index)) else {
            return false;
        };
        step!("log::rotating");
        if let Some(old) = active.replace(next) {
            drain(&old.segment);
            self.seal(old);
        }
        true
    }

    /// Takes no more records in a segment. All that were begun are stamped, or never will be.
    fn seal(&self, Tail { segment, .. }: Tail) {
        // In this order: whoever syncs what is sealed finds it in one place or the other.
        lock(&self.unsynced).push(segment.clone());
        self.index.seal_segment(segment.id);
        segment.seal();
    }

    /// Whether the next active segment should be made.
    pub(crate) fn wants_spare(&self) -> bool {
        self.wants_spare.load(Ordering::Relaxed)
    }

    /// The right to copy records.
    pub(crate) fn copies(&self) -> Copies<'_> {
        Copies(lock(&self.copies))
    }

    /// Seals what is appended to and could not be synced.
    pub(crate) fn seal_failed(&self) {
        for tail in [&self.active, &self.copies] {
            let failed = lock(tail).take_if(|tail| !self.index.may_append(tail.segment.id));
            if let Some(tail) = failed {
                drain(&tail.segment);
                self.seal(tail);
            }
        }
    }

    /// Whether a segment is longer than `max_bytes`, which was lowered, has room for. While it is appended to, nobody can
    /// give it up.
    pub(crate) fn is_oversized(&self, segment: &SegmentInfo) -> bool {
        segment.state == SegmentState::Active && segment.len > self.segment_len()
    }

    /// Takes no more records in segments that are longer than they should be, where all together are beyond `max_bytes`.
    pub(crate) fn seal_oversized(&self) {
        let usual = self.segment_len();
        // With the segment for copies, which is kept free.
        if self.bytes() + usual <= self.budget() {
            return;
        }
        let oversized = |tail: &mut Tail| tail.segment.len() > usual;
        for tail in [&self.active, &self.copies] {
            if let Some(tail) = lock(tail).take_if(oversized) {
                drain(&tail.segment);
                self.seal(tail);
            }
        }
        // Whoever makes one may be here for the room that it needs.
        if let Some(mut spare) = self.spare.try_enter()
            && let Some(tail) = spare.take_if(oversized)
        {
            // Even if nothing is in it: another process may have it mapped, to sync it.
            self.seal(tail);
        }
    }

    /// Waits until everything that any process stamped is on the disk; `all`: even in segments that no entry names.
    pub(crate) fn sync(&self, all: bool) -> Result<()> {
        self.sync_each(all, || ())
    }

    /// The same, and calls `after_each`, as a slow disk may take its time.
    pub(crate) fn sync_each(&self, all: bool, after_each: impl Fn()) -> Result<()> {
        use SegmentState::{Active, Emptied, Sealed};
        let mut flushed = Ok(());
        for info in self.index.segments().filter(|info| !info.synced) {
            let concerns = matches!(info.state, Active | Sealed) || (all && info.state == Emptied);
            if concerns && let Some(segment) = self.fetch(info.id)?.get() {
                // What one segment cannot do, the others still can.
                flushed = flushed.and(self.sync_one(segment, &info));
                after_each();
            }
        }
        flushed
    }

    /// Waits until everything that this process stamped is on the disk.
    pub(crate) fn sync_own(&self) -> Result<()> {
        // Not held meanwhile: what is removed is to be gone, and not to wait for the syncs of others.
        let mut own: Vec<_> = lock(&self.unsynced).iter().map(Arc::downgrade).collect();
        // One lock after the other: what is sealed in between was found already, or is found at the next call.
        own.extend(lock(&self.active).as_ref().map(|tail| Arc::downgrade(&tail.segment)));
        own.extend(lock(&self.copies).as_ref().map(|tail| Arc::downgrade(&tail.segment)));
        let mut flushed = Ok(());
        for segment in own.iter().filter_map(Weak::upgrade) {
            if let Some(info) = self.index.segment(segment.id) {
                flushed = flushed.and(self.sync_one(&segment, &info));
            }
        }
        flushed
    }

    /// `info` was read before the sync begins.
    fn sync_one(&self, segment: &Arc<Segment>, info: &SegmentInfo) -> Result<()> {
        let synced = match info.failed {
            true => Err(segment.refused()),
            // What others wrote, and what was written through another map, it does not know of.
            false if self.index.is_own(info.owner) && self.is_written_through(segment) => {
                segment.sync_if_dirty()
            }
            false => segment.sync(),
        };
        if synced.is_err() {
            self.index.set_segment_failed(segment.id);
        } else if info.state != SegmentState::Active {
            self.index.set_segment_synced(segment.id);
            lock(&self.unsynced).retain(|unsynced| unsynced.id != segment.id);
        }
        synced
    }

    /// Whether this very object is the one through which this process appends, or did: what is in it is counted there.
    fn is_written_through(&self, segment: &Arc<Segment>) -> bool {
        let is_it = |tail: &Option<Tail>| {
            tail.as_ref().is_some_and(|tail| Arc::ptr_eq(&tail.segment, segment))
        };
        // In the order in which they move. Whoever makes the next one, or copies, may take long; to sync once more than
        // needed does no harm.
        self.spare.try_enter().is_some_and(|tail| is_it(&tail))
            || self.copies.try_lock().is_ok_and(|tail| is_it(&tail))
            || is_it(&lock(&self.active))
            || lock(&self.unsynced).iter().any(|unsynced| Arc::ptr_eq(unsynced, segment))
    }

    /// Stops appending. What was appended to is left to whoever needs a segment; where this is the `last` process, it is
    /// sealed, and where the log goes on is noted.
    pub(crate) fn retire(&self, last: bool) {
        let [active, copies] = [&self.active, &self.copies].map(|tail| lock(tail).take());
        let spare = self.spare.wait().take();
        if !last {
            for Tail { segment, .. } in [active, copies, spare].into_iter().flatten() {
                drain(&segment);
                self.index.leave_segment(segment.id);
            }
            return;
        }
        match spare {
            Some(unused) if unused.end == segment_header::LEN as u32 => {
                self.discard(unused.segment.id)
            }
            // One that a process left with records in it.
            taken_over => taken_over.into_iter().for_each(|spare| self.seal(spare)),
        }
        let end = active.as_ref().map(|tail| (tail.segment.id, tail.end));
        let orphan = || self.index.orphans().last().map(|orphan| (orphan.id, orphan.tail));
        // Where there is none, the next life begins a segment of its own: what an earlier one noted is not true any more.
        let (id, tail) = end.or_else(orphan).unwrap_or((0, 0));
        self.index.set_end_of_log(id, tail);
        for tail in [active, copies].into_iter().flatten() {
            drain(&tail.segment);
            self.seal(tail);
        }
        self.seal_orphans(0);
    }

    /// Gives up all segments: after this nothing can be read or written. What the program holds stays, and counts while this
    /// process is attached again, as others may remove it meanwhile.
    pub(crate) fn let_go(&self) {
        for tail in [&self.active, &self.copies] {
            *lock(tail) = None;
        }
        *self.spare.wait() = None;
        lock(&self.unsynced).clear();
        self.table
            .drain()
            .filter(|segment| segment.is_pinned())
            .for_each(|segment| segment.count_as_held());
    }

    /// The same in a process that was forked from the one whose log this is. Waits for nobody: what is locked stays.
    pub(crate) fn let_go_after_fork(&self) {
        let tails =
            [self.active.try_lock().ok(), self.copies.try_lock().ok(), self.spare.try_enter()];
        for mut tail in tails.into_iter().flatten() {
            *tail = None;
        }
        if let Ok(mut unsynced) = self.unsynced.try_lock() {
            unsynced.clear();
        }
        self.table.drain().for_each(drop);
    }
}

/// Waits until all records that were begun in a segment are finished.
fn drain(segment: &Segment) {
    let mut wait = Backoff::default();
    while !segment.is_drained() {
        wait.pause();
    }
}

/// The right to copy records, one holder at a time.
pub(crate) struct Copies<'a>(MutexGuard<'a, Option<Tail>>);

/// Whether the operating system said so.
fn is(error: &Error, kind: io::ErrorKind) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    cause.is_some_and(|e| e.kind() == kind)
}

#[cfg(test)]
impl Log {
    /// As if this process had not met segment `id` yet.
    pub(crate) fn unmap(&self, id: u32) {
        drop(self.table.forget(id));
    }
}

#[cfg(test)]
mod tests;
