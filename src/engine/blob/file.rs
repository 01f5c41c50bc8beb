//! A blob: one value in a file of its own, too large for a segment.
//!
//!
//! It is written as a temporary file from the first chunk on, and gets its header and its name when it is whole
//! and on the disk. After that it never changes, but for the hash of another key that is added before a record of that
//! key names it. By the hashes whoever wants to know finds the records that may name it.
//!
//! Whoever writes the file, reads it, or is about to publish a record that names it holds byte 0 of it, beside all others
//! who do ([`hold`]). Whoever removes it has the byte alone ([`open_alone`]). Whoever writes it has byte 1 until its bytes count
//! as a blob's, and not as the writer's own any more.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::format::blob_ref::{BlobRef, CHUNK, HEADER_LEN, check_of, space_for};
use crate::engine::shared::accounting::Reservation;
use crate::error::{Error, Result};
use crate::sys::fork::OwnFile;
use crate::sys::map::Map;
use crate::sys::storage::{File, Storage};
use crate::sys::wait::Backoff;
use crate::sys::{lock, random, step};

/// The name of the file of a blob that is whole.
pub(super) fn file_name(name: u128) -> String {
    format!("{name:032x}.blob")
}

fn temporary_name(name: u128) -> String {
    format!("{name:032x}.part")
}

/// What a file in the directory of blobs is, by its name.
pub(super) enum Named {
    Blob(u128),
    /// Of one that is being written, or whose writer died.
    Temporary,
    Unknown,
}

pub(super) fn named(found: &str) -> Named {
    let Some((digits, ending)) = found.split_at_checked(32) else { return Named::Unknown };
    let is_name = digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    match (u128::from_str_radix(digits, 16), ending) {
        (Ok(name), ".blob") if is_name => Named::Blob(name),
        (Ok(_), ".part") if is_name => Named::Temporary,
        _ => Named::Unknown,
    }
}

/// The byte of the file by which it is locked.
const LOCK: i64 = 0;

/// The byte that whoever writes it has, for as long as its bytes count as the writer's own.
const CLAIM: i64 = 1;

/// What comes of asking that a file stay.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nobody removes it for as long as it is open, or mapped.
    Held,
    /// It has been removed.
    Gone,
    /// Somebody is about to remove it and does not come to an end.
    Busy,
}

/// Keeps the file from being removed, for as long as it is open. Whoever wants to remove it looks first whether anything
/// names it, so this waits for that: microseconds, or about half a second for one who was stopped.
/// Keeps invariant I30.
pub(super) fn hold(file: &File) -> io::Result<Hold> {
    let mut wait = Backoff::default();
    while !lock::try_share(file, LOCK)? {
        if wait.is_long() {
            return Ok(Hold::Busy);
        }
        wait.pause();
    }
    Ok(if file.is_named()? { Hold::Held } else { Hold::Gone })
}

/// Whether anybody holds the file.
pub(super) fn is_held(file: &File) -> io::Result<bool> {
    lock::is_held(file, LOCK)
}

/// Whether its bytes still count as those of a process that wrote it.
pub(super) fn is_claimed(file: &File) -> io::Result<bool> {
    lock::is_held(file, CLAIM)
}

/// Says that its bytes, which this process wrote, are to count as a blob's.
pub(super) fn give_up_claim(file: &File) -> io::Result<()> {
    lock::unlock(file, CLAIM)
}

/// What comes of wanting a file for oneself.
pub(super) enum Alone {
    /// Nobody else holds it, nor will while this is open.
    Yes(OwnFile),
    Held,
    /// It has been removed, or something else is there.
    Gone,
}

/// Opens the file at `path` to remove it, unless somebody holds it.
/// Keeps invariant I30.
pub(super) fn open_alone(storage: &'static dyn Storage, path: &Path) -> io::Result<Alone> {
    let file = match OwnFile::to_lock(|| storage.open(path)) {
        Ok(file) => file,
        Err(e) if is_none_of_ours(&e) => return Ok(Alone::Gone),
        Err(e) => return Err(e),
    };
    if !lock::try_lock(&file, LOCK)? {
        return Ok(Alone::Held);
    }
    Ok(if file.is_named()? { Alone::Yes(file) } else { Alone::Gone })
}

/// Makes a file that only this process holds. `None` if somebody took it for one whose writer died.
fn create_held(storage: &'static dyn Storage, path: &Path) -> io::Result<Option<OwnFile>> {
    // SegmentFile again where it must be, so it may be there.
    let file = OwnFile::to_lock(|| storage.open_or_create(path).map(|(file, _)| file))?;
    step!("blob::created");
    lock::try_lock(&file, CLAIM)?;
    Ok((hold(&file)? == Hold::Held).then_some(file))
}

/// A blob that is being written. Dropping it removes what was written.
pub(crate) struct BlobWriter {
    dir: PathBuf,
    path: PathBuf,
    file: Arc<OwnFile>,
    reference: BlobRef,
    chunk: Vec<u8>,
    checks: Vec<u8>,
    /// The space on disk that was reserved for it.
    reservation: Reservation,
}

