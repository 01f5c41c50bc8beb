//! Compaction: empties a segment by copying some of its records and evicting the rest.

use crate::engine::Engine;
use crate::engine::counters::Counter;
use crate::engine::format::record::{Draft, Record, Stamp};
use crate::engine::format::word::Word;
use crate::engine::index::{Role, SegmentInfo, SegmentState, Slot};
use crate::engine::log::Copies;
use crate::engine::log::append::RecordReservation;
use crate::engine::log::segment::Segment;
use crate::engine::ops::evict::Left;
use crate::error::Result;
use crate::sys::step;

/// If space is needed, at most one in this many bytes of an emptied segment is copied.
pub(crate) const COPY_SHARE: u64 = 5;

/// How a segment is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evacuate {
    /// All live records are copied.
    Copy,
    /// Recently used records are copied, up to a share of the segment; the rest is evicted.
    Evict,
    /// Nothing is copied.
    Drop,
}

/// A record that an entry names.
struct Live<'a> {
    hash: u64,
    word: Word,
    record: Record<'a>,
    slot: Slot,
}

/// A copy, which no entry names yet.
struct Copied {
    hash: u64,
    from: Word,
    to: Word,
    len: u32,
    _reservation: RecordReservation,
}

impl Engine {
    /// Empties segment `id`. `false` if it is not there, or a record in it could not be moved.
    pub(crate) fn empty(&self, id: u32, evacuate: Evacuate) -> Result<bool> {
        let Some(info) = self.index.segment(id).filter(|s| s.state == SegmentState::Sealed) else {
            return Ok(false);
        };
        let Some(segment) = self.log.fetch(id)?.get().cloned() else {
            // Its file is gone, and with it the records that the index names in it.
            self.log.empty(id);
            return Ok(true);
        };
        self.copy_out(&segment, &self.to_copy(&segment, &info, evacuate))?;
        if evacuate != Evacuate::Copy {
            self.evict_all(&segment)?;
        }
        // Entries still name the records that could not be copied.
        let alive = self.is_alive(&segment);
        if !alive {
            self.log.empty(id);
        }
        Ok(!alive)
    }

