//! What a read found, and how its value is given to the caller: in place, or as a copy.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::blob::OpenBlob;
use crate::engine::format::record::Record;
use crate::engine::format::word::Word;
use crate::engine::log::segment::{Segment, SegmentPin};
use crate::entry::{Expiry, Item, Soft, Stored};
use crate::error::{Error, ErrorKind, Result};

/// Values up to this many bytes are copied. Larger values are returned in place: each keeps its
/// segment mapped until the caller drops it.
const COPY_LIMIT: usize = 4 << 10;

/// A live, verified entry in the log.
pub(crate) struct Hit<'a> {
    pub(super) segment: &'a Arc<Segment>,
    pub(super) record: &'a Record<'a>,
    pub(super) value: &'a [u8],
    pub(super) soft: Soft,
    /// At most this many bytes of segments may stay mapped for values that the program holds.
    pub(super) most_pinned: u64,
}

/// The source of a hit.
pub(crate) enum ValueSource<'a> {
    HotTier {
        stored: Stored,
        generation: u32,
    },
    Log(Hit<'a>),
    /// Opened, not verified yet.
    Blob {
        blob: OpenBlob,
        record: &'a Record<'a>,
        soft: Soft,
    },
}

impl<'a> ValueSource<'a> {
    pub(super) fn expires_at(&self) -> Expiry {
        match self {
            Self::HotTier { stored, .. } => stored.expires_at,
            Self::Log(Hit { record, .. }) | Self::Blob { record, .. } => record.expires_at,
        }
    }

    /// Loads and verifies the value of a blob; other sources are returned as they are. `None` if
    /// the value is damaged.
    pub(super) fn whole(self) -> Result<Option<Self>> {
        let Self::Blob { blob, record, soft } = self else { return Ok(Some(self)) };
        let value = blob.load().map_err(|e| Error::new(ErrorKind::Io, "read").with_source(e))?;
        Ok(value.map(|value| Self::HotTier {
            stored: stored(record, soft, value),
            generation: record.generation,
        }))
    }

    /// The entry. A blob's value must be loaded ([`whole`](Self::whole)); otherwise it is empty.
    pub(crate) fn item(&self) -> Item<'_> {
        match self {
            Self::HotTier { stored, .. } => stored.item(),
            Self::Log(hit) => Item {
                value: hit.value,
                codec: hit.record.codec,
                expires_at: hit.record.expires_at,
                soft: hit.soft,
                token: hit.record.sequence,
            },
            Self::Blob { record, soft, .. } => Item {
                value: &[],
                codec: record.codec,
                expires_at: record.expires_at,
                soft: *soft,
                token: record.sequence,
            },
        }
    }

    pub(super) fn generation(&self) -> u32 {
        match self {
            Self::HotTier { generation, .. } => *generation,
            Self::Log(Hit { record, .. }) | Self::Blob { record, .. } => record.generation,
        }
    }

    /// Whether a page of the segment that it is in faulted since.
    pub(super) fn has_faulted(&self) -> bool {
        matches!(self, Self::Log(hit) if hit.segment.has_faulted())
    }

    /// The entry to keep. A blob's value must be loaded ([`whole`](Self::whole)); otherwise it is
    /// empty.
    pub(crate) fn into_stored(self) -> Stored {
        match self {
            Self::HotTier { stored, .. } => stored,
            Self::Log(hit) => stored(hit.record, hit.soft, hit.share()),
            Self::Blob { record, soft, .. } => stored(record, soft, Bytes::new()),
        }
    }
}

/// Bytes of a segment. The segment stays mapped until they are dropped.
struct Pinned {
    segment: SegmentPin,
    offset: usize,
    len: usize,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.segment.bytes_at(self.offset, self.len)
    }
}

pub(super) fn stored(record: &Record<'_>, soft: Soft, value: Bytes) -> Stored {
    Stored {
        value,
        codec: record.codec,
        expires_at: record.expires_at,
        soft,
        token: record.sequence,
    }
}

impl Hit<'_> {
    /// The value to keep: in place, unless that pins too much of the log; else a copy.
    fn share(&self) -> Bytes {
        let pin =
            (self.value.len() > COPY_LIMIT).then(|| self.segment.pin(self.most_pinned)).flatten();
        let Some(segment) = pin else { return Bytes::copy_from_slice(self.value) };
        let (offset, len) = (self.segment.offset_of(self.value), self.value.len());
        Bytes::from_owner(Pinned { segment, offset, len })
    }
}

/// Visits an entry in the log: in place, or, where a fault could put zeros there, a copy.
pub(super) fn visit_hit(hit: Hit<'_>, word: Word, visit: &mut dyn FnMut(&[u8], Item<'_>)) {
    if !hit.segment.contains_faults() {
        return visit(hit.record.key, ValueSource::Log(hit).item());
    }
    let (segment, key) = (hit.segment, hit.record.key.to_vec());
    let copy = ValueSource::Log(hit).into_stored();
    if !segment.has_faulted() || is_whole(segment, word) {
        visit(&key, copy.item());
    }
}

/// Whether key and value of the record that `word` names are sound. If they are after a fault, they
/// were before: see [`sys::sigbus`](crate::sys).
#[cold]
pub(super) fn is_whole(segment: &Segment, word: Word) -> bool {
    segment.record(word.offset()).is_some_and(|record| record.content().is_some())
}
