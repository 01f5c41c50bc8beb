//! Values that the program reads and writes in pieces: a blob is read chunk by chunk, and a value
//! is written to memory first and to a blob when it becomes large.

use std::sync::{Arc, Weak};

use crate::engine::blob::{BlobPin, BlobWriter, OpenBlob};
use crate::engine::format::blob_ref::CHUNK;
use crate::engine::format::word::Word;
use crate::engine::lifecycle::attach::Attached;
use crate::engine::ops::read::ValueSource;
use crate::entry::{Change, Codec, Condition, Expiry, Pieces, Soft, Spool, Streamed};
use crate::error::{Error, ErrorKind, Result};

/// Reads a blob at any offset. Reads and verifies one chunk at a time.
pub(crate) struct BlobSource {
    blob: OpenBlob,
    chunk: Vec<u8>,
    /// The number of the chunk that is in `chunk`.
    number: Option<u64>,
    /// Removes the entry of a damaged blob. Weak: after the directory was closed, the index does
    /// not change any more.
    attached: Weak<Attached>,
    owner: (u64, Word),
}

impl BlobSource {
    fn new(blob: OpenBlob, attached: Weak<Attached>, owner: (u64, Word)) -> Self {
        Self { blob, chunk: Vec::new(), number: None, attached, owner }
    }
}

impl Pieces for BlobSource {
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<usize> {
        if at >= self.blob.len() {
            return Ok(0);
        }
        let number = at / CHUNK as u64;
        if self.number != Some(number) {
            self.number = None;
            let read = self.blob.read_chunk(number, &mut self.chunk);
            let is_sound = read.map_err(|e| {
                let inherited = e.kind() == std::io::ErrorKind::Interrupted;
                let kind = if inherited { ErrorKind::Interrupted } else { ErrorKind::Io };
                Error::new(kind, "read").with_source(e)
            })?;
            if !is_sound {
                if let Some(attached) = self.attached.upgrade() {
                    attached.drop_named(self.owner);
                }
                let why =
                    format!("the bytes from {} on are not the stored ones", number * CHUNK as u64);
                return Err(Error::new(ErrorKind::Damaged, "read").with_source(why));
            }
            self.number = Some(number);
        }
        let rest = self.chunk.get((at % CHUNK as u64) as usize..).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

impl Attached {
    /// The live entry of `key`; in pieces if it is a blob.
    pub(crate) fn stream(self: &Arc<Self>, key: &[u8]) -> Result<Option<Streamed>> {
        let hash = self.hasher.hash(key);
        self.look_for(key, &mut |source, word| {
            Ok(Some(match source {
                ValueSource::Blob { blob, record, .. } => {
                    let (codec, len) = (record.codec, blob.len());
                    let source = BlobSource::new(blob, Arc::downgrade(self), (hash, word));
                    Streamed::Pieces { codec, len, source: Box::new(source) }
                }
                source => Streamed::Whole(source.into_stored()),
            }))
        })
    }
}

/// A value that is being written: in memory while it is small, then in a blob. Keeps the directory
/// attached.
pub(crate) struct Spooled {
    attached: Arc<Attached>,
    small: Vec<u8>,
    large: Option<BlobWriter>,
}

impl Spooled {
    pub(crate) fn new(attached: Arc<Attached>) -> Self {
        Self { attached, small: Vec::new(), large: None }
    }

    fn check_ours(&self) -> Result<()> {
        if self.attached.is_ours() {
            return Ok(());
        }
        let why = "the writer belongs to the process that this one was forked from";
        Err(Error::new(ErrorKind::Interrupted, "write").with_source(why))
    }
}

impl Spool for Spooled {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_ours()?;
        if self.large.is_none() {
            if !self.attached.is_large(self.small.len() + bytes.len()) {
                self.small.extend_from_slice(bytes);
                return Ok(());
            }
            let mut writer = self.attached.blobs.create()?;
            self.attached.write_blob(&mut writer, &self.small)?;
            self.small = Vec::new();
            self.large = Some(writer);
        }
        match &mut self.large {
            Some(writer) => self.attached.write_blob(writer, bytes),
            None => Ok(()),
        }
    }

    fn commit(self: Box<Self>, key: &str, expires_at: Expiry) -> Result<()> {
        self.check_ours()?;
        let Self { attached, small, large } = *self;
        let blob: Option<BlobPin<'_>> =
            large.map(|writer| attached.seal_blob(writer, key.as_bytes())).transpose()?;
        let change =
            Change::Store { value: &small, codec: Codec::Raw, expires_at, soft: Soft::default() };
        attached.commit_with(key.as_bytes(), Condition::Always, change, blob)?;
        Ok(())
    }
}
