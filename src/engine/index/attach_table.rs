//! The attach table: which processes are attached, and which of them are dead.
//!
//! Each attached process has a row. While it is attached it also holds a byte of the lock file, at
//! the number of its row. So the kernel says which processes are alive, in every container, and a
//! process id is never needed. Number and incarnation form the [`Owner`] that names the process in
//! its locks and its segments; the incarnation changes with each attach.
//!
//! A row has four words:
//!
//! ```text
//! 0  incarnation (21 bits) | attached
//! 1  how many drops of segments the process has acknowledged: it has unmapped those segments
//! 2  bytes of dropped segments and blobs that it still holds
//! 3  bytes that it has claimed and not yet taken
//! ```

use std::io;

use super::Index;
use super::process_slot::{ATTACHED, INCARNATION, Owner};
use crate::engine::format::index_header::{ATTACH_AT, ATTACH_ROW_WORDS, MOST_PROCESSES, at};
use crate::sys::atomic::{AtomicU64, Ordering};
use crate::sys::{lock, random};

impl Index {
    fn row(&self, number: u32) -> &[AtomicU64] {
        let at = ATTACH_AT + (number.clamp(1, MOST_PROCESSES) - 1) as usize * ATTACH_ROW_WORDS;
        &self.words()[at..at + ATTACH_ROW_WORDS]
    }

