//! A segment: one preallocated, mapped file of the log. Records are appended and never changed.
//!

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::engine::format::record::{self, Draft, Prepared, Record, RecordPlace, Stamp};
use crate::engine::format::segment_header::{self, DecodedHeader};
use crate::engine::format::word::{ALIGN, MAX_OFFSET};
use crate::engine::shared::accounting::SpaceInUse;
use crate::error::{Error, Result};
use crate::sys::fork::OwnFile;
use crate::sys::map::Map;
use crate::sys::storage::{Access, File, SMALL_PIECES, Storage};
use crate::sys::{random, step};

pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) path: PathBuf,
    salt: u64,
    map: Map,
    /// Whether it was all written with zeros when it was made.
    zeroed: bool,
    /// While the segment is written to; closed when it is sealed, as a large cache has more segments than a process
    /// may have open files.
    file: Mutex<Option<Arc<OwnFile>>>,
    /// Reservations that were not finished yet (low half), and those that were (high half).
    writes: AtomicU64,
    /// What `writes` said before the last sync that succeeded.
    synced: AtomicU64,
    failed: AtomicBool,
    /// Values in it that the program holds; changes under the lock of [`Usage::pinned`].
    pins: AtomicU64,
    sync: SharedSync,
    /// Last, so that what is counted in it counts until the file is unmapped and closed.
    hold: MappedBytes,
}

/// Counts the bytes of a removed segment for as long as it is mapped.
struct MappedBytes {
    space: SpaceInUse,
    bytes: AtomicU64,
}

impl Drop for MappedBytes {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if bytes > 0 {
            self.space.unmap(bytes);
        }
    }
}

/// Syncs shared by those who wait for one at the same time.
#[derive(Default)]
struct SharedSync {
    asked: AtomicU64,
    done: Mutex<u64>,
}

/// A segment that stays mapped as long as this lives, since the program holds a value in it.
pub(crate) struct SegmentPin(Arc<Segment>);

impl std::ops::Deref for SegmentPin {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.0
    }
}

impl Drop for SegmentPin {
    fn drop(&mut self) {
        if !self.0.hold.space.is_ours() {
            return;
        }
        let mut pinned = self.0.hold.space.pinned();
        if self.0.pins.fetch_sub(1, Ordering::Relaxed) == 1 {
            *pinned -= self.0.len();
        }
    }
}

/// What a file in the segment directory turned out to be.
pub(crate) enum SegmentFile {
    Segment(Segment),
    /// Begun by a process that died: nothing in it.
    Unborn,
    /// Its header is damaged, or it is none of ours.
    Foreign,
}

impl Segment {
    pub(crate) fn file_name(id: u32) -> String {
        format!("{id:08x}.seg")
    }

    /// The id that a file name stands for.
    pub(crate) fn id_of(name: &str) -> Option<u32> {
        let digits = name.strip_suffix(".seg")?;
        let id = u32::from_str_radix(digits, 16).ok()?;
        (Self::file_name(id) == name && id != 0).then_some(id)
    }

    /// Makes segment `id` of `len` bytes in `dir`. `zeroed`: its pages are brought into memory now, for whoever writes to
    /// them later.
    pub(crate) fn create(
        storage: &'static dyn Storage,
        dir: &Path,
        id: u32,
        len: u64,
        zeroed: bool,
        space: &SpaceInUse,
    ) -> Result<Self> {
        let path = dir.join(Self::file_name(id));
        let file = storage.create(&path).map_err(|e| Error::io("create segment", &path, e))?;
        let make = |path: PathBuf| -> io::Result<Self> {
            if zeroed {
                file.reset(len, SMALL_PIECES)?;
            } else {
                file.allocate(len)?;
            }
            let salt = random::bits()?;
            file.write_at(&segment_header::encode(id, salt, len), 0)?;
            step!("segment::created");
            let map = Map::new(&file, len as usize)?;
            Ok(Self { zeroed, ..Self::assemble(id, path, salt, map, file, space) })
        };
        make(path.clone()).map_err(|e| {
            // What is half made is of no use, and its space is needed. If that fails too, the next recovery
            // finds a segment without records.
            let _ = storage.remove(&path);
            Error::io("create segment", &path, e)
        })
    }

