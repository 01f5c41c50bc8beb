//! The attach table: which processes share the index, and which of them are gone.
//!
//! A process holds a byte of the lock file for as long as it is attached, so the kernel says who is alive, in whatever
//! container, and never a process id. The number of the byte and an incarnation, another each time, name it in the locks
//! that it takes and the segments that it owns.
//!
//! Four words of a process:
//!
//! ```text
//! 0  incarnation (21 bits) | attached        1  how many dropped segments it has let go of
//! 2  bytes that it keeps of what was dropped 3  bytes that it is about to take
//! ```

use std::io;

use super::Index;
use super::process_slot::{ATTACHED, INCARNATION, NUMBER, NUMBER_BITS};
use crate::engine::format::index_header::{ATTACH_AT, MEMBER_WORDS, MOST_PROCESSES, at};
use crate::sys::atomic::{AtomicU64, Ordering};
use crate::sys::{lock, random};

impl Index {
    fn member(&self, number: u32) -> &[AtomicU64] {
        let at = ATTACH_AT + (number.clamp(1, MOST_PROCESSES) - 1) as usize * MEMBER_WORDS;
        &self.words()[at..at + MEMBER_WORDS]
    }

    /// Enters this process, under an incarnation that its number has not had lately.
    /// Keeps invariant I22.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        let number = self.process_slot.number;
        let line = self.member(number);
        let before = line[0].fetch_and(!ATTACHED, Ordering::AcqRel);
        let was_attached = before & ATTACHED != 0;
        let before = before as u32;
        // After that, or whoever had the number would seem to live for as long as this process stands still here.
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
        line[1].store(self.drops(), Ordering::Release);
        line[2..].iter().for_each(|word| word.store(0, Ordering::Release));
        line[0].store(u64::from(incarnation) | ATTACHED, Ordering::Release);
        // After that, from when on whoever had the number is seen to be dead.
        if was_attached {
            self.note_death();
        }
        self.process_slot.owner = incarnation << NUMBER_BITS | number;
        Ok(())
    }

    /// Takes this process out of the table: it has nothing of the directory any more.
    pub(crate) fn leave(&self) {
        if let Some(line) = self.own_line() {
            line[0].fetch_and(!ATTACHED, Ordering::AcqRel);
        }
    }

    /// The line of this process, if it has one.
    fn own_line(&self) -> Option<&[AtomicU64]> {
        (self.process_slot.number != 0).then(|| self.member(self.process_slot.number))
    }

    /// What names this process in the locks that it takes.
    pub(crate) fn owner(&self) -> u32 {
        self.process_slot.owner
    }

    /// Whether `owner` is this process.
    pub(crate) fn is_own(&self, owner: u32) -> bool {
        owner == self.owner()
    }

    /// Whether the process called `owner` is attached.
    /// Keeps invariant I22.
    pub(crate) fn is_alive(&self, owner: u32) -> bool {
        let number = owner & NUMBER;
        if owner == self.owner() {
            return true;
        }
        (1..=MOST_PROCESSES).contains(&number)
            && self.member(number)[0].load(Ordering::Acquire)
                == u64::from(owner >> NUMBER_BITS) | ATTACHED
            && self.is_held(number)
    }

    /// Whether another process holds the byte of `number`. If nobody can say, yes: what it holds must not be taken over.
    fn is_held(&self, number: u32) -> bool {
        let Some(locks) =
            self.process_slot.locks.as_ref().filter(|_| number != self.process_slot.number)
        else {
            return false;
        };
        lock::is_held(locks, i64::from(number)).unwrap_or(true)
    }

    /// The numbers of all that are in the table.
    fn attached(&self) -> impl Iterator<Item = u32> {
        let highest = self.words()[at::HIGHEST_NUMBER].load(Ordering::Acquire);
        let highest = u32::try_from(highest).unwrap_or(MOST_PROCESSES).min(MOST_PROCESSES);
        (1..=highest).filter(|n| self.member(*n)[0].load(Ordering::Acquire) & ATTACHED != 0)
    }

    /// How many processes are attached, those included that died and were not noticed yet.
    pub(crate) fn attached_processes(&self) -> u64 {
        self.attached().count() as u64
    }

    fn note_death(&self) {
        self.words()[at::DEATHS].store(1, Ordering::Release);
    }

    /// Takes the dead out of the table, and says whether any died since the last call. What they left is for the caller to
    /// look after.
    pub(crate) fn reap_dead(&self) -> bool {
        if self.process_slot.locks.is_none() {
            return false;
        }
        for number in self.attached().filter(|number| *number != self.process_slot.number) {
            let word = &self.member(number)[0];
            let seen = word.load(Ordering::Acquire);
            // Whoever comes under this number has its byte before its word is there: this is still that of the dead one.
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

    /// Says that this process has let go of all segments that were dropped before the count of drops was `seen`, except
    /// for the bytes that it has said it keeps.
    pub(crate) fn acknowledge_drops(&self, seen: u64) {
        if let Some(line) = self.own_line() {
            line[1].fetch_max(seen, Ordering::AcqRel);
        }
    }

    /// How many drops everybody has seen who is attached.
    pub(crate) fn drops_seen_by_all(&self) -> u64 {
        let seen = self.attached().map(|number| self.member(number)[1].load(Ordering::Acquire));
        seen.min().unwrap_or(u64::MAX)
    }

    /// Says how many bytes this process keeps of what was dropped, and how many it is about to take.
    pub(crate) fn set_own_bytes(&self, held: u64, claimed: u64) {
        if let Some(line) = self.own_line() {
            line[2].store(held, Ordering::Release);
            line[3].store(claimed, Ordering::Release);
        }
    }

    /// What other processes keep of what was dropped, or are about to take.
    pub(crate) fn bytes_of_others(&self) -> u64 {
        let others = self.attached().filter(|number| *number != self.process_slot.number);
        others.map(|number| self.bytes_of(number)).fold(0, u64::saturating_add)
    }

    fn bytes_of(&self, number: u32) -> u64 {
        let line = self.member(number);
        line[2].load(Ordering::Acquire).saturating_add(line[3].load(Ordering::Acquire))
    }

    /// The bytes in use: of all segments and blobs, and of what processes keep or are about to take.
    ///
    /// What a process has claimed becomes a segment, and a segment that goes becomes what a process keeps. So processes are
    /// asked before and after, and the greater counts: nothing slips through on its way.
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
