//! A segment: one preallocated, mapped file of the log. Records are appended and never changed.

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
    /// Whether it was filled with zeros when it was created.
    zeroed: bool,
    /// The file, while the segment is appended to. It is closed when the segment is sealed, because
    /// a large cache has more segments than a process may have open files.
    file: Mutex<Option<Arc<OwnFile>>>,
    /// The counts of reservations that are not finished (low half) and of finished ones (high
    /// half).
    writes: AtomicU64,
    /// The value of `writes` before the last sync that succeeded.
    synced: AtomicU64,
    failed: AtomicBool,
    /// The values in it that the program holds. Changed only with [`SpaceInUse::pinned`] locked.
    pins: AtomicU64,
    sync: SharedSync,
    /// The last field: its bytes count until the file is unmapped and closed.
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

/// A sync that concurrent callers share.
#[derive(Default)]
struct SharedSync {
    asked: AtomicU64,
    done: Mutex<u64>,
}

/// Keeps a segment mapped while the program holds a value in it.
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

/// A file in the segment directory, after its header was read.
pub(crate) enum SegmentFile {
    Segment(Segment),
    /// Its creator died before it wrote the header; there is no record in it.
    Incomplete,
    /// Its header is damaged, or it is not a segment of this cache.
    Foreign,
}

impl Segment {
    pub(crate) fn file_name(id: u32) -> String {
        format!("{id:08x}.seg")
    }

    /// The id in a file name; `None` if it is not the name of a segment.
    pub(crate) fn id_of(name: &str) -> Option<u32> {
        let digits = name.strip_suffix(".seg")?;
        let id = u32::from_str_radix(digits, 16).ok()?;
        (Self::file_name(id) == name && id != 0).then_some(id)
    }

