//! Blobs within the bounds: reserves the space of a blob, and evicts blobs if there is no room.

use std::cmp::Reverse;
use std::io;

use crate::engine::Engine;
use crate::engine::blob::{BlobOwner, BlobPin, BlobWriter, Haste, Naming};
use crate::engine::counters::Counter;
use crate::engine::format::sizing;
use crate::engine::format::word::Word;
use crate::engine::index::Probe;
use crate::error::{Error, ErrorKind, Result};

/// On a full disk, a write of a piece of a blob evicts the oldest segment or blob and retries,
/// fewer than this many times.
const ATTEMPTS_FOR_A_PIECE: u32 = 16;

impl Engine {
    /// Whether a value of this length gets a file of its own.
    pub(crate) fn is_large(&self, len: usize) -> bool {
        len as u64 > self.log.largest_in_log()
    }

    /// Stores a value as a blob that no entry names yet.
    pub(crate) fn store_blob(&self, value: &[u8], key: &[u8]) -> Result<BlobPin<'_>> {
        let mut writer = self.blobs.create()?;
        self.write_blob(&mut writer, value)?;
        self.seal_blob(writer, key)
    }

    /// Appends bytes to a blob, and reserves space for them.
    pub(crate) fn write_blob(&self, writer: &mut BlobWriter, bytes: &[u8]) -> Result<()> {
        let (len, most) =
            (writer.len() + bytes.len() as u64, sizing::max_blob_len(self.log.budget()));
        if len > most {
            let why = format!("{len} bytes of at most {most}");
            return Err(Error::new(ErrorKind::ValueTooLarge, "write").with_source(why));
        }
        let lacks = writer.lacks(len);
        if lacks > 0 {
            let step = sizing::blob_step(self.log.budget());
            writer.add_space(self.make_space(lacks.next_multiple_of(step))?);
        }
        let (mut written, mut left) = (0, ATTEMPTS_FOR_A_PIECE);
        while let Err(e) = writer.write(&bytes[written..], &mut written) {
            let is_full =
                matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            left = left.saturating_sub(1);
            if !is_full || left == 0 || !self.evict_oldest()? {
                return Err(Error::io("write blob", writer.path(), e));
            }
        }
        Ok(())
    }

    pub(crate) fn seal_blob(&self, writer: BlobWriter, key: &[u8]) -> Result<BlobPin<'_>> {
        self.blobs.seal(writer, self.hasher.hash(key))
    }

    /// The blobs that no entry names any more, of all processes.
    pub(crate) fn dead_blobs(&self, haste: Haste) -> Vec<u128> {
        self.warn_of_blobs(self.blobs.refresh(haste));
        self.blobs.take_dead(self)
    }

    /// Like `dead_blobs`, and recounts the bytes of all blobs. No other process unlinks a blob
    /// meanwhile.
    pub(crate) fn recount_blobs(&self, haste: Haste) -> Vec<u128> {
        self.warn_of_blobs(self.blobs.recount(haste));
        self.blobs.take_dead(self)
    }

    /// Unlinks those of the `dead` blobs that no process keeps and that are still dead. A whole
    /// checkpoint was taken after they were found dead.
    pub(crate) fn release_blobs(&self, dead: &[u128]) {
        self.blobs.release(dead, self);
    }

    fn warn_of_blobs(&self, looked: Result<()>) {
        if let Err(error) = looked {
            tracing::warn!(%error, "cannot list the blobs; only the known ones are considered");
        }
    }

    /// Evicts the coldest blob, if all blobs together take more than `beyond` bytes. `false` if
    /// none was evicted. The next checkpoint frees its space.
    ///
    /// # Errors
    /// `Busy` if the lock of a chain that names it is held for long: its holder is stopped.
    pub(crate) fn evict_a_blob(&self, beyond: u64) -> Result<bool> {
        // If there is nothing else to evict, blobs that other processes have just created count
        // too.
        self.recount_blobs(if beyond == 0 { Haste::Soon } else { Haste::Later });
        let (alive, _) = self.blobs.bytes();
        if alive <= beyond {
            return Ok(false);
        }
        let clock = self.index.recency();
        let coldest = self
            .blobs
            .owners()
            .into_iter()
            .filter_map(|(name, (hash, word))| {
                Some((name, self.index.slot_of(hash, word)?, word.age()))
            })
            .max_by_key(|(_, slot, age)| (self.hints.get(*slot).age(clock), Reverse(*age)));
        let Some((coldest, ..)) = coldest else { return Ok(false) };
        let mut evicted = 0;
        for (hash, word) in self.blobs.owners_of(coldest, self) {
            evicted += u64::from(self.evict_word(hash, word)?);
        }
        self.counters.add(Counter::Evicted, evicted);
        self.tell_once(&self.has_logged_bytes, "max_bytes");
        self.blobs.take_dead(self);
        Ok(evicted > 0)
    }
}

impl Naming for Engine {
    fn holds(&self, (hash, word): BlobOwner) -> bool {
        self.index.slot_of(hash, word).is_some()
    }

    fn find(&self, hash: u64, name: u128) -> Result<Option<Word>> {
        loop {
            let mut refused = None;
            let found = self.index.find(hash, |word| {
                let guard = match self.log.fetch(word.segment()) {
                    Ok(guard) => guard,
                    Err(error) => {
                        refused = Some(error);
                        return Probe::Unreadable;
                    }
                };
                let Some(segment) = guard.get() else { return Probe::Unreadable };
                let blob = segment.record(word.offset()).and_then(|record| record.blob());
                if blob.is_some_and(|blob| blob.name == name) { Probe::Match } else { Probe::Other }
            });
            match (found.entry, refused) {
                (None, Some(error)) => return Err(error),
                (entry, _) => {
                    if let Some((_, word)) = entry.or(found.unreadable) {
                        return Ok(Some(word));
                    }
                }
            }
            // The word may just be moved along its chain.
            let locked = self.index.lock(hash)?;
            self.note_wiped(locked.wiped());
            if locked.unchanged_since(&found) {
                return Ok(None);
            }
        }
    }
}
