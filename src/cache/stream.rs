//! Streams: values that are written and read piece by piece, so that large ones never have to fit
//! into memory.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use bytes::Bytes;

use super::Cache;
use super::call::Call;
use super::io::now;
use crate::backend::{Codec, Pieces, Spool, Streamed};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

impl Cache {
    /// A writer for the bytes of `key`, piece by piece. [`commit`](Writer::commit) makes them the
    /// value of the key, until `timeout` has passed since the commit. Before that, or if the writer
    /// is dropped, the key keeps its entry. The result is the same as that of
    /// [`set_bytes`](Cache::set_bytes).
    ///
    /// Memory stays bounded: beyond 1 MiB (less if `max_bytes` is small) the bytes go to a file of
    /// their own. The file counts against `max_bytes` while it grows, and other entries are evicted
    /// for it. A cache in memory collects the bytes in memory. While the writer exists,
    /// [`close`](Cache::close) leaves the directory open.
    ///
    /// ```
    /// use keepwarm::{Cache, Timeout};
    /// use std::io::Write;
    ///
    /// let cache = Cache::in_memory();
    /// let mut writer = cache.writer("report", Timeout::Never)?;
    /// for line in 0..1000 {
    ///     writeln!(writer, "line {line}").unwrap();
    /// }
    /// writer.commit()?;
    /// assert!(cache.get_bytes("report")?.unwrap().ends_with(b"line 999\n"));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidKey`. `NoSpace` or `Io` if the disk is full or fails.
    pub fn writer(&self, key: &str, timeout: impl Into<Timeout>) -> Result<Writer> {
        let call = self.call("writer", key)?;
        let spool = self.shared.backend.spool().map_err(|error| call.about(error))?;
        let buffer = spool.map_or_else(|| Buffer::Memory(Vec::new()), Buffer::Spool);
        Ok(Writer { cache: self.clone(), key: key.to_owned(), timeout: timeout.into(), buffer })
    }

    /// A reader for the bytes of `key`, piece by piece and from any position: those that
    /// [`get_bytes`](Cache::get_bytes) returns. `None` if there is no entry.
    ///
    /// The reader keeps reading the value that it opened, even if the entry is replaced or removed
    /// meanwhile. Until the reader is dropped, the space of that value counts against `max_bytes`.
    /// A large value is verified as it is read, 64 KiB at a time, and takes no more memory than
    /// that.
    ///
    /// ```
    /// use keepwarm::{Cache, Timeout};
    /// use std::io::{Read, Seek, SeekFrom};
    ///
    /// let cache = Cache::in_memory();
    /// cache.set_bytes("page", b"<html></html>", Timeout::Never)?;
    /// let mut reader = cache.reader("page")?.unwrap();
    /// assert_eq!(reader.len(), 13);
    /// reader.seek(SeekFrom::End(-7)).unwrap();
    /// let mut end = String::new();
    /// reader.read_to_string(&mut end).unwrap();
    /// assert_eq!(end, "</html>");
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Decode` if the value is not a byte array. `InvalidKey`. `Io` if the disk fails.
    pub fn reader(&self, key: &str) -> Result<Option<Reader>> {
        let call = self.call("reader", key)?;
        let streamed = self.shared.backend.stream(&call.full).map_err(|error| call.about(error))?;
        let Some(streamed) = streamed else { return Ok(None) };
        let reader = Reader::new(streamed, key).map_err(|error| call.about(error))?;
        Ok(Some(reader))
    }
}

/// A value that is being written; see [`Cache::writer`].
///
/// A writer belongs to the process that created it. In a child forked from that process, a writer
/// for a directory fails with `Interrupted`, and dropping it does nothing.
///
/// An error of [`write`](Write::write) contains an [`Error`] with the reason. After an error the
/// writer cannot be used any more, and [`commit`](Writer::commit) fails.
#[must_use = "nothing is stored unless it is committed"]
pub struct Writer {
    cache: Cache,
    key: String,
    timeout: Timeout,
    buffer: Buffer,
}

enum Buffer {
    Memory(Vec<u8>),
    Spool(Box<dyn Spool>),
    /// A write has failed.
    Failed,
}

impl Writer {
    /// Makes the written bytes the value of the key. When it returns, a large value is on the disk,
    /// whatever the durability: that costs a sync of its file.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # use std::io::Write;
    /// # let cache = Cache::in_memory();
    /// let mut writer = cache.writer("page", Timeout::Never)?;
    /// writer.write_all(b"<html>").unwrap();
    /// writer.commit()?;
    /// assert_eq!(cache.get_bytes("page")?.as_deref(), Some(&b"<html>"[..]));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ValueTooLarge`. `NoSpace` or `Io` if the disk is full or fails. `Interrupted` if an earlier
    /// write failed. Then the key keeps its entry.
    pub fn commit(self) -> Result<()> {
        let Self { cache, key, timeout, buffer } = self;
        let call = cache.call("commit", &key)?;
        let expires_at = cache.expiry(timeout);
        match buffer {
            Buffer::Memory(value) => now(call.set(call.blocking(), Codec::Raw, &value, expires_at)),
            Buffer::Spool(spool) => {
                spool.commit(&call.full, expires_at).map_err(|error| call.about(error))
            }
            Buffer::Failed => Err(write_failed(&call)),
        }
    }
}