impl BlobWriter {
    /// A writer of a new blob in `dir`, with the space in `reservation`, which may be none.
    pub(super) fn create(
        storage: &'static dyn Storage,
        dir: &Path,
        reservation: Reservation,
    ) -> Result<Self> {
        let random = || random::bits().map_err(|e| Error::io("create blob", dir, e));
        loop {
            let name = u128::from(random()?) << 64 | u128::from(random()?);
            let path = dir.join(temporary_name(name));
            let made =
                create_held(storage, &path).map_err(|e| Error::io("create blob", &path, e))?;
            let Some(file) = made.map(Arc::new) else { continue };
            let reference = BlobRef { name, salt: random()?, len: 0 };
            let (chunk, checks) = (Vec::with_capacity(CHUNK), Vec::new());
            return Ok(Self {
                dir: dir.to_owned(),
                path,
                file,
                reference,
                chunk,
                checks,
                reservation,
            });
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes were written until now.
    pub(crate) fn len(&self) -> u64 {
        self.reference.len + self.chunk.len() as u64
    }

    /// What is missing of the space for a value of `len` bytes.
    pub(crate) fn lacks(&self, len: u64) -> u64 {
        space_for(len).saturating_sub(self.reservation.bytes())
    }

    pub(crate) fn add_space(&mut self, reservation: Reservation) {
        self.reservation.absorb(reservation);
    }

    /// Adds bytes, for which there is space.
    ///
    /// # Errors
    /// If the disk refuses. What was taken in until then stays; `written` says how much of `bytes` that is.
    pub(crate) fn write(&mut self, mut bytes: &[u8], written: &mut usize) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.chunk.len() == CHUNK {
                self.write_chunk()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            *written += now.len();
            bytes = rest;
        }
        Ok(())
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        let BlobRef { salt, len, .. } = self.reference;
        self.file.write_at(&self.chunk, HEADER_LEN as u64 + len)?;
        step!("blob::chunk");
        let check = check_of(salt, len / CHUNK as u64, &self.chunk);
        self.checks.extend_from_slice(&check.to_le_bytes());
        self.reference.len += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    /// Makes the blob whole, and what is in it durable, for a key of this hash. Its name is none yet.
    pub(super) fn finish(&mut self, hash: u64) -> Result<()> {
        let path = self.path.clone();
        let io_error = |e| Error::io("write blob", &path, e);
        if !self.chunk.is_empty() {
            self.write_chunk().map_err(io_error)?;
        }
        let end = HEADER_LEN as u64 + self.reference.len;
        self.file.write_at(&self.checks, end).map_err(io_error)?;
        self.file.write_at(&self.reference.header(hash), 0).map_err(io_error)?;
        step!("blob::written");
        self.file.sync().map_err(|e| Error::io("sync blob", &path, e))?;
        step!("blob::synced");
        Ok(())
    }

    /// Gives the blob its name, which the directory has to be synced for. Returns it, what holds it, and its space.
    pub(super) fn name(mut self) -> Result<(BlobRef, Arc<OwnFile>, Reservation)> {
        let whole = self.dir.join(file_name(self.reference.name));
        self.file
            .storage()
            .rename(&self.path, &whole)
            .map_err(|e| Error::io("rename blob", &self.path, e))?;
        self.path = PathBuf::new();
        step!("blob::named");
        let mut reservation = self.reservation.take();
        reservation.shrink_to(space_for(self.reference.len));
        Ok((self.reference, self.file.clone(), reservation))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // In a process that was forked it is the parent's, who goes on with it.
        if self.path.as_os_str().is_empty() || !self.reservation.space.is_ours() {
            return;
        }
        if let Err(error) = self.file.storage().remove(&self.path) {
            // Whoever looks for it next finds that nobody holds it.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a blob that was not finished");
        }
    }
}

/// A blob that is open to be read. It is not removed meanwhile, so it goes on counting.
pub(crate) struct OpenBlob {
    file: OwnFile,
    reference: BlobRef,
}

/// The value of a blob, mapped. The map keeps the file open, and so held.
struct Mapped {
    map: Map,
    len: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.map.bytes(HEADER_LEN, self.len).unwrap_or_default()
    }
}

impl OpenBlob {
    /// Opens what is at `path`, which is to be the blob `reference`. `None` if it is something else, or damaged.
    pub(super) fn open(
        storage: &'static dyn Storage,
        path: &Path,
        reference: BlobRef,
    ) -> Result<Option<Self>> {
        let open = || -> io::Result<Option<Self>> {
            let file = match OwnFile::to_lock(|| storage.open_to_read(path)) {
                Ok(file) => file,
                Err(e) if is_none_of_ours(&e) => return Ok(None),
                Err(e) => return Err(e),
            };
            // Where somebody was stopped who is about to remove it, it is read all the same: no reader waits for ever.
            if hold(&file)? == Hold::Gone {
                return Ok(None);
            }
            let mut header = [0; HEADER_LEN];
            match file.read_exact_at(&mut header, 0) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            }
            let is_it = BlobRef::from_header(&header).is_some_and(|(found, _)| found == reference);
            // A length that cannot be read is an error, and not damage: for damage the entry is removed.
            let there = file.len()?;
            let is_whole = reference.file_len().is_some_and(|len| there >= len);
            Ok((is_it && is_whole).then_some(Self { file, reference }))
        };
        open().map_err(|e| Error::io("open blob", path, e))
    }

