//! Lookup: finds the record of a key, with or without the lock of its chain.

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::format::word::Word;
use crate::engine::index::{Found, Probe, Slot};
use crate::engine::log::segment_map::SegmentGuard;
use crate::entry::Expiry;
use crate::error::Result;

/// The key's record as its header describes it, expired or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Current {
    pub(crate) slot: Slot,
    pub(crate) word: Word,
    pub(crate) sequence: u64,
    pub(crate) generation: u32,
    pub(crate) expires_at: Expiry,
    pub(crate) len: u32,
}

/// What the index holds for a key.
pub(crate) struct Lookup {
    pub(crate) found: Found,
    pub(crate) current: Option<Current>,
}

impl Engine {
    /// The length of the key's record, live or not, and of its blob; 0 if there is none.
    pub(crate) fn weight(&self, key: &[u8]) -> usize {
        let Ok(seen) = self.look(self.hasher.hash(key), key) else { return 0 };
        seen.current.map_or(0, |current| {
            let guard = self.log.segment(current.word.segment());
            let record = guard.get().and_then(|segment| segment.record(current.word.offset()));
            let blob = record.and_then(|record| record.blob());
            (current.len as usize).saturating_add(blob.map_or(0, |blob| blob.len as usize))
        })
    }

    /// Finds the key's record, live or not.
    ///
    /// # Errors
    /// If the environment refuses to open a segment that may hold it.
    pub(crate) fn look(&self, hash: u64, key: &[u8]) -> Result<Lookup> {
        self.look_through(hash, key, |id| self.log.fetch(id))
    }

    /// Like `look`, under the lock of the chain, where no file may be opened. `None` if a segment
    /// must be opened first: a `look` without the lock opens it.
    pub(crate) fn look_locked(&self, hash: u64, key: &[u8]) -> Option<Lookup> {
        let mut is_all_open = true;
        let seen = self.look_through(hash, key, |id| {
            let guard = self.log.segment(id);
            is_all_open &= guard.get().is_some() || !self.log.is_readable(id);
            Ok(guard)
        });
        seen.ok().filter(|_| is_all_open)
    }

    fn look_through(
        &self,
        hash: u64,
        key: &[u8],
        mut hold: impl FnMut(u32) -> Result<SegmentGuard>,
    ) -> Result<Lookup> {
        let (mut header, mut refused) = (None, None);
        let found = self.index.find(hash, |word| {
            self.log.prefetch(word);
            let guard = match hold(word.segment()) {
                Ok(guard) => guard,
                Err(error) => {
                    refused = Some(error);
                    return Probe::Match;
                }
            };
            let Some(segment) = guard.get() else {
                return Probe::Unreadable;
            };
            let Some(record) = segment.record(word.offset()) else { return Probe::Unreadable };
            if record.key != key {
                return Probe::Other;
            }
            header = Some((record.sequence, record.generation, record.expires_at, record.len));
            Probe::Match
        });
        if let Some(error) = refused {
            return Err(error);
        }
        let current = found.entry.zip(header).map(
            |((slot, word), (sequence, generation, expires_at, len))| Current {
                slot,
                word,
                sequence,
                generation,
                expires_at,
                len,
            },
        );
        Ok(Lookup { found, current })
    }

    pub(crate) fn live(&self, seen: &Lookup, generation: u32) -> Option<Current> {
        seen.current.filter(|c| c.generation >= generation && !self.has_passed(c.expires_at))
    }

    /// Whether the key's record, expired or not, is already counted as an entry.
    pub(crate) fn is_counted(&self, seen: &Lookup) -> bool {
        seen.current.is_some_and(|c| c.generation == self.index.generation())
    }

    /// Generation and length of the record that `word` names.
    pub(crate) fn header_of(&self, word: Word) -> Option<(u32, u32)> {
        header_in(&self.log.fetch(word.segment()).ok()?, word)
    }

    pub(crate) fn note_wiped(&self, wiped: usize) {
        if wiped > 0 {
            self.counters.add(Counter::Corrupt, wiped as u64);
            self.index.set_wants_recount(true);
            tracing::warn!(
                dir = %self.dir.display(),
                entries = wiped,
                "wiped a damaged part of the index"
            );
        }
    }
}

pub(crate) fn header_in(guard: &SegmentGuard, word: Word) -> Option<(u32, u32)> {
    guard.get()?.record(word.offset()).map(|record| (record.generation, record.len))
}
