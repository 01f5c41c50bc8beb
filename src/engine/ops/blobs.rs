//! Blobs within the bounds: what they may take, and which go when there is no room.

use std::cmp::Reverse;
use std::io;

use crate::engine::Engine;
use crate::engine::blob::{BlobOwner, BlobPin, BlobWriter, Haste, Naming};
use crate::engine::counters::Counter;
use crate::engine::format::sizing;
use crate::engine::format::word::Word;
use crate::engine::index::Probe;
use crate::error::{Error, ErrorKind, Result};

/// How often the oldest of what is there makes room for a piece of a blob on a disk that is full.
const GIVEN_UP_FOR_A_PIECE: u32 = 16;

impl Engine {
    /// Whether a value of this length gets a file of its own.
    pub(crate) fn is_large(&self, len: usize) -> bool {
        len as u64 > self.log.largest_in_log()
    }

    /// Stores a value as a blob that nothing names yet.
    pub(crate) fn store_blob(&self, value: &[u8], key: &[u8]) -> Result<BlobPin<'_>> {
        let mut writer = self.blobs.create()?;
        self.write_blob(&mut writer, value)?;
        self.seal_blob(writer, key)
    }

    /// Adds bytes to a blob, and the space for them.
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
        let (mut written, mut left) = (0, GIVEN_UP_FOR_A_PIECE);
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

    /// The blobs that nothing names any more, whoever made them.
    pub(crate) fn dead_blobs(&self, haste: Haste) -> Vec<u128> {
        self.warn_of_blobs(self.blobs.refresh(haste));
        self.blobs.take_dead(self)
    }

    /// The same, with their bytes counted anew: nobody else unlinks any meanwhile.
    pub(crate) fn recount_blobs(&self, haste: Haste) -> Vec<u128> {
        self.warn_of_blobs(self.blobs.recount(haste));
        self.blobs.take_dead(self)
    }

    /// Unlinks those of the `dead` that nobody keeps and that are still dead. Since they were found dead, a checkpoint began
    /// and came to its end.
    pub(crate) fn release_blobs(&self, dead: &[u128]) {
        self.blobs.release(dead, self);
    }

    fn warn_of_blobs(&self, looked: Result<()>) {
        if let Err(error) = looked {
            tracing::warn!(%error, "cannot see which blobs there are; those that are known are gone by");
        }
    }

    /// Evicts the coldest blob, if all of them take more than `beyond` bytes. `false` if none was evicted. Its space comes
    /// back with the next checkpoint.
    ///
    /// # Errors
    /// `Busy` if somebody holds a chain for long that names it: whoever does is stopped.
    pub(crate) fn evict_a_blob(&self, beyond: u64) -> Result<bool> {
        // Where there is nothing else, what others made just now counts too.
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
        self.tell_once(&self.told_of_bytes, "max_bytes");
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
            // It may just move along its chain.
            let locked = self.index.lock(hash)?;
            self.note_wiped(locked.wiped());
            if locked.unchanged_since(&found) {
                return Ok(None);
            }
        }
    }
}
