//! The log: the segments that this process appends to, and those that it has mapped.
//!
//! The segment table of the index ([`index::segments`](crate::engine::index)) lists all segments
//! with their states, for all processes. Each process appends to segments of its own: new records
//! to the *active* one, copies of records that stay alive to another one (*copies*). A third one,
//! the *spare*, is created ahead of time and becomes the next active one. A segment of another
//! process is mapped when an entry word first leads there.
//!
//! # The states of a segment
//!
//! ```text
//!                   (free)
//!            create |   | restore
//!                   v   |
//!     +------ creating  |
//!     |             |   |
//!     |    activate |   |
//!     |             v   |
//!     | abort    active | <--+      orphan, adopt: it stays active, and changes its owner
//!     |             |   |    |
//!     |        seal |   |    | resume
//!     |             v   v    |
//!     |           sealed ----+
//!     |             |
//!     |       empty |
//!     |             v
//!     +------> emptied
//!                   |
//!              drop |               also: creating -> (free), active -> (free)
//!                   v
//!              dropped
//!                   |
//!              free |
//!                   v
//!                (free)
//! ```
//!
//! An edge has the same verb here and in the table: `Log::seal` calls `Index::seal_segment`,
//! `Log::drop_emptied` calls `Index::drop_segment`, `Log::abort_segments_of_dead` calls
//! `Index::abort_segment`. Of an edge between two states, the table's part is a compare-and-swap of
//! the state, which fails if the segment is not in the state where the edge begins.
//!
//! | edge | taken by | call | holds |
//! |---|---|---|---|
//! | create | a process that needs a segment; its bytes are reserved | `create` | `spare` or `copies` |
//! | activate | the owner: file, header and directory entry are on the disk | `activate` | the same, and `opening` |
//! | seal | the owner: all records that it began are finished | `seal` | the mutex of the tail |
//! | empty | a process that found no entry word of the segment | `empty` | the space role |
//! | drop | a process whose checkpoint began after *empty*: it removes the file first | `drop_emptied` | the space role |
//! | free | a process: all attached processes have acknowledged the drop | `free_dropped` | the space role |
//! | abort | a process that reaped the dead owner | `abort_segments_of_dead` | the space role |
//! | orphan | the owner, which detaches, or needs a longer spare | `orphan` | the mutex of the tail |
//! | adopt | a process that needs a segment, or seals orphans: the owner is gone | `adopt`, `seal_orphans` | a compare-and-swap of the owner |
//! | restore | the first process to attach: the file exists | `restore` | the attach mutex |
//! | resume | the same: the newest segment has room behind its end | `restore` | the attach mutex |
//! | creating -> free | the owner, which cannot create the file | `create` | as *create* |
//! | active -> free | the last process to detach: the spare is unused | `free_unused` | the attach mutex |
//!
//! *Seal* comes before *empty* without fail: nothing is appended to a segment that a process
//! searches for entries. The file outlives *empty* until a checkpoint that began later is complete,
//! because until then a recovery may need it. The row in the table outlives the file until every
//! process has unmapped it ([`removal`]).
//!
//! A crash leaves this:
//!
//! | state | the owner dies, others are attached | all processes die |
//! |---|---|---|
//! | creating | aborted; the next checkpoint removes the file, if there is one | a file of zeros is removed; one with a header is restored |
//! | active | an orphan: adopted or sealed | restored, and replayed from where the snapshot ends |
//! | sealed | nothing changes | the same |
//! | emptied | the next checkpoint drops it | restored as sealed, and emptied again |
//! | file removed, still emptied | the next checkpoint drops it | the file is gone, the row is freed |
//! | dropped, not counted | `free_dropped` counts the drop | the same |
//! | dropped | freed, once all others have unmapped it | the same |

mod allocate;
pub(crate) mod append;
mod detach;
mod removal;
pub(crate) mod segment;
pub(crate) mod segment_map;
mod sync;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
use crate::engine::shared::wait_queue::WaitQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;
use crate::sys::storage::{Access, HeldDirectory, Storage};
use crate::sys::wait::Backoff;

