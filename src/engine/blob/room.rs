//! Blobs within the bounds: what they may take, and which go when there is no room.

use std::cmp::Reverse;
use std::io;

use super::{BlobWriter, Owner, Pin};
use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::layout;
use crate::error::{Error, ErrorKind, Result};

/// How often the oldest of what is there makes room for a piece of a blob on a disk that is full.
const GIVEN_UP_FOR_A_PIECE: u32 = 16;

impl Engine {
    /// Whether a value of this length gets a file of its own.
    pub(crate) fn is_large(&self, len: usize) -> bool {
        len as u64 > self.log.largest_in_log()
    }

    /// Stores a value as a blob that nothing names yet.
    pub(in crate::engine) fn store_blob(&self, value: &[u8]) -> Result<Pin<'_>> {
        let mut writer = self.blobs.create()?;
        self.write_blob(&mut writer, value)?;
        self.seal_blob(writer)
    }

    /// Adds bytes to a blob, and the space for them.
    pub(in crate::engine) fn write_blob(&self, writer: &mut BlobWriter, bytes: &[u8]) -> Result<()> {
        let (len, most) = (writer.len() + bytes.len() as u64, layout::max_blob_len(self.log.budget()));
        if len > most {
            let why = format!("{len} bytes of at most {most}");
            return Err(Error::new(ErrorKind::ValueTooLarge, "write").with_source(why));
        }
        let lacks = writer.lacks(len);
        if lacks > 0 {
            let step = layout::blob_step(self.log.budget());
            writer.add_space(self.log.make_space(lacks.next_multiple_of(step), &self.index, self)?);
        }
        let (mut written, mut left) = (0, GIVEN_UP_FOR_A_PIECE);
        while let Err(e) = writer.write(&bytes[written..], &mut written) {
            let is_full = matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            left = left.saturating_sub(1);
            if !is_full || left == 0 || !self.give_up_something()? {
                return Err(Error::io("write blob", writer.path(), e));
            }
        }
        Ok(())
    }

    pub(in crate::engine) fn seal_blob(&self, writer: BlobWriter) -> Result<Pin<'_>> {
        self.blobs.seal(writer)
    }

    /// Makes room on a disk that is full: the oldest part of the log goes, or the coldest blob.
    fn give_up_something(&self) -> Result<bool> {
        Ok(self.log.drop_oldest(&self.index, self)? || self.give_up_a_blob(0))
    }

    /// Finds the blobs that nothing names any more.
    pub(in crate::engine) fn dead_blobs(&self) -> Vec<u128> {
        self.blobs.take_dead(|owner| self.holds(owner))
    }

    /// Removes the blobs that nothing names any more, once what took their place is on the disk: so that a power cut
    /// does not bring back a record whose value is gone.
    pub(in crate::engine) fn release_blobs(&self) -> Result<()> {
        let dead = self.dead_blobs();
        if !dead.is_empty() {
            self.flush()?;
            self.blobs.release(&dead);
        }
        Ok(())
    }

    /// Whether the index holds this very word.
    fn holds(&self, (hash, word): Owner) -> bool {
        self.slot_of(hash, word).is_some() || {
            // It may just move along its chain.
            let locked = self.index.lock(hash);
            let there = self.slot_of(hash, word).is_some();
            self.note_wiped(locked.wiped());
            there
        }
    }

    /// Removes the dead blobs, or if there are none and the others take more than `beyond` bytes, evicts the coldest of
    /// them. `false` if there was nothing to remove.
    pub(in crate::engine) fn give_up_a_blob(&self, beyond: u64) -> bool {
        let dead = self.dead_blobs();
        if self.blobs.release(&dead) > 0 {
            return true;
        }
        if self.blobs.bytes() <= beyond {
            return false;
        }
        let clock = self.index.recency();
        let owners = self.blobs.evictable();
        let coldest = owners
            .iter()
            .filter_map(|(name, (hash, word))| Some((*name, self.slot_of(*hash, *word)?, word.age())))
            .max_by_key(|(_, slot, age)| (self.hints.get(*slot).age(clock), Reverse(*age)));
        let Some((coldest, ..)) = coldest else { return false };
        let evicted = owners
            .iter()
            .filter(|(name, (hash, word))| {
                *name == coldest && self.slot_of(*hash, *word).is_some_and(|slot| self.evict(slot, *word))
            })
            .count();
        self.counters.add(Counter::Evicted, evicted as u64);
        self.tell_once(&self.told_of_bytes, "max_bytes");
        let dead = self.dead_blobs();
        self.blobs.release(&dead) > 0
    }
}