    /// Enters this process into the table, with an incarnation other than the last one of its
    /// number.
    /// Keeps invariant I22.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        let number = self.process_slot.number;
        let row = self.row(number);
        let before = row[0].fetch_and(!ATTACHED, Ordering::AcqRel);
        let was_attached = before & ATTACHED != 0;
        let before = before as u32;
        // Only after the row was cleared. Otherwise the last process with this number would seem
        // alive if this process were stopped here.
        if let Some(locks) = &self.process_slot.locks
            && !lock::try_lock(locks, i64::from(number))?
        {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process has taken the same number",
            ));
        }
        let mut incarnation = random::bits()? as u32 & INCARNATION;
        if incarnation == before || incarnation == 0 {
            incarnation = (before % INCARNATION) + 1;
        }
        self.words()[at::HIGHEST_NUMBER].fetch_max(u64::from(number), Ordering::AcqRel);
        row[1].store(self.drops(), Ordering::Release);
        row[2..].iter().for_each(|word| word.store(0, Ordering::Release));
        row[0].store(u64::from(incarnation) | ATTACHED, Ordering::Release);
        // Only after the store: from then on, the last process with this number is seen to be dead.
        if was_attached {
            self.note_death();
        }
        self.process_slot.owner = Owner::new(incarnation, number);
        Ok(())
    }

    /// Takes this process out of the table. It must not hold anything of the directory any more.
    pub(crate) fn leave(&self) {
        if let Some(row) = self.own_row() {
            row[0].fetch_and(!ATTACHED, Ordering::AcqRel);
        }
    }

    /// The row of this process, if it has one.
    fn own_row(&self) -> Option<&[AtomicU64]> {
        (self.process_slot.number != 0).then(|| self.row(self.process_slot.number))
    }

    /// What names this process in its locks and segments.
    pub(crate) fn owner(&self) -> Owner {
        self.process_slot.owner
    }

    /// Whether `owner` is this process.
    pub(crate) fn is_own(&self, owner: Owner) -> bool {
        owner == self.owner()
    }

    /// Whether the process `owner` is attached and alive. The death of an owner is permanent, so a
    /// `false` is stable.
    /// Keeps invariant I22.
    pub(crate) fn is_alive(&self, owner: Owner) -> bool {
        let number = owner.number();
        if owner == self.owner() {
            return true;
        }
        (1..=MOST_PROCESSES).contains(&number)
            && self.row(number)[0].load(Ordering::Acquire)
                == u64::from(owner.incarnation()) | ATTACHED
            && self.is_held(number)
    }

    /// Whether another process holds the byte of `number`. If the kernel does not answer, yes: the
    /// locks of a living process must not be taken over.
    fn is_held(&self, number: u32) -> bool {
        let Some(locks) =
            self.process_slot.locks.as_ref().filter(|_| number != self.process_slot.number)
        else {
            return false;
        };
        lock::is_held(locks, i64::from(number)).unwrap_or(true)
    }

    /// The numbers of all processes in the table.
    fn attached(&self) -> impl Iterator<Item = u32> {
        let highest = self.words()[at::HIGHEST_NUMBER].load(Ordering::Acquire);
        let highest = u32::try_from(highest).unwrap_or(MOST_PROCESSES).min(MOST_PROCESSES);
        (1..=highest).filter(|n| self.row(*n)[0].load(Ordering::Acquire) & ATTACHED != 0)
    }

    /// How many processes are attached, including dead ones that were not reaped yet.
    pub(crate) fn attached_processes(&self) -> u64 {
        self.attached().count() as u64
    }

    fn note_death(&self) {
        self.words()[at::DEATHS].store(1, Ordering::Release);
    }

    /// Takes dead processes out of the table, and returns whether any process died since the last
    /// call. The caller cleans up what they left.
    pub(crate) fn reap_dead(&self) -> bool {
        if self.process_slot.locks.is_none() {
            return false;
        }
        for number in self.attached().filter(|number| *number != self.process_slot.number) {
            let word = &self.row(number)[0];
            let seen = word.load(Ordering::Acquire);
            // A process that attaches takes the byte of its number before it stores this word. So
            // the word is still that of the dead process.
            if !self.is_held(number)
                && word
                    .compare_exchange(seen, seen & !ATTACHED, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                self.note_death();
            }
        }
        self.words()[at::DEATHS].swap(0, Ordering::AcqRel) != 0
    }

    /// Acknowledges the first `seen` drops: this process has unmapped the segments that were
    /// dropped until the count of drops was `seen`, except for the bytes that it reports as held
    /// ([`set_own_bytes`](Index::set_own_bytes)).
    pub(crate) fn acknowledge_drops(&self, seen: u64) {
        if let Some(row) = self.own_row() {
            row[1].fetch_max(seen, Ordering::AcqRel);
        }
    }

    /// How many drops all attached processes have acknowledged.
    pub(crate) fn drops_seen_by_all(&self) -> u64 {
        let seen = self.attached().map(|number| self.row(number)[1].load(Ordering::Acquire));
        seen.min().unwrap_or(u64::MAX)
    }

    /// Reports how many bytes of dropped segments and blobs this process still holds, and how many
    /// bytes it has claimed and not yet taken.
    pub(crate) fn set_own_bytes(&self, held: u64, claimed: u64) {
        if let Some(row) = self.own_row() {
            row[2].store(held, Ordering::Release);
            row[3].store(claimed, Ordering::Release);
        }
    }

    /// The bytes that other processes hold and have claimed.
    pub(crate) fn bytes_of_others(&self) -> u64 {
        let others = self.attached().filter(|number| *number != self.process_slot.number);
        others.map(|number| self.bytes_of(number)).fold(0, u64::saturating_add)
    }

    fn bytes_of(&self, number: u32) -> u64 {
        let row = self.row(number);
        row[2].load(Ordering::Acquire).saturating_add(row[3].load(Ordering::Acquire))
    }

    /// The bytes in use: all segments and blobs, and what processes hold and have claimed.
    ///
    /// Claimed bytes become a segment, and a dropped segment becomes held bytes. So this reads the
    /// rows before and after it reads the segments, and counts the greater value of each row: no
    /// bytes are missed while they move.
    pub(crate) fn used_bytes(&self) -> u64 {
        let before: Vec<_> =
            self.attached().map(|number| (number, self.bytes_of(number))).collect();
        let mut sum = self.segment_bytes().saturating_add(self.blob_bytes());
        let mut before = before.into_iter().peekable();
        for number in self.attached() {
            while before.next_if(|(other, _)| *other < number).is_some() {}
            let was = before.next_if(|(other, _)| *other == number).map_or(0, |(_, bytes)| bytes);
            sum = sum.saturating_add(was.max(self.bytes_of(number)));
        }
        sum
    }
}
