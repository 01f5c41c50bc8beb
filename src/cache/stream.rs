//! Values that are written and read piece by piece, so that large ones never need to be in memory.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use bytes::Bytes;

use super::Cache;
use super::call::Call;
use crate::backend::{Change, Codec, Condition, Pieces, Soft, Spool, Streamed};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::Timeout;

impl Cache {
    /// Writes the bytes of `key` piece by piece; [`commit`](Writer::commit) then makes them its value, until `timeout`
    /// has passed from that moment on. Until then, and if the writer is dropped before, the key keeps what it has.
    /// What is stored is what [`set_bytes`](Cache::set_bytes) would store.
    ///
    /// Memory stays flat: beyond a mebibyte (less where `max_bytes` is small) the bytes go to a file of their own.
    /// Its space is taken from `max_bytes` while it grows, so that others make room for it. A cache in memory
    /// collects the bytes. While the writer lives, [`close`](Cache::close) leaves the directory open.
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
    /// `InvalidKey`; `NoSpace` or `Io` if the disk refuses.
    pub fn writer(&self, key: &str, timeout: impl Into<Timeout>) -> Result<Writer> {
        let call = self.call("writer", key)?;
        let spool = self.shared.backend.spool().map_err(|error| call.about(error))?;
        let place = spool.map_or_else(|| Place::Memory(Vec::new()), Place::Spool);
        Ok(Writer { cache: self.clone(), key: key.to_owned(), timeout: timeout.into(), place })
    }

    /// Reads the bytes of `key` piece by piece, from wherever it is asked to: what [`get_bytes`](Cache::get_bytes) would
    /// give. `None` if there is no entry.
    ///
    /// The reader goes on reading the value that it opened, whatever becomes of the entry meanwhile; until it is dropped,
    /// that value's space counts against `max_bytes`. A large value is verified 64 KiB at a time, as it is read, and
    /// takes no more memory than that.
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
    /// `Decode` if the value is no byte array; `InvalidKey`; `Io` if the disk refuses.
    pub fn reader(&self, key: &str) -> Result<Option<Reader>> {
        let call = self.call("reader", key)?;
        let streamed = self.shared.backend.stream(&call.full).map_err(|error| call.about(error))?;
        let Some(streamed) = streamed else { return Ok(None) };
        let reader = Reader::new(streamed, key).map_err(|error| call.about(error))?;
        Ok(Some(reader))
    }
}

/// A value on its way into the cache; see [`Cache::writer`].
///
/// It belongs to the process that began it: in one that was forked from that, it fails with `Interrupted` where the
/// cache is in a directory, and dropping it does nothing.
///
/// An error of [`write`](Write::write) holds an [`Error`] that says why; after one, the writer is of no use any more, and
/// [`commit`](Writer::commit) fails.
#[must_use = "nothing is stored unless it is committed"]
pub struct Writer {
    cache: Cache,
    key: String,
    timeout: Timeout,
    place: Place,
}

enum Place {
    Memory(Vec<u8>),
    Spool(Box<dyn Spool>),
    /// Writing failed.
    Broken,
}

impl Writer {
    /// Makes what was written the value of the key. When it returns, a large value is on the disk, whatever the
    /// durability in use.
    ///
    /// # Errors
    /// `ValueTooLarge`; `NoSpace` or `Io` if the disk refuses; `Interrupted` if a write failed before. Then the key keeps
    /// what it had.
    pub fn commit(self) -> Result<()> {
        let Self { cache, key, timeout, place } = self;
        let call = cache.call("commit", &key)?;
        let expires_at = cache.expiry(timeout);
        match place {
            Place::Memory(value) => {
                call.commit(
                    Condition::Always,
                    Change::Store {
                        value: &value,
                        codec: Codec::Raw,
                        expires_at,
                        soft: Soft::default(),
                    },
                )?;
                Ok(())
            }
            Place::Spool(spool) => {
                spool.commit(&call.full, expires_at).map_err(|error| call.about(error))
            }
            Place::Broken => Err(broken(&call)),
        }
    }
}

fn broken(call: &Call<'_>) -> Error {
    call.fail(ErrorKind::Interrupted).with_source("a write of this value failed before")
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.place {
            Place::Memory(value) => {
                value.extend_from_slice(bytes);
                Ok(())
            }
            Place::Spool(spool) => spool.write(bytes),
            Place::Broken => Err(Error::new(ErrorKind::Interrupted, "write")),
        };
        written.map(|()| bytes.len()).map_err(|error| {
            self.place = Place::Broken;
            io_error(super::call::about(error, "write", Some(&self.key)))
        })
    }

    /// Does nothing: only [`commit`](Writer::commit) makes anything last.
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
/// In a process that was forked since, a large one fails with `Interrupted`: read it with another.
///
/// An error of [`read`](Read::read) holds an [`Error`]: of the kind `Damaged` if what is on the disk is not what was
/// stored. Then the entry is gone for whoever asks for it next.
pub struct Reader {
    key: String,
    value: Value,
    position: u64,
}

enum Value {
    Whole(Bytes),
    Pieces {
        source: Box<dyn Pieces>,
        /// Where in the stored value the bytes begin.
        start: u64,
        len: u64,
    },
}

impl Reader {
    fn new(streamed: Streamed, key: &str) -> Result<Self> {
        let value = match streamed {
            Streamed::Whole(stored) => Value::Whole(codec::into_bytes(stored)?),
            Streamed::Pieces { codec: Codec::Raw, len, source } => {
                Value::Pieces { source, start: 0, len }
            }
            Streamed::Pieces { codec: Codec::MessagePack, len, mut source } => {
                let mut head = [0; codec::LONGEST_BIN_HEAD];
                let there = source.read_at(0, &mut head)?;
                let start = codec::bin_head(&head[..there], len)?;
                Value::Pieces { source, start, len: len - start }
            }
        };
        Ok(Self { key: key.to_owned(), value, position: 0 })
    }

    /// The length of the whole value, in bytes.
    pub fn len(&self) -> u64 {
        match &self.value {
            Value::Whole(value) => value.len() as u64,
            Value::Pieces { len, .. } => *len,
        }
    }

    /// Whether the value has no bytes at all.
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
            Value::Whole(value) => {
                let from = value.len() - usize::try_from(left).unwrap_or(0);
                into.copy_from_slice(&value[from..from + most]);
                most
            }
            Value::Pieces { source, start, .. } => source
                .read_at(*start + self.position, into)
                .map_err(|error| io_error(super::call::about(error, "read", Some(&self.key))))?,
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
            || io::Error::new(io::ErrorKind::InvalidInput, "a position before the start");
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