fn write_failed(call: &Call<'_>) -> Error {
    call.fail(ErrorKind::Interrupted).with_source("an earlier write of this value failed")
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.buffer {
            Buffer::Memory(value) => {
                value.extend_from_slice(bytes);
                Ok(())
            }
            Buffer::Spool(spool) => spool.write(bytes),
            Buffer::Failed => Err(Error::new(ErrorKind::Interrupted, "write")),
        };
        written.map(|()| bytes.len()).map_err(|error| {
            self.buffer = Buffer::Failed;
            io_error(super::context::about(error, "write", Some(&self.key)))
        })
    }

    /// Does nothing: only [`commit`](Writer::commit) stores the value.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A value that is read piece by piece; see [`Cache::reader`].
///
/// In a child that was forked since, a reader of a large value fails with `Interrupted`; create a
/// new one there.
///
/// An error of [`read`](Read::read) contains an [`Error`]. Its kind is `Damaged` if the bytes on
/// the disk are not those that were stored; later reads of the key are then misses.
pub struct Reader {
    key: String,
    value: ReaderSource,
    position: u64,
}

enum ReaderSource {
    Whole(Bytes),
    Pieces {
        source: Box<dyn Pieces>,
        /// The offset of the bytes within the stored value.
        start: u64,
        len: u64,
    },
}

impl Reader {
    fn new(streamed: Streamed, key: &str) -> Result<Self> {
        let value = match streamed {
            Streamed::Whole(stored) => ReaderSource::Whole(codec::into_bytes(stored)?),
            Streamed::Pieces { codec: Codec::Raw, len, source } => {
                ReaderSource::Pieces { source, start: 0, len }
            }
            Streamed::Pieces { codec: Codec::MessagePack, len, mut source } => {
                let mut head = [0; codec::LONGEST_BIN_HEAD];
                let there = source.read_at(0, &mut head)?;
                let start = codec::bin_head(&head[..there], len)?;
                ReaderSource::Pieces { source, start, len: len - start }
            }
        };
        Ok(Self { key: key.to_owned(), value, position: 0 })
    }

    /// The length of the whole value, in bytes. Free.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let cache = Cache::in_memory();
    /// cache.set_bytes("page", b"<html>", Timeout::Never)?;
    /// let reader = cache.reader("page")?.unwrap();
    /// assert!(reader.len() == 6 && !reader.is_empty());
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    pub fn len(&self) -> u64 {
        match &self.value {
            ReaderSource::Whole(value) => value.len() as u64,
            ReaderSource::Pieces { len, .. } => *len,
        }
    }

    /// Whether the value has no bytes. Free.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.len().saturating_sub(self.position);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let into = &mut into[..most];
        let read = match &mut self.value {
            ReaderSource::Whole(value) => {
                let from = value.len() - usize::try_from(left).unwrap_or(0);
                into.copy_from_slice(&value[from..from + most]);
                most
            }
            ReaderSource::Pieces { source, start, .. } => source
                .read_at(*start + self.position, into)
                .map_err(|error| io_error(super::context::about(error, "read", Some(&self.key))))?,
        };
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let before_start =
            || io::Error::new(io::ErrorKind::InvalidInput, "seek to a position before the start");
        self.position = position.ok_or_else(before_start)?;
        Ok(self.position)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("key", &self.key)
            .field("len", &self.len())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

fn io_error(error: Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::NoSpace => io::ErrorKind::StorageFull,
        ErrorKind::ValueTooLarge => io::ErrorKind::FileTooLarge,
        ErrorKind::Damaged => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
