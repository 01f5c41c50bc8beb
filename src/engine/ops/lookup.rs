//! Lookup: finds the record of a key, with or without the lock of its chain.

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::format::word::Word;
use crate::engine::index::{Found, Probe, Slot, busy};
use crate::engine::log::segment_map::SegmentGuard;
use crate::entry::Expiry;
use crate::error::Result;

/// How often a lookup starts over because what its word names is gone. Each time, another thread or
/// process made progress.
pub(crate) const RETRIES: usize = 64;

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
    /// The length of the key's record, live or not, and of its blob; 0 if there is none, or it
    /// cannot be read: the call for which this is asked returns the error.
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
    #[inline(always)]
    pub(crate) fn look(&self, hash: u64, key: &[u8]) -> Result<Lookup> {
        let seen = self.look_settled(hash, key, |id| self.log.fetch(id));
        // Not unwrapped: what was seen is large, and would be copied.
        match &seen {
            Ok(Lookup { found, .. }) if self.has_met_fault(found) => self.look_again(hash, key),
            _ => seen,
        }
    }

    fn has_met_fault(&self, found: &Found) -> bool {
        found.unreadable.is_some_and(|(_, word)| self.log.has_faulted(word.segment()))
    }

    /// Looks again after a fault. This maps the segment again. A copy of the look of its own, so
    /// that the usual one stays inline.
    #[cold]
    #[inline(never)]
    fn look_again(&self, hash: u64, key: &[u8]) -> Result<Lookup> {
        self.look_settled(hash, key, |id| self.log.fetch(id))
    }

    /// Looks until nothing that the result depends on changed meanwhile.
    #[inline(always)]
    fn look_settled(
        &self,
        hash: u64,
        key: &[u8],
        mut hold: impl FnMut(u32) -> Result<SegmentGuard>,
    ) -> Result<Lookup> {
        for _ in 0..RETRIES {
            let seen = self.look_through(hash, key, &mut hold)?;
            let is_moved = |(slot, word): (Slot, Word)| self.index.word(slot) != word;
            if seen.found.entry.is_some() || !seen.found.unreadable.is_some_and(is_moved) {
                return Ok(seen);
            }
        }
        Err(busy("look up an entry"))
    }

    /// Wipes the words of the key's chain that do not match their check, and says whether there
    /// were any: one may hide the key, or name an older record of it. A look does not check that,
    /// because the lock does, but a call that returns without the lock must.
    pub(crate) fn wipes_damage(&self, hash: u64) -> Result<bool> {
        let found = self.index.find(hash, |_| Probe::Other);
        if !self.index.is_damaged(hash, &found) {
            return Ok(false);
        }
        self.note_wiped(self.index.lock(hash)?.wiped());
        Ok(true)
    }

    /// Like `look`, under the lock of the chain, where no file may be opened. `None` if a segment
    /// must be opened first: a `look` without the lock opens it.
    pub(crate) fn look_locked(&self, hash: u64, key: &[u8]) -> Option<Lookup> {
        let mut is_all_open = true;
        let seen = self.look_through(hash, key, |id| {
            let guard = self.log.segment(id);
            let is_open = guard.get().is_some_and(|segment| !segment.has_faulted());
            is_all_open &= is_open || !self.log.is_readable(id);
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
        seen.current.filter(|c| c.generation >= generation && !self.had_passed(c.expires_at))
    }

    /// Whether the key's record, expired or not, is already counted as an entry.
    pub(crate) fn is_counted(&self, seen: &Lookup) -> bool {
        seen.current.is_some_and(|c| c.generation == self.index.generation())
    }

    /// Generation and length of the record that `word` names. `None` if it cannot be read, for
    /// whatever reason: callers then assume that the entry is counted.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Attached;
    use crate::entry::{Change, Codec, Condition, Outcome, Soft};
    use crate::options::Options;
    use crate::sys::storage::SYSTEM;

    fn set(engine: &Engine, value: &[u8]) {
        let soft = Soft::default();
        let change = Change::Store { value, codec: Codec::Raw, expires_at: None, soft };
        engine.commit(b"k", Condition::Always, change).unwrap();
    }

    fn opened(dir: &std::path::Path) -> std::sync::Arc<Attached> {
        let options = Options { max_entries: 1000, max_bytes: 4 << 20, ..Options::default() };
        Attached::open(SYSTEM, dir, &options).unwrap()
    }

    #[test]
    fn a_record_that_is_moved_during_a_look_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let engine = opened(dir.path());
        set(&engine, b"first");
        let hash = engine.hasher.hash(b"k");
        let mut looks = 0;
        let seen = engine.look_settled(hash, b"k", |id| {
            looks += 1;
            if looks > 1 {
                return engine.log.fetch(id);
            }
            // The word is loaded. Now its record is superseded and its segment removed.
            set(&engine, b"second");
            Ok(engine.log.segment(id + 1))
        });
        assert!(seen.unwrap().current.is_some() && looks == 2);
        // A record that stays unreadable is damaged.
        let seen = engine.look_settled(hash, b"k", |id| Ok(engine.log.segment(id + 1))).unwrap();
        assert!(seen.current.is_none() && seen.found.unreadable.is_some());
    }

    #[test]
    fn a_delete_whose_key_a_damaged_word_hides_logs_a_tombstone() {
        let dir = tempfile::tempdir().unwrap();
        let engine = opened(dir.path());
        set(&engine, b"first");
        let hash = engine.hasher.hash(b"k");
        let (slot, word) = engine.look(hash, b"k").unwrap().found.entry.unwrap();
        engine.index.damage_word(slot, Word(word.0 ^ 1 << 60));
        let commits = engine.log.appended();
        let deleted = engine.commit(b"k", Condition::Always, Change::Delete).unwrap();
        assert_eq!(deleted, Outcome::Refused { current: None });
        assert!(engine.log.appended() > commits, "no tombstone");
    }
}