    /// The records of a segment that must be copied.
    fn to_copy<'a>(
        &'a self,
        segment: &'a Segment,
        info: &SegmentInfo,
        evacuate: Evacuate,
    ) -> Vec<Live<'a>> {
        if evacuate == Evacuate::Drop {
            return Vec::new();
        }
        let mut live: Vec<_> = self.live_in(segment).collect();
        if evacuate == Evacuate::Copy {
            return live;
        }
        let now = self.index.recency();
        let age = |entry: &Live<'_>| self.hints.get(entry.slot).age(now);
        let age_of_segment = now.wrapping_sub(info.sealed_at);
        live.retain(|entry| age(entry) < age_of_segment);
        live.sort_unstable_by_key(age);
        let mut left = segment.len() / COPY_SHARE;
        live.retain(|entry| {
            let len = u64::from(entry.record.len);
            let fits = len <= left;
            left -= if fits { len } else { 0 };
            fits
        });
        live
    }

    /// The entries whose records are in `segment`. Expired and outdated entries are removed on the
    /// way.
    fn live_in<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = Live<'a>> {
        let mut left = Left::default();
        values(segment).filter_map(move |(offset, record)| {
            let hash = self.hasher.hash(record.key);
            let word = Word::new(hash, segment.id, offset);
            let slot = self.index.slot_of(hash, word)?;
            if record.generation < self.index.generation() || self.has_passed(record.expires_at) {
                self.reap(slot, word, &mut left);
                return None;
            }
            Some(Live { hash, word, record, slot })
        })
    }

    /// Copies records, syncs the copies, and then makes their entries name the copies.
    fn copy_out(&self, segment: &Segment, live: &[Live<'_>]) -> Result<()> {
        if live.is_empty() {
            return Ok(());
        }
        let mut copies = self.log.copies();
        let mut copied = Vec::with_capacity(live.len());
        let mut made = Ok(());
        for entry in live {
            match self.copy(&mut copies, entry) {
                Ok(Some(copy)) => copied.push(copy),
                Ok(None) => {}
                Err(error) => {
                    made = Err(error);
                    break;
                }
            }
        }
        step!("compact::copied");
        let mut targets: Vec<_> =
            copied.iter().map(|copy| copy._reservation.segment.clone()).collect();
        targets.dedup_by_key(|target| target.id);
        for target in targets {
            target.sync()?;
            self.index.heartbeat(Role::Space);
        }
        step!("compact::synced");
        let mut moved = 0;
        for copy in copied {
            if self.redirect(&copy)? {
                moved += u64::from(copy.len);
            }
        }
        self.counters.add(Counter::CopiedBytes, moved);
        tracing::trace!(segment = segment.id, bytes = moved, "records were copied");
        made
    }

    /// Copies one record with all of its fields. `None` if its value is damaged: its entry is then
    /// removed.
    fn copy(&self, copies: &mut Copies<'_>, entry: &Live<'_>) -> Result<Option<Copied>> {
        let record = &entry.record;
        let Some(body) = record.verified_body() else {
            if self.evict(entry.slot, entry.word) {
                self.counters.one(Counter::Corrupt);
            }
            return Ok(None);
        };
        let draft = Draft {
            kind: record.kind,
            codec: record.codec,
            flags: record.flags,
            key_len: record.key.len() as u32,
            body_len: body.len() as u32,
        };
        let reservation = self.log.reserve_copy(copies, record.len)?;
        let (target, offset) = (&reservation.segment, reservation.offset);
        let prepared = target.prepare(offset, record.len, draft, record.key, [&[], body]);
        let stamp = Stamp {
            sequence: record.sequence,
            generation: record.generation,
            expires_at: record.expires_at,
        };
        target.stamp(offset, &prepared, stamp);
        let to = Word::new(entry.hash, target.id, offset);
        let (hash, from, len) = (entry.hash, entry.word, record.len);
        Ok(Some(Copied { hash, from, to, len, _reservation: reservation }))
    }

    /// Makes the entry of a copied record name the copy, if it still names the original.
    fn redirect(&self, copy: &Copied) -> Result<bool> {
        let locked = self.index.lock(copy.hash)?;
        self.note_wiped(locked.wiped());
        let Some(slot) = self.index.slot_of(copy.hash, copy.from) else { return Ok(false) };
        locked.set(slot, copy.to);
        drop(locked);
        step!("compact::redirected");
        self.index.add_live_bytes(copy.from.segment(), -i64::from(copy.len));
        self.index.add_live_bytes(copy.to.segment(), i64::from(copy.len));
        Ok(true)
    }

    /// Removes every entry whose record is in `segment`.
    ///
    /// # Errors
    /// `Busy` at the first entry whose chain lock is held for long: its holder is stopped.
    fn evict_all(&self, segment: &Segment) -> Result<()> {
        let (mut evicted, mut held) = (0, Ok(()));
        for (offset, record) in values(segment) {
            let hash = self.hasher.hash(record.key);
            let word = Word::new(hash, segment.id, offset);
            let current = record.generation == self.index.generation();
            match self.evict_word(hash, word) {
                Ok(gone) => {
                    evicted += u64::from(gone && current && !self.has_passed(record.expires_at));
                }
                Err(busy) => {
                    held = Err(busy.into());
                    break;
                }
            }
        }
        if evicted > 0 {
            self.counters.add(Counter::Evicted, evicted);
            self.tell_once(&self.has_logged_bytes, "max_bytes");
        }
        held
    }

    /// Whether the index names a record in `segment`. Corrects the segment's count of live bytes,
    /// which is only an estimate.
    fn is_alive(&self, segment: &Segment) -> bool {
        let named = values(segment).filter(|(offset, record)| {
            let hash = self.hasher.hash(record.key);
            self.index.slot_of(hash, Word::new(hash, segment.id, *offset)).is_some()
        });
        let alive = named.map(|(_, record)| u64::from(record.len)).sum();
        self.index.set_live_bytes(segment.id, alive);
        alive > 0
    }
}

/// The valid records of values in `segment`, with their offsets.
fn values(segment: &Segment) -> impl Iterator<Item = (u32, Record<'_>)> {
    segment.records().filter(|(_, record)| record.is_entry())
}
