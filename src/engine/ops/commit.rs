//! The commit: the only write path.
//!
//! ```text
//! find without the lock; if the condition fails already, or there is nothing to do: return,
//!     nothing is logged
//! reserve space in the log, copy key and body, compute their checks
//! lock the chain; if it changed since: find again; decide again
//! a new key: count up, or at the bound: unlock, make room, start over
//! take the sequence, stamp the header; publish the word (or empty the slot); unlock
//! ```
//!
//! A record is stamped under the lock and the stamp is never withdrawn. So the log and the index
//! always agree on which write of a key came last. A write whose condition failed leaves only dead
//! space.

use crate::engine::Engine;
use crate::engine::blob::BlobPin;
use crate::engine::counters::Counter;
use crate::engine::format::record::{self, Draft, Fields, Kind, MAX_KEY_LEN, Prepared, Stamp};
use crate::engine::format::word::Word;
use crate::engine::hints::Hint;
use crate::engine::index::{CountUp, Locked, Slot, Vacancy, busy};
use crate::engine::log::append::RecordReservation;
use crate::engine::log::segment::Segment;
use crate::engine::ops::lookup::{Current, Lookup, header_in};
use crate::entry::{Change, Codec, Condition, Decided, Expiry, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::step;
use crate::sys::wait::Backoff;

/// What a commit changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppliedChange {
    pub(crate) hash: u64,
    /// Where its record is.
    pub(crate) offset: u32,
    /// The word that it published; `None` if it removed one.
    pub(crate) word: Option<Word>,
    /// The record that the key had before, live or not.
    pub(crate) before: Option<Current>,
    /// The generation in which it counted a new entry, if it did.
    pub(crate) counted_in: Option<u32>,
}

/// What a commit does, given the change and the current entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Put {
        expires_at: Expiry,
    },
    Remove,
    /// There is no entry, but a recovery could restore an evicted one. A tombstone prevents that.
    Bury(Outcome),
    Return(Outcome),
}

/// A requested change of one key.
struct CommitRequest<'a> {
    key: &'a [u8],
    /// Of the key.
    hash: u64,
    condition: Condition,
    change: Change<'a>,
    /// Holds the value of a `Store`.
    blob: Option<&'a BlobPin<'a>>,
}

/// A record whose key and body are written, but whose header is not stamped yet.
struct Written {
    reservation: RecordReservation,
    prepared: Prepared,
}

/// Why an attempt must start over.
enum Retry {
    Changed,
    /// The number of entries is at its bound.
    Full,
    /// The chain has no free slot, and entries of a generation that `clear` ended still occupy
    /// slots elsewhere.
    Unswept,
}

/// The state of the key, confirmed under the lock of its chain.
struct Confirmed {
    seen: Lookup,
    /// The record of the key, if it is neither expired nor of an older generation.
    live: Option<Current>,
    generation: u32,
}

/// Why a decision made without the lock does not hold under it.
enum Unconfirmed {
    Return(Outcome),
    Changed,
}

impl Engine {
    pub(crate) fn commit(
        &self,
        key: &[u8],
        condition: Condition,
        change: Change<'_>,
    ) -> Result<Outcome> {
        self.commit_with(key, condition, change, None)
    }