    /// Opens what is at `path`, which is to be segment `id`.
    pub(crate) fn open(
        storage: &'static dyn Storage,
        path: &Path,
        id: u32,
        access: Access,
        space: &SpaceInUse,
    ) -> Result<SegmentFile> {
        let file = match storage.open_as(path, access) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(SegmentFile::Foreign),
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Ok(SegmentFile::Foreign);
            }
            Err(e) => return Err(Error::io("open segment", path, e)),
        };
        Self::inspect(path, id, file, access, space).map_err(|e| Error::io("open segment", path, e))
    }

    fn inspect(
        path: &Path,
        id: u32,
        file: File,
        access: Access,
        space: &SpaceInUse,
    ) -> io::Result<SegmentFile> {
        let mut header = [0; segment_header::LEN];
        let file_len = file.len()?;
        let there = file_len.min(segment_header::LEN as u64) as usize;
        file.read_exact_at(&mut header[..there], 0)?;
        let (salt, len) = match segment_header::decode(&header, id, file_len) {
            DecodedHeader::Segment { salt, len } => (salt, len),
            DecodedHeader::Unborn => return Ok(SegmentFile::Unborn),
            DecodedHeader::Foreign => return Ok(SegmentFile::Foreign),
        };
        let map = Map::open(&file, len as usize, access)?;
        Ok(SegmentFile::Segment(Self::assemble(id, path.to_owned(), salt, map, file, space)))
    }

    fn assemble(
        id: u32,
        path: PathBuf,
        salt: u64,
        map: Map,
        file: File,
        space: &SpaceInUse,
    ) -> Self {
        Self {
            id,
            path,
            salt,
            map,
            zeroed: false,
            file: Mutex::new(Some(Arc::new(OwnFile::new(file)))),
            writes: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            pins: AtomicU64::new(0),
            sync: SharedSync::default(),
            hold: MappedBytes { space: space.clone(), bytes: AtomicU64::new(0) },
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Keeps the segment mapped, unless segments of more than `most` bytes in all would be kept so.
    pub(crate) fn pin(self: &Arc<Self>, most: u64) -> Option<SegmentPin> {
        let mut pinned = self.hold.space.pinned();
        if self.pins.load(Ordering::Relaxed) == 0 {
            *pinned = Some(*pinned + self.len()).filter(|bytes| *bytes <= most)?;
        }
        self.pins.fetch_add(1, Ordering::Relaxed);
        drop(pinned);
        Some(SegmentPin(self.clone()))
    }

    /// Whether the program holds values in it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    /// Says that its file is removed, or may be without notice: its bytes count as this process's own for as long as it is mapped.
    pub(crate) fn count_as_held(&self) {
        if self.hold.bytes.swap(self.len(), Ordering::AcqRel) == 0 {
            self.hold.space.hold(self.len());
        }
    }

    /// The file, until it is sealed.
    fn file(&self) -> Option<Arc<OwnFile>> {
        self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Makes sure that the file has all its blocks: a copy may have holes, and a store into one can fail.
    pub(crate) fn fill_holes(&self) -> io::Result<()> {
        self.file().map_or(Ok(()), |file| file.allocate(self.len()))
    }

    /// Whether its pages were all brought into memory when it was made.
    pub(crate) fn is_zeroed(&self) -> bool {
        self.zeroed
    }

    /// Closes the file: nothing is appended any more. It stays mapped.
    pub(crate) fn seal(&self) {
        drop(self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    fn place(&self, offset: u32) -> RecordPlace {
        RecordPlace { salt: self.salt, offset }
    }

    /// Where in memory it begins.
    pub(crate) fn address(&self) -> usize {
        self.map.address()
    }

    /// The record at `offset`, if there is one whose header and key are sound.
    pub(crate) fn record(&self, offset: u32) -> Option<Record<'_>> {
        Record::read(&self.map, self.place(offset))
    }

    /// All sound records with their offsets, from the first. Steps over what is not sound: reserved and never
    /// stamped, or damaged. Reads headers and keys only.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        self.records_from(0)
    }

    /// The same, from `offset` on, where a record begins or nothing was begun.
    pub(crate) fn records_from(&self, offset: u32) -> impl Iterator<Item = (u32, Record<'_>)> {
        let mut offset = offset.max(segment_header::LEN as u32);
        std::iter::from_fn(move || {
            // Nothing is written where an entry word cannot reach.
            while u64::from(offset) < MAX_OFFSET
                && (offset as usize) + record::HEADER_LEN <= self.map.len()
            {
                let at = offset;
                if let Some(record) = self.record(at) {
                    offset += record.len;
                    return Some((at, record));
                }
                offset = self.after_unsound(at);
            }
            None
        })
    }

    /// Where to go on after the place `at`, which holds no sound record. A record that was never stamped is
    /// stepped over whole, if its length leads on to something; behind damage every place is tried.
    fn after_unsound(&self, at: u32) -> u32 {
        let unstamped =
            self.map.word32(at as usize + 4).is_some_and(|w| w.load(Ordering::Relaxed) == 0);
        if let Some(len) = record::stored_len(&self.map, at).filter(|_| unstamped) {
            let next = at + len;
            let at_end = next as usize + record::HEADER_LEN > self.map.len();
            if at_end || self.is_zero(next) || record::stored_len(&self.map, next).is_some() {
                return next;
            }
        }
        let mut next = at + ALIGN as u32;
        while (next as usize) < self.map.len() && u64::from(next) < MAX_OFFSET && self.is_zero(next)
        {
            next += ALIGN as u32;
        }
        next
    }

    /// Where nothing was begun yet, nor anywhere behind it, whatever state the rest is in. A record begins at `from`, or
    /// nothing was begun there.
    pub(crate) fn end(&self, from: u32) -> u32 {
        let from = from.clamp(segment_header::LEN as u32, self.map.len() as u32);
        let (mut at, mut end) = (from, from);
        while u64::from(at) < MAX_OFFSET && (at as usize) + record::HEADER_LEN <= self.map.len() {
            // A space that was reserved ends where its length says, even if nothing else was written there.
            end = end.max(at + record::stored_len(&self.map, at).unwrap_or(0));
            at = self.record(at).map_or_else(|| self.after_unsound(at), |record| at + record.len);
        }
        let last = self.map.words().iter().rposition(|w| w.load(Ordering::Relaxed) != 0);
        end.max(last.map_or(0, |word| (word as u32 + 1) * 8))
    }

    fn is_zero(&self, at: u32) -> bool {
        self.map.words().get(at as usize / 8).is_some_and(|w| w.load(Ordering::Relaxed) == 0)
    }

    /// Marks the place of a record of `len` bytes; [`finish`](Segment::finish) must follow.
    pub(crate) fn begin(&self, offset: u32, len: u32) {
        if let Some(word) = self.map.word32(offset as usize) {
            word.store(len, Ordering::Relaxed);
        }
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn finish(&self) {
        self.writes.fetch_add((1 << 32) - 1, Ordering::AcqRel);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.writes.load(Ordering::Acquire) as u32 == 0
    }

    /// Puts key and body in their places and computes their checks.
    pub(crate) fn prepare(
        &self,
        offset: u32,
        len: u32,
        draft: Draft,
        key: &[u8],
        body: [&[u8]; 2],
    ) -> Prepared {
        let at = offset as usize + record::HEADER_LEN;
        let body_at = at + key.len();
        let filled = self.map.fill(at, key)
            && self.map.fill(body_at, body[0])
            && self.map.fill(body_at + body[0].len(), body[1]);
        debug_assert!(filled, "the reservation has room for the record");
        Prepared::new(draft, len, self.place(offset), key, body)
    }

    /// Stores the header, its check last. From then on the record is part of the log.
    /// Keeps invariants I2 and I7: the check is the last store.
    pub(crate) fn stamp(&self, offset: u32, prepared: &Prepared, stamp: Stamp) {
        let (header, check) = prepared.stamp(stamp);
        let at = offset as usize / 8 + 1;
        for (word, value) in self.map.words()[at..at + header.len()].iter().zip(header) {
            word.store(value, Ordering::Relaxed);
        }
        if let Some(word) = self.map.word32(offset as usize + 4) {
            word.store(check, Ordering::Release);
        }
    }

    /// Takes a record that was stamped out of the log again.
    /// The exception of invariant I7.
    pub(crate) fn void(&self, offset: u32) {
        if let Some(word) = self.map.word32(offset as usize + 4) {
            word.store(0, Ordering::Release);
        }
    }

    /// Says that there is something to sync.
    pub(crate) fn mark_dirty(&self) {
        self.synced.store(u64::MAX, Ordering::Release);
    }

    /// Whether all that was ever stamped is on the disk. A record is in flight until after it was stamped, so one
    /// that somebody has seen is counted.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_drained()
            && self.writes.load(Ordering::Acquire) == self.synced.load(Ordering::Acquire)
    }

    /// Where in the file `part`, a slice of a record of this segment, begins.
    pub(crate) fn offset_of(&self, part: &[u8]) -> usize {
        let start = self.map.bytes(0, 0).map_or(0, |b| b.as_ptr() as usize);
        part.as_ptr() as usize - start
    }

    /// Mode of the file; empty if it is not within.
    pub(crate) fn bytes_at(&self, offset: usize, len: usize) -> &[u8] {
        self.map.bytes(offset, len).unwrap_or_default()
    }

    /// Writes zeros to part of the file that nobody has reserved, so that stores into its map find the pages.
    pub(crate) fn zero(&self, from: u32, to: u32) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        // Without the file the stores fault; all that is lost is speed.
        let Some(to_zero) = self.file() else { return Ok(()) };
        for start in (from..to).step_by(ZEROS.len()) {
            let chunk = &ZEROS[..((to - start) as usize).min(ZEROS.len())];
            to_zero
                .write_at(chunk, u64::from(start))
                .map_err(|e| Error::io("write", &self.path, e))?;
        }
        Ok(())
    }

    /// Waits until everything that was stamped before the call is on the disk. Callers at the same time share
    /// the work.
    ///
    /// A sync that failed is never tried again: the kernel has marked the pages as clean, and a second one
    /// would succeed with the data lost all the same.
    /// Keeps invariant I17.
    pub(crate) fn sync(&self) -> Result<()> {
        let _syncing = self.hold.space.syncing();
        let ticket = self.sync.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut done = self.sync.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.has_failed() {
            return Err(self.refused());
        }
        if *done >= ticket {
            return Ok(());
        }
        let covered = self.sync.asked.load(Ordering::Acquire);
        let writes = self.writes.load(Ordering::Acquire);
        let synced = self.file().map_or_else(|| self.map.sync(), |file| file.sync());
        if let Err(e) = synced {
            self.failed.store(true, Ordering::Release);
            tracing::error!(path = %self.path.display(), error = %e, "a sync failed; the segment is retired");
            return Err(Error::io("sync", &self.path, e));
        }
        *done = covered;
        self.synced.store(writes, Ordering::Release);
        Ok(())
    }

    /// The error for who asks once more.
    pub(crate) fn refused(&self) -> Error {
        Error::io("sync", &self.path, io::Error::other("an earlier sync of this segment failed"))
    }

    /// [`sync`](Segment::sync), unless nothing was stamped since the last one that succeeded.
    pub(crate) fn sync_if_dirty(&self) -> Result<()> {
        if self.is_synced() && !self.has_failed() { Ok(()) } else { self.sync() }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// How often it was to be synced.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.sync.asked.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
