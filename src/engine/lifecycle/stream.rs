//! Values that the program reads and writes in pieces: a blob is read chunk by chunk, and a value
//! is written to memory first and to a blob when it becomes large.

use std::sync::{Arc, Weak};

use crate::engine::blob::{BlobPin, BlobWriter, OpenBlob};
use crate::engine::format::blob_ref::CHUNK;
use crate::engine::format::word::Word;
use crate::engine::lifecycle::attach::{Attached, AttachmentCell};
use crate::engine::ops::value_source::ValueSource;
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
/// attached, unless its files are removed or replaced.
pub(crate) struct Spooled {
    attached: Arc<AttachmentCell>,
    small: Vec<u8>,
    large: Option<BlobWriter>,
}

impl Spooled {
    pub(crate) fn new(attached: Arc<Attached>) -> Self {
        let cell = Arc::new(AttachmentCell::default());
        attached.note_holder(&cell);
        cell.swap(Some(attached));
        Self { attached: cell, small: Vec::new(), large: None }
    }

    fn attached(&self) -> Result<Arc<Attached>> {
        let interrupted = || Error::new(ErrorKind::Interrupted, "write");
        let Some(attached) = self.attached.load().clone() else {
            return Err(self.attached.error().unwrap_or_else(interrupted));
        };
        if attached.is_ours() {
            return Ok(attached);
        }
        // It is the parent's: not even the last reference may be dropped here.
        std::mem::forget(attached);
        let why = "the writer belongs to the process that this one was forked from";
        Err(interrupted().with_source(why))
    }
}

impl Spool for Spooled {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let attached = self.attached()?;
        if self.large.is_none() {
            if !attached.is_large(self.small.len() + bytes.len()) {
                self.small.extend_from_slice(bytes);
                return Ok(());
            }
            let mut writer = attached.blobs.create()?;
            attached.write_blob(&mut writer, &self.small)?;
            self.small = Vec::new();
            self.large = Some(writer);
        }
        match &mut self.large {
            Some(writer) => attached.write_blob(writer, bytes),
            None => Ok(()),
        }
    }

    fn commit(self: Box<Self>, key: &str, expires_at: Expiry) -> Result<()> {
        let attached = self.attached()?;
        let Self { small, large, .. } = *self;
        let blob: Option<BlobPin<'_>> =
            large.map(|writer| attached.seal_blob(writer, key.as_bytes())).transpose()?;
        let change =
            Change::Store { value: &small, codec: Codec::Raw, expires_at, soft: Soft::default() };
        attached.commit_with(key.as_bytes(), Condition::Always, change, blob)?;
        attached.check_index()
    }
}