    /// Creates the file of segment `id` with `len` bytes in `dir`. `zeroed`: its pages are brought
    /// into memory now, so that later stores do not fault.
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
            // The file has its blocks. If it cannot be mapped, the disk is not full, with whatever
            // error number, and the caller must not evict entries for it.
            let map = Map::new(&file, len as usize).map_err(io::Error::other)?;
            Ok(Self { zeroed, ..Self::assemble(id, path, salt, map, file, space) })
        };
        make(path.clone()).map_err(|e| {
            // A half-created file is useless, and its space is needed. If the removal fails too,
            // the next recovery finds an incomplete file or a segment without records.
            let _ = storage.remove(&path);
            Error::io("create segment", &path, e)
        })
    }

    /// Opens the file at `path`, which should be segment `id`.
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
            DecodedHeader::Incomplete => return Ok(SegmentFile::Incomplete),
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

    /// Keeps the segment mapped. `None` if pinned segments would exceed `most` bytes in total.
    pub(crate) fn pin(self: &Arc<Self>, most: u64) -> Option<SegmentPin> {
        let mut pinned = self.hold.space.pinned();
        if self.pins.load(Ordering::Relaxed) == 0 {
            *pinned = Some(*pinned + self.len()).filter(|bytes| *bytes <= most)?;
        }
        self.pins.fetch_add(1, Ordering::Relaxed);
        drop(pinned);
        Some(SegmentPin(self.clone()))
    }

    /// Whether the program holds a value in it.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    /// Counts its bytes as this process's own while it is mapped: its file is removed, or another
    /// process may remove it unnoticed.
    pub(crate) fn count_as_held(&self) {
        if self.hold.bytes.swap(self.len(), Ordering::AcqRel) == 0 {
            self.hold.space.hold(self.len());
        }
    }

    /// The file, if it is still open.
    fn file(&self) -> Option<Arc<OwnFile>> {
        self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Allocates all blocks of the file: a copy of the directory may have holes, and a store into a
    /// hole can fail.
    pub(crate) fn fill_holes(&self) -> io::Result<()> {
        self.file().map_or(Ok(()), |file| file.allocate(self.len()))
    }

    /// Whether all its pages were brought into memory when it was created.
    pub(crate) fn is_zeroed(&self) -> bool {
        self.zeroed
    }

    /// Closes the file of a segment to which this process appends no more. It stays mapped.
    pub(crate) fn close_file(&self) {
        drop(self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    fn place(&self, offset: u32) -> RecordPlace {
        RecordPlace { salt: self.salt, offset }
    }

    /// The address at which it is mapped.
    pub(crate) fn address(&self) -> usize {
        self.map.address()
    }

    /// The record at `offset`, if its header and key are sound.
    pub(crate) fn record(&self, offset: u32) -> Option<Record<'_>> {
        Record::read(&self.map, self.place(offset))
    }

    /// All sound records with their offsets, from the first. Skips records that were reserved and
    /// never stamped, and damage. Reads headers and keys only.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u32, Record<'_>)> {
        self.records_from(0)
    }

    /// The same from `offset` on, which is where a record begins or the end of what was begun.
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

    /// The offset at which a scan continues if there is no sound record at `at`. A record that was
    /// never stamped is skipped as a whole if its length leads to the end, to zeros or to another
    /// record. Behind damage each aligned offset is tried.
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

    /// The end of what was begun, even in a damaged segment: everything from there on is zero.
    /// `from` is where a record begins, or behind all records.
    pub(crate) fn end(&self, from: u32) -> u32 {
        let from = from.clamp(segment_header::LEN as u32, self.map.len() as u32);
        let (mut at, mut end) = (from, from);
        while u64::from(at) < MAX_OFFSET && (at as usize) + record::HEADER_LEN <= self.map.len() {
            // A reservation ends where its length says, even if nothing else was written to it.
            end = end.max(at + record::stored_len(&self.map, at).unwrap_or(0));
            at = self.record(at).map_or_else(|| self.after_unsound(at), |record| at + record.len);
        }
        let last = self.map.words().iter().rposition(|w| w.load(Ordering::Relaxed) != 0);
        end.max(last.map_or(0, |word| (word as u32 + 1) * 8))
    }

    fn is_zero(&self, at: u32) -> bool {
        self.map.words().get(at as usize / 8).is_some_and(|w| w.load(Ordering::Relaxed) == 0)
    }

    /// Stores the length of a record that is begun; [`finish`](Segment::finish) must follow.
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

    /// Copies key and body to their offsets and computes their checks.
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

    /// Stores the header, its check last. From here on the record is part of the log.
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

    /// Removes a stamped record from the log, by a zero in place of its check.
    /// The exception of invariant I7.
    pub(crate) fn void(&self, offset: u32) {
        if let Some(word) = self.map.word32(offset as usize + 4) {
            word.store(0, Ordering::Release);
        }
    }

    /// Marks the segment as not synced.
    pub(crate) fn mark_dirty(&self) {
        self.synced.store(u64::MAX, Ordering::Release);
    }

    /// Whether all stamped records are on the disk. A reservation is finished only after its record
    /// was stamped, so each record that a reader has seen is covered.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_drained()
            && self.writes.load(Ordering::Acquire) == self.synced.load(Ordering::Acquire)
    }

    /// The offset in the file of `part`, a slice of a record of this segment.
    pub(crate) fn offset_of(&self, part: &[u8]) -> usize {
        let start = self.map.bytes(0, 0).map_or(0, |b| b.as_ptr() as usize);
        part.as_ptr() as usize - start
    }

    /// A part of the file; empty if it does not lie within.
    pub(crate) fn bytes_at(&self, offset: usize, len: usize) -> &[u8] {
        self.map.bytes(offset, len).unwrap_or_default()
    }

    /// Writes zeros to a part of the file that is not reserved yet, so that stores into the mapping
    /// do not fault.
    pub(crate) fn zero(&self, from: u32, to: u32) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        // Without the open file the stores fault, which is only slower.
        let Some(to_zero) = self.file() else { return Ok(()) };
        for start in (from..to).step_by(ZEROS.len()) {
            let chunk = &ZEROS[..((to - start) as usize).min(ZEROS.len())];
            to_zero
                .write_at(chunk, u64::from(start))
                .map_err(|e| Error::io("write", &self.path, e))?;
        }
        Ok(())
    }

    /// Waits until everything that was stamped before the call is on the disk. Concurrent callers
    /// share one sync.
    ///
    /// A failed sync is never repeated: the kernel has marked the pages as clean, and a second sync
    /// would succeed although the data is lost. Keeps invariant I17.
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
            let path = self.path.display();
            tracing::error!(%path, error = %e, "a sync failed; the segment is not used further");
            return Err(Error::io("sync", &self.path, e));
        }
        *done = covered;
        self.synced.store(writes, Ordering::Release);
        Ok(())
    }

    /// The error of each sync after the one that failed.
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

    /// How many syncs were requested.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.sync.asked.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