    /// Like `commit`; the value of a `Store` is in `blob`, if given.
    pub(crate) fn commit_with<'a>(
        &'a self,
        key: &[u8],
        condition: Condition,
        change: Change<'_>,
        mut blob: Option<BlobPin<'a>>,
    ) -> Result<Outcome> {
        if key.len() > MAX_KEY_LEN {
            let why = format!(
                "{} bytes with prefix and version; at most {MAX_KEY_LEN} are possible",
                key.len()
            );
            return Err(Error::new(ErrorKind::InvalidKey, "set").with_source(why));
        }
        let hash = self.hasher.hash(key);
        self.hints.prefetch(self.index.primary_of(hash));
        if let Some(pin) = &blob {
            self.blobs.add_key(pin, hash)?;
        }
        let mut crowd = Backoff::default();
        loop {
            let seen = self.look(hash, key)?;
            let live = self.live(&seen, self.index.generation());
            let decision = self.decide(condition, change, live, seen.found.has_lost());
            if let Decision::Return(outcome) = decision {
                return Ok(outcome);
            }
            let is_put = matches!(decision, Decision::Put { .. });
            if let Change::Store { value, .. } = change
                && is_put
                && blob.is_none()
                && self.is_large(value.len())
            {
                // Storing the blob is slow; another writer may change the key meanwhile.
                blob = Some(self.store_blob(value, key)?);
                continue;
            }
            if is_put && !self.is_counted(&seen) && self.index.count() >= self.max_entries() {
                self.make_room()?;
            }
            let request = CommitRequest { key, hash, condition, change, blob: blob.as_ref() };
            match self.attempt(&request, seen, decision)? {
                Ok(outcome) => return Ok(outcome),
                Err(Retry::Changed) => {}
                // Other writers took the room, or the count is wrong and the process that must
                // correct it is stopped.
                Err(Retry::Full) if crowd.is_long() => {
                    return Err(busy("make room for an entry"));
                }
                Err(Retry::Full) => {
                    self.make_room()?;
                    crowd.pause();
                }
                Err(Retry::Unswept) => drop(self.reap_all()),
            }
        }
    }

    /// One attempt: reserve and prepare without the lock; then lock, decide again and publish.
    fn attempt(
        &self,
        request: &CommitRequest<'_>,
        seen: Lookup,
        decision: Decision,
    ) -> Result<Result<Outcome, Retry>> {
        let moved = match request.change {
            Change::Touch { .. } if decision != Decision::Remove => seen.current.map(|c| c.word),
            _ => None,
        };
        let Some(written) = self.write_body(request, decision, moved)? else {
            return Ok(Err(Retry::Changed));
        };
        if let Some(pin) = request.blob {
            pin.keep();
        }
        step!("commit::reserved");
        let locked = self.index.lock(request.hash)?;
        self.note_wiped(locked.wiped());
        let mut confirmed = Confirmed { seen, live: None, generation: 0 };
        match self.confirm(&locked, request, &mut confirmed, decision, moved) {
            None => {}
            Some(Unconfirmed::Return(outcome)) => return Ok(Ok(outcome)),
            Some(Unconfirmed::Changed) => return Ok(Err(Retry::Changed)),
        }
        match decision {
            Decision::Put { expires_at } => {
                self.publish_entry(request.hash, written, locked, &confirmed, expires_at)
            }
            Decision::Bury(outcome) => {
                self.stamp_tombstone(written, locked, confirmed.generation)?;
                Ok(Ok(outcome))
            }
            Decision::Remove | Decision::Return(_) => {
                // Only a live entry is removed, so there is a slot to empty.
                let Some(current) = confirmed.live else { return Ok(Err(Retry::Changed)) };
                self.publish_removal(request.hash, written, locked, &confirmed, current)
            }
        }
    }

    /// Whether `decision`, made without the lock, still holds under it.
    /// Updates `confirmed`, which has what was seen without the lock.
    #[inline]
    fn confirm(
        &self,
        locked: &Locked<'_>,
        request: &CommitRequest<'_>,
        confirmed: &mut Confirmed,
        decision: Decision,
        moved: Option<Word>,
    ) -> Option<Unconfirmed> {
        if !locked.unchanged_since(&confirmed.seen.found) {
            let Some(seen) = self.look_locked(request.hash, request.key) else {
                return Some(Unconfirmed::Changed);
            };
            confirmed.seen = seen;
        }
        confirmed.generation = self.index.generation();
        let live = self.live(&confirmed.seen, confirmed.generation);
        confirmed.live = live;
        match self.decide(request.condition, request.change, live, locked.has_lost()) {
            Decision::Return(outcome) => return Some(Unconfirmed::Return(outcome)),
            again if again != decision => return Some(Unconfirmed::Changed),
            _ => {}
        }
        let is_other = moved.is_some_and(|word| live.is_none_or(|c| c.word != word));
        is_other.then_some(Unconfirmed::Changed)
    }

    /// Publishes a new record: its count, stamp, word and hint.
    #[inline]
    fn publish_entry(
        &self,
        hash: u64,
        Written { reservation, prepared }: Written,
        locked: Locked<'_>,
        confirmed: &Confirmed,
        expires_at: Expiry,
    ) -> Result<Result<Outcome, Retry>> {
        let &Confirmed { ref seen, live, generation } = confirmed;
        let counted = seen.current.is_some_and(|c| c.generation == generation);
        if !counted {
            match self.index.count_up(generation, self.max_entries()) {
                CountUp::Counted => {}
                CountUp::OtherGeneration => return Ok(Err(Retry::Changed)),
                CountUp::Full => return Ok(Err(Retry::Full)),
            }
        }
        let Some(slot) = self.slot_for(&locked, seen) else {
            self.index.count_down(generation);
            return Ok(Err(Retry::Unswept));
        };
        step!("commit::counted");
        // Under the lock, so that sequences have the order of publication (invariant I14).
        let sequence = self.index.next_sequence();
        let stamp = Stamp { sequence, generation, expires_at };
        reservation.segment.stamp(reservation.offset, &prepared, stamp);
        step!("commit::stamped");
        let word = Word::new(hash, reservation.segment.id, reservation.offset);
        locked.set(slot, word);
        step!("commit::published");
        let hint = Hint::new(expires_at, generation, self.index.recency());
        let hint = match &self.ghosts {
            None => hint,
            Some(_) if counted => hint.again(self.hints.get(slot)),
            Some(ghosts) if ghosts.readmits(self.index.identity(hash)) => hint.in_main(0),
            Some(_) => hint,
        };
        self.hints.set(slot, hint);
        self.note_expiry(expires_at);
        locked.unlock()?;
        if !counted {
            self.index.count_insert((self.max_entries() / 256).max(1));
            self.ring_if_crowded();
        }
        self.index.add_live_bytes(reservation.segment.id, i64::from(reservation.len));
        let change = AppliedChange {
            hash,
            offset: reservation.offset,
            word: Some(word),
            before: seen.current,
            counted_in: (!counted).then_some(generation),
        };
        self.finish(reservation, change)?;
        Ok(Ok(Outcome::Done { token: Some(sequence), existed: live.is_some() }))
    }

    /// Empties the slot of a live entry.
    #[inline]
    fn publish_removal(
        &self,
        hash: u64,
        Written { reservation, prepared }: Written,
        locked: Locked<'_>,
        confirmed: &Confirmed,
        current: Current,
    ) -> Result<Result<Outcome, Retry>> {
        let sequence = self.index.next_sequence();
        let stamp = Stamp { sequence, generation: current.generation, expires_at: None };
        reservation.segment.stamp(reservation.offset, &prepared, stamp);
        step!("commit::stamped");
        locked.clear(current.slot);
        step!("commit::published");
        self.index.count_down(current.generation);
        locked.unlock()?;
        let change = AppliedChange {
            hash,
            offset: reservation.offset,
            word: None,
            before: confirmed.seen.current,
            counted_in: None,
        };
        self.finish(reservation, change)?;
        Ok(Ok(Outcome::Done { token: None, existed: true }))
    }

    /// Stamps a tombstone for a key that has no entry, so that a recovery does not bring an evicted
    /// one back.
    fn stamp_tombstone(
        &self,
        Written { reservation, prepared }: Written,
        locked: Locked<'_>,
        generation: u32,
    ) -> Result<()> {
        let stamp = Stamp { sequence: self.index.next_sequence(), generation, expires_at: None };
        reservation.segment.stamp(reservation.offset, &prepared, stamp);
        step!("commit::buried");
        locked.unlock()?;
        self.sync_if_asked(reservation, |segment, offset| segment.void(offset))
    }

    /// Accounts for a published change, and syncs it if each write must be durable.
    #[inline]
    fn finish(&self, reservation: RecordReservation, change: AppliedChange) -> Result<()> {
        if let Some(old) = change.before {
            self.index.add_live_bytes(old.word.segment(), -i64::from(old.len));
        }
        self.counters.one(Counter::Commits);
        self.sync_if_asked(reservation, |segment, _| self.take_back(segment, change))
    }

    /// Syncs the segment of a stamped record, if each write must be durable. If the sync fails,
    /// `take_back` must undo the change.
    #[inline]
    pub(crate) fn sync_if_asked(
        &self,
        reservation: RecordReservation,
        take_back: impl FnOnce(&Segment, u32),
    ) -> Result<()> {
        if !self.syncs_each_write() {
            return Ok(());
        }
        let (segment, offset) = (reservation.segment.clone(), reservation.offset);
        drop(reservation);
        segment.sync().inspect_err(|_| {
            self.index.set_segment_failed(segment.id);
            take_back(&segment, offset);
        })
    }

    /// Reserves space and writes key and body there. `None` if the entry whose body it must copy is
    /// gone.
    fn write_body(
        &self,
        request: &CommitRequest<'_>,
        decision: Decision,
        moved: Option<Word>,
    ) -> Result<Option<Written>> {
        let key = request.key;
        let key_len = key.len() as u32;
        // Logged so that no replay restores an entry that a delete did not find (invariant I15).
        let tombstone = (
            Draft { kind: Kind::Tombstone, codec: Codec::Raw, flags: 0, key_len, body_len: 0 },
            &[][..],
        );
        let guard = moved.map(|word| self.log.fetch(word.segment())).transpose()?;
        let (mut fields, reference) =
            (Fields::default(), request.blob.map(|pin| pin.reference.encode()));
        let (draft, body) = match (request.change, moved) {
            _ if matches!(decision, Decision::Remove | Decision::Bury(_)) => tombstone,
            (Change::Store { value, codec, soft, .. }, _) => {
                fields = Fields::new(soft);
                let (kind, value) = match &reference {
                    Some(reference) => (Kind::Blob, &reference[..]),
                    None => (Kind::Value, value),
                };
                // A length beyond 32 bits does not fit into a segment either.
                let body_len =
                    u32::try_from(fields.bytes().len() + value.len()).unwrap_or(u32::MAX);
                (Draft { kind, codec, flags: fields.flags, key_len, body_len }, value)
            }
            (_, Some(word)) => {
                let segment = guard.as_ref().and_then(|g| g.get());
                let Some(record) = segment.and_then(|s| s.record(word.offset())) else {
                    return Ok(None);
                };
                // At any moment the old or the new record names the blob (if there is one), so no
                // process removes it.
                let body = record.verified_body();
                let Some((flags, body)) = body.and_then(|body| record::touched(record.flags, body))
                else {
                    // The body fails its check. A reader finds no entry here either.
                    if let Some((slot, _)) = self.look(self.hasher.hash(key), key)?.found.entry {
                        self.evict(slot, word);
                    }
                    return Ok(None);
                };
                let body_len = body.len() as u32;
                (Draft { kind: record.kind, codec: record.codec, flags, key_len, body_len }, body)
            }
            _ => tombstone,
        };
        let reservation = self.reserve(&draft)?;
        step!("commit::begun");
        if self.log.needs_spare() {
            self.bell.ring();
        }
        let (segment, body) = (&reservation.segment, [fields.bytes(), body]);
        let prepared = segment.prepare(reservation.offset, reservation.len, draft, key, body);
        Ok(Some(Written { reservation, prepared }))
    }

    /// `has_lost`: whether the key's chain evicted an entry that a recovery could restore.
    fn decide(
        &self,
        condition: Condition,
        change: Change<'_>,
        live: Option<Current>,
        has_lost: bool,
    ) -> Decision {
        let current = live.map(|c| c.sequence);
        // A removal without a condition, or by token, removes an evicted entry too.
        let buries = live.is_none()
            && has_lost
            && matches!(condition, Condition::Always | Condition::Token(_));
        match change.decide(condition, current, |expires_at| self.has_passed(expires_at)) {
            Decided::Put { expires_at } => Decision::Put { expires_at },
            Decided::Remove => Decision::Remove,
            Decided::Return(outcome) => {
                let removes =
                    matches!(change, Change::Delete) || matches!(outcome, Outcome::Done { .. });
                if buries && removes { Decision::Bury(outcome) } else { Decision::Return(outcome) }
            }
        }
    }

    /// The slot for the key's word: its own, an unreadable one, an empty one, or, in a full chain,
    /// that of the coldest entry. `None` if a sweep may free a slot; only where the bound on
    /// entries is exact and a sweep is short.
    fn slot_for(&self, locked: &Locked<'_>, seen: &Lookup) -> Option<Slot> {
        if let Some(current) = seen.current {
            return Some(current.slot);
        }
        if let Some((slot, _)) = seen.found.unreadable {
            self.index.set_wants_recount(true);
            return Some(slot);
        }
        if let Ok(Vacancy { slot, moved }) = locked.vacant() {
            if let Some((from, to)) = moved {
                self.hints.set(to, self.hints.get(from));
            }
            return Some(slot);
        }
        let sweep_first = self.culls_inline() && !self.has_swept();
        (!sweep_first).then(|| self.slot_of_coldest(locked))
    }

    /// Evicts the coldest entry of a full chain, and returns its slot.
    fn slot_of_coldest(&self, locked: &Locked<'_>) -> Slot {
        let now = self.index.recency();
        let mut coldest: Option<(u32, Slot, Word)> = None;
        locked.slots(|slot, word| {
            let age = self.hints.get(slot).age(now);
            if coldest.is_none_or(|(oldest, ..)| age > oldest) {
                coldest = Some((age, slot, word));
            }
        });
        // A full chain has entries.
        let (_, slot, word) = coldest.unwrap_or((0, Slot::from_number(1), Word::EMPTY));
        // No file is opened under the lock.
        match header_in(&self.log.segment(word.segment()), word) {
            Some((generation, _)) => self.index.count_down(generation),
            None => self.index.set_wants_recount(true),
        }
        locked.note_lost();
        self.counters.one(Counter::Evicted);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Attached;
    use crate::entry::Soft;
    use crate::options::Options;

    #[test]
    fn no_segment_is_opened_under_the_chain_lock() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { max_entries: 1000, max_bytes: 4 << 20, ..Options::default() };
        let engine = Attached::open(crate::sys::storage::SYSTEM, dir.path(), &options).unwrap();
        let change = |value| Change::Store {
            value,
            codec: Codec::Raw,
            expires_at: None,
            soft: Soft::default(),
        };
        let set = |value| engine.commit(b"k", Condition::Always, change(value)).unwrap();
        set(b"first");
        let hash = engine.hasher.hash(b"k");
        let look = || engine.look(hash, b"k").unwrap();
        let (seen, change) = (look(), change(b"third"));
        let decision = Decision::Put { expires_at: None };
        let condition = Condition::Always;
        let request = CommitRequest { key: b"k", hash, condition, change, blob: None };
        // Another writer changes the key; its record is in a segment that this process has not
        // opened yet.
        set(b"second");
        let id = look().current.unwrap().word.segment();
        engine.log.unmap_one(id);
        let attempt = engine.attempt(&request, seen, decision).unwrap();
        assert!(matches!(attempt, Err(Retry::Changed)));
        assert!(engine.log.segment(id).get().is_none(), "it was opened while the chain was locked");
        let attempt = engine.attempt(&request, look(), decision).unwrap();
        assert!(matches!(attempt, Ok(Outcome::Done { existed: true, .. })));
    }
}
