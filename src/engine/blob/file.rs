//! A blob: one value in a file of its own, too large for a segment.
//!
//! The writer creates a temporary file and writes the chunks to it. When all of them are on the
//! disk, the file gets its header and its name. After that it never changes, except that the hash
//! of another key is appended before a record of that key names the blob. The hashes lead to all
//! records that may name it.
//!
//! Byte 0 of the file is locked, shared, by each process that writes it, reads it, or is about to
//! publish a record that names it ([`hold`]). A process that unlinks it locks the byte exclusively
//! ([`open_alone`]). The writer locks byte 1 until the bytes count as a blob's, and no longer as
//! its own.

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

/// The file name of a complete blob.
pub(super) fn file_name(name: u128) -> String {
    format!("{name:032x}.blob")
}

fn temporary_name(name: u128) -> String {
    format!("{name:032x}.part")
}

/// The kind of a file in the directory of blobs, by its name.
pub(super) enum Named {
    Blob(u128),
    /// A blob that is being written, or whose writer died.
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

/// The byte that holds the file.
const LOCK: i64 = 0;

/// The byte that the writer locks while the bytes count as its own.
const CLAIM: i64 = 1;

/// The result of [`hold`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// No process unlinks it while it is open, or mapped.
    Held,
    /// It was unlinked.
    Gone,
    /// A process is about to unlink it and is stalled.
    Busy,
}

/// Keeps the file from being unlinked while it is open. A process that wants to unlink it first
/// looks up its owners; this waits for that: microseconds, or about half a second if the process is
/// stopped. Keeps invariant I30.
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

/// Whether a process holds the file.
pub(super) fn is_held(file: &File) -> io::Result<bool> {
    lock::is_held(file, LOCK)
}

/// Whether its bytes still count as those of its writer.
pub(super) fn is_claimed(file: &File) -> io::Result<bool> {
    lock::is_held(file, CLAIM)
}

/// Ends the time in which its bytes count as those of this process, its writer.
pub(super) fn release_claim(file: &File) -> io::Result<()> {
    lock::unlock(file, CLAIM)
}

/// The result of [`open_alone`].
pub(super) enum Alone {
    /// No other process holds it, nor can while this is open.
    Yes(OwnFile),
    Held,
    /// It was unlinked, or the file is not a blob.
    Gone,
}

/// Opens the file at `path` to unlink it, unless a process holds it.
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

/// Creates a file that this process holds. `None` if another process took it for that of a dead
/// writer in the moment before the lock, and unlinked it.
fn create_held(storage: &'static dyn Storage, path: &Path) -> io::Result<Option<OwnFile>> {
    // `to_lock` may open the file twice, and then finds it the second time.
    let file = OwnFile::to_lock(|| storage.open_or_create(path).map(|(file, _)| file))?;
    step!("blob::created");
    lock::try_lock(&file, CLAIM)?;
    Ok((hold(&file)? == Hold::Held).then_some(file))
}

/// A blob that is being written. Dropping it removes the file.
pub(crate) struct BlobWriter {
    dir: PathBuf,
    path: PathBuf,
    file: Arc<OwnFile>,
    reference: BlobRef,
    chunk: Vec<u8>,
    checks: Vec<u8>,
    /// The bytes of disk space that are reserved for it.
    reservation: Reservation,
}

impl BlobWriter {
    /// A writer of a new blob in `dir`. `reservation` may be of 0 bytes.
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

    /// The bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.reference.len + self.chunk.len() as u64
    }

    /// The bytes of disk space that a value of `len` bytes needs beyond those reserved.
    pub(crate) fn lacks(&self, len: u64) -> u64 {
        space_for(len).saturating_sub(self.reservation.bytes())
    }

    pub(crate) fn add_space(&mut self, reservation: Reservation) {
        self.reservation.absorb(reservation);
    }

    /// Appends `bytes`, for which space is reserved.
    ///
    /// # Errors
    /// If a write fails. `written` is the number of bytes that were accepted before; they stay.
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

    /// Writes the rest of the blob, for a key of this hash, and syncs it. It has no name yet.
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

    /// Renames the file to the blob's name; the caller must sync the directory. Returns the
    /// reference, the open file that holds the blob, and its reservation.
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
        // In a forked process it belongs to the parent, which continues to write it.
        if self.path.as_os_str().is_empty() || !self.reservation.space.is_ours() {
            return;
        }
        if let Err(error) = self.file.storage().remove(&self.path) {
            // The next listing finds that no process holds it.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished blob");
        }
    }
}

/// A blob that is open for reading. It is not unlinked meanwhile, so its bytes count.
pub(crate) struct OpenBlob {
    file: OwnFile,
    reference: BlobRef,
}

/// The value of a blob, mapped. The mapping keeps the file open, and so held.
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
    /// Opens the file at `path`, which should be the blob `reference`. `None` if it is not, or is
    /// damaged.
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
            // `Hold::Busy` does not matter here: a reader does not wait for a stopped process that
            // is about to unlink the file.
            if hold(&file)? == Hold::Gone {
                return Ok(None);
            }
            let mut header = [0; HEADER_LEN];
            match file.read_exact_at(&mut header, 0) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                read => read?,
            }
            let is_it = BlobRef::from_header(&header).is_some_and(|(found, _)| found == reference);
            // A length that cannot be read is an error, and not damage: for damage the entry is
            // removed.
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

    /// Whether all chunks are as they were written. Reads the whole blob, one chunk at a time.
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

/// The contents of a blob's file, without the value.
pub(super) struct Contents {
    /// The space that it takes on disk.
    pub(super) bytes: u64,
    /// The hashes of the keys that may name it.
    pub(super) hashes: Vec<u64>,
}

/// Reads the contents of a file. `None` if it is not a blob, or is damaged.
pub(super) fn contents(file: &File) -> io::Result<Option<Contents>> {
    /// The most hashes that are read. No blob is moved to so many keys.
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
        // Behind an incomplete hash, as a full disk leaves it, the later ones are not aligned.
        rest = &rest[if is_one { HASH_LEN } else { 1 }..];
    }
    Ok(Some(Contents { bytes: space_for(reference.len), hashes }))
}

/// Appends a hash, durably, to the blob at `path`, which the caller holds: a key of this hash is
/// about to name it.
pub(super) fn add_hash(storage: &'static dyn Storage, path: &Path, hash: u64) -> Result<()> {
    let add = || -> io::Result<()> {
        // Opened to append: other processes may append theirs at the same time.
        let file = storage.open_to_append(path)?;
        // A damaged blob is not read by any process, so its owners need not be found.
        if contents(&file)?.is_none_or(|contents| contents.hashes.contains(&hash)) {
            return Ok(());
        }
        file.append(&hash_entry(hash))?;
        step!("blob::hash_written");
        file.sync()
    };
    add().map_err(|e| Error::io("write blob", path, e))
}

/// Whether an error says that there is no blob at the path: no file, or another kind of file.
pub(super) fn is_none_of_ours(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidInput | IsADirectory)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}