    pub(crate) fn len(&self) -> u64 {
        self.reference.len
    }

    /// Reads chunk `number` into `chunk`. `false` if it is damaged.
    pub(crate) fn read_chunk(&self, number: u64, chunk: &mut Vec<u8>) -> io::Result<bool> {
        self.file.check_ours()?;
        let start = number * CHUNK as u64;
        let len = self.len().saturating_sub(start).min(CHUNK as u64) as usize;
        chunk.resize(len, 0);
        let checks_at = HEADER_LEN as u64 + self.len();
        let mut check = [0; 4];
        let read = self
            .file
            .read_exact_at(chunk, HEADER_LEN as u64 + start)
            .and_then(|()| self.file.read_exact_at(&mut check, checks_at + number * 4));
        match read {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            read => read.map(|()| {
                u32::from_le_bytes(check) == check_of(self.reference.salt, number, chunk)
            }),
        }
    }

    /// Whether all of it is as it was written. Reads it all, a chunk at a time.
    pub(crate) fn verify(&self) -> io::Result<bool> {
        let mut chunk = Vec::new();
        for number in 0..self.len().div_ceil(CHUNK as u64) {
            if !self.read_chunk(number, &mut chunk)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The whole value, mapped and verified; `None` if it is damaged.
    pub(crate) fn load(self) -> io::Result<Option<Bytes>> {
        let (Ok(len), Some(Ok(file_len))) =
            (usize::try_from(self.len()), self.reference.file_len().map(usize::try_from))
        else {
            return Ok(None);
        };
        let map = Map::to_read(&self.file, file_len)?;
        let value = map.bytes(HEADER_LEN, len).unwrap_or_default();
        let checks = map.bytes(HEADER_LEN + len, file_len - HEADER_LEN - len).unwrap_or_default();
        let is_sound = value.chunks(CHUNK).zip(checks.chunks_exact(4)).zip(0..).all(
            |((chunk, check), number)| {
                check == check_of(self.reference.salt, number, chunk).to_le_bytes()
            },
        );
        Ok(is_sound.then(|| {
            self.file.leave_to_map();
            Bytes::from_owner(Mapped { map, len })
        }))
    }
}

const HASH_LEN: usize = 12;

fn hash_entry(hash: u64) -> [u8; HASH_LEN] {
    let mut bytes = [0; HASH_LEN];
    bytes[..8].copy_from_slice(&hash.to_le_bytes());
    let check = crc32fast::hash(&bytes[..8]);
    bytes[8..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// What the file of a blob says of itself.
pub(super) struct Contents {
    /// What it takes on disk.
    pub(super) bytes: u64,
    /// Of the keys that may name it.
    pub(super) hashes: Vec<u64>,
}

/// What is in the file. `None` if it is no blob, or is damaged.
pub(super) fn contents(file: &File) -> io::Result<Option<Contents>> {
    /// More keys than this a blob is not moved through.
    const MOST: u64 = 1 << 16;
    let len = file.len()?;
    let mut header = [0; HEADER_LEN];
    if len < HEADER_LEN as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut header, 0)?;
    let Some((reference, first)) = BlobRef::from_header(&header) else { return Ok(None) };
    let Some(start) = reference.file_len().filter(|start| *start <= len) else { return Ok(None) };
    let mut others = vec![0; (len - start).min(MOST * HASH_LEN as u64) as usize];
    file.read_exact_at(&mut others, start)?;
    let (mut hashes, mut rest) = (vec![first], &others[..]);
    while let Some(entry) = rest.first_chunk::<HASH_LEN>() {
        let hash = entry.first_chunk().map_or(0, |hash| u64::from_le_bytes(*hash));
        let is_one = hash_entry(hash) == *entry;
        hashes.extend(is_one.then_some(hash));
        // Behind one that was cut off, as on a full disk, those that were added later are not where they would be.
        rest = &rest[if is_one { HASH_LEN } else { 1 }..];
    }
    Ok(Some(Contents { bytes: space_for(reference.len), hashes }))
}

/// Notes, durably, that a key of this hash is about to name the blob in the file at `path`, which the caller holds.
pub(super) fn add_hash(storage: &'static dyn Storage, path: &Path, hash: u64) -> Result<()> {
    let add = || -> io::Result<()> {
        // Others may be adding theirs.
        let file = storage.open_to_append(path)?;
        // Nobody gets to read a damaged one, so it need not be found.
        if contents(&file)?.is_none_or(|contents| contents.hashes.contains(&hash)) {
            return Ok(());
        }
        file.append(&hash_entry(hash))?;
        step!("blob::hash_written");
        file.sync()
    };
    add().map_err(|e| Error::io("write blob", path, e))
}

/// Whether what is there, if anything, is no blob.
pub(super) fn is_none_of_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidInput | IsADirectory)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}