pub(crate) struct Log {
    dir: PathBuf,
    held: HeldDirectory,
    access: Access,
    index: Arc<Index>,
    map: SegmentMap,
    space: SpaceInUse,
    /// The part of `max_bytes` that segments cannot use.
    fixed_bytes: u64,
    active: Mutex<Option<Tail>>,
    /// Whether the active segment is so full that the next one should be created.
    needs_spare: AtomicBool,
    /// The next active segment, created ahead of time. Held during the creation; no thread waits
    /// for it while it holds `active`.
    spare: WaitQueue<Option<Tail>>,
    /// The segment for copies. Held by the thread that copies.
    copies: Mutex<Option<Tail>>,
    /// The segments that this process sealed and has not synced since.
    unsynced: Mutex<Vec<Arc<Segment>>>,
    /// Held while a segment is entered into the map.
    opening: Mutex<()>,
    /// Held while dropped segments are unmapped, until the bytes of those that stay mapped count.
    unmapping: Mutex<()>,
    /// The bytes that were reserved by this process.
    appended: AtomicU64,
    /// The count of drops when this process last unmapped dropped segments.
    drops_seen: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// With `Access::ToRead`, only calls that read are allowed.
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
            map: SegmentMap::new(index.geometry().segments),
            fixed_bytes: sizing::fixed_bytes(index.geometry()),
            index,
            space,
            active: Mutex::new(None),
            needs_spare: AtomicBool::new(false),
            spare: WaitQueue::default(),
            copies: Mutex::new(None),
            unsynced: Mutex::new(Vec::new()),
            opening: Mutex::new(()),
            unmapping: Mutex::new(()),
            appended: AtomicU64::new(0),
            drops_seen: AtomicU64::new(0),
        })
    }

    /// Restores the segments that were found when the directory was opened by its first process.
    /// The log continues at `end` (a segment and an offset in it), if there is room: otherwise each
    /// opening would consume a segment.
    pub(crate) fn restore(&self, segments: Vec<Segment>, end: Option<(u32, u32)>) {
        for segment in segments {
            self.index.restore_segment(segment.id, segment.len());
            let segment = Arc::new(segment);
            self.map.insert(&segment);
            match end.filter(|(id, end)| *id == segment.id && self.can_resume(&segment, *end)) {
                Some((_, end)) => *lock(&self.active) = Some(self.resume(segment, end)),
                None => segment.close_file(),
            }
        }
    }

    /// Whether the log can continue at `end` of a segment.
    fn can_resume(&self, segment: &Segment, end: u32) -> bool {
        let room = segment_header::LEN as u64..segment.len();
        room.contains(&u64::from(end))
            && (end as usize).is_multiple_of(ALIGN)
            && segment.len() <= self.segment_len()
            && segment.fill_holes().is_ok()
    }

    /// Makes a restored segment the one that is appended to.
    fn resume(&self, segment: Arc<Segment>, end: u32) -> Tail {
        self.index.resume_segment(segment.id, end);
        Tail::new(segment, end)
    }

    /// Prefetches the record that `word` names.
    pub(crate) fn prefetch(&self, word: Word) {
        self.map.prefetch(word);
    }

    /// Holds segment `id`, if this process has it mapped.
    pub(crate) fn segment(&self, id: u32) -> SegmentGuard {
        self.map.hold(id)
    }

    /// Holds segment `id`, and maps it first if needed. The guard is empty if there is no such
    /// segment.
    ///
    /// # Errors
    /// If the system cannot open or map its file.
    #[inline]
    pub(crate) fn fetch(&self, id: u32) -> Result<SegmentGuard> {
        let here = self.map.hold(id);
        if here.get().is_some() { Ok(here) } else { self.open(id) }
    }

    /// Whether segment `id` has a file that may hold records.
    pub(crate) fn is_readable(&self, id: u32) -> bool {
        use SegmentState::{Active, Emptied, Sealed};
        matches!(self.index.segment_state(id), Some(Active | Sealed | Emptied))
    }

    #[cold]
    fn open(&self, id: u32) -> Result<SegmentGuard> {
        if !self.is_readable(id) {
            return Ok(self.map.hold(id));
        }
        let _opening = lock(&self.opening);
        let here = self.map.hold(id);
        if here.get().is_some() {
            return Ok(here);
        }
        drop(here);
        let path = self.dir.join(Segment::file_name(id));
        match Segment::open(self.held.storage(), &path, id, self.access, &self.space) {
            Ok(SegmentFile::Segment(segment)) => {
                // It stays mapped and not open: there are more segments than a process may have
                // open files.
                segment.close_file();
                let unmapping = lock(&self.unmapping);
                self.map.insert(&Arc::new(segment));
                // It may have been dropped since the first look. The fence pairs with the one in
                // `unmap_dropped`: either this thread sees the drop, or the other one sees the
                // segment in the map.
                fence(Ordering::SeqCst);
                if !self.is_readable(id) {
                    self.unmap(id, &unmapping);
                }
            }
            Ok(SegmentFile::Incomplete | SegmentFile::Foreign) => {}
            Err(e) if is(&e, io::ErrorKind::NotFound) => {}
            Err(e) => return Err(e),
        }
        Ok(self.map.hold(id))
    }

    /// The bytes of all segments and blobs, including those that are unlinked and still mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.space.bytes()
    }

    pub(crate) fn space(&self) -> &SpaceInUse {
        &self.space
    }

    /// The bytes that all segments together may take.
    pub(crate) fn budget(&self) -> u64 {
        self.index.max_bytes().saturating_sub(self.fixed_bytes)
    }

    pub(crate) fn segment_len(&self) -> u64 {
        sizing::segment_len(self.budget())
    }

    /// The bytes that this process has reserved since it opened the log.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Ordering::Relaxed)
    }

    /// The length of the longest possible record.
    pub(crate) fn max_record_len(&self) -> u64 {
        sizing::max_record_len(self.budget())
    }

    /// The length of the longest value that is stored in the log; a longer one becomes a blob.
    pub(crate) fn largest_in_log(&self) -> u64 {
        sizing::largest_in_log(self.segment_len())
    }

    /// The length of a record of this shape.
    pub(crate) fn len_of(&self, draft: &Draft) -> Result<u32> {
        let len = draft.len().filter(|len| u64::from(*len) <= self.max_record_len());
        len.ok_or_else(|| {
            let most = self.max_record_len();
            Error::new(ErrorKind::ValueTooLarge, "reserve").with_source(format!(
                "key and value take {} bytes; at most {most} are possible with this max_bytes",
                draft.body_len
            ))
        })
    }

    /// Reserves space for a record of `len` bytes. `None` if that needs a new segment: call
    /// [`provide`](Log::provide) and try again. The caller must not hold another reservation or a
    /// chain lock.
    pub(crate) fn reserve(&self, len: u32) -> Result<Option<RecordReservation>> {
        self.unmap_new_drops();
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
            self.needs_spare.store(true, Ordering::Relaxed);
        }
        self.appended.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok(Some(reservation))
    }

    /// Seals the active segment and makes the spare the active one, if there is a spare with room
    /// for a record of `len`.
    fn rotate(&self, active: &mut Option<Tail>, len: u32) -> bool {
        // Never waited for: the thread that creates the spare may need the active segment first.
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

    /// Seals a segment. All records that were begun in it are finished.
    fn seal(&self, Tail { segment, .. }: Tail) {
        // In this order: a thread that syncs finds the segment as a tail or in `unsynced`.
        lock(&self.unsynced).push(segment.clone());
        self.index.seal_segment(segment.id);
        segment.close_file();
    }

    /// Whether the next active segment should be created.
    pub(crate) fn needs_spare(&self) -> bool {
        self.needs_spare.load(Ordering::Relaxed)
    }

    /// The right to copy records.
    pub(crate) fn copies(&self) -> Copies<'_> {
        Copies(lock(&self.copies))
    }

    /// Seals the segments that this process appends to and that could not be synced.
    pub(crate) fn seal_failed(&self) {
        for tail in [&self.active, &self.copies] {
            let failed = lock(tail).take_if(|tail| !self.index.may_append(tail.segment.id));
            if let Some(tail) = failed {
                drain(&tail.segment);
                self.seal(tail);
            }
        }
    }

    /// Whether an active segment is longer than a new one would be, because `max_bytes` was
    /// lowered. It cannot be emptied before its owner has sealed it.
    pub(crate) fn is_oversized(&self, segment: &SegmentInfo) -> bool {
        segment.state == SegmentState::Active && segment.len > self.segment_len()
    }

    /// Seals the segments of this process that are longer than a new one would be, if all segments
    /// together exceed their budget.
    pub(crate) fn seal_oversized(&self) {
        let usual = self.segment_len();
        // With the bytes that stay free for a segment of copies.
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
        // Not waited for: the thread that creates the spare may have called this to get its bytes.
        if let Some(mut spare) = self.spare.try_enter()
            && let Some(tail) = spare.take_if(oversized)
        {
            // Even if it is unused: another process may have mapped it, to sync it.
            self.seal(tail);
        }
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

/// Whether `error` was caused by an error of this kind of the operating system.
fn is(error: &Error, kind: io::ErrorKind) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    cause.is_some_and(|e| e.kind() == kind)
}

#[cfg(test)]
impl Log {
    /// Unmaps segment `id`, as in a process that has not read from it yet.
    pub(crate) fn unmap_one(&self, id: u32) {
        drop(self.map.remove(id));
    }
}

#[cfg(test)]
mod tests;
