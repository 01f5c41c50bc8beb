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

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ATTACH_AT, Index, MEMBER_WORDS, MOST_PROCESSES, at};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::atomic::{AtomicU64, Ordering};
use crate::sys::fork::OwnFile;
use crate::sys::lock;
use crate::sys::wait::Backoff;

/// The number of a process takes the low bits of an owner.
const NUMBER_BITS: u32 = 11;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;
const INCARNATION: u32 = u32::MAX >> NUMBER_BITS;
const ATTACHED: u64 = 1 << 32;
const _: () = assert!(MOST_PROCESSES < NUMBER);

/// Who this process is among those that share an index.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    /// The lock file; byte n stands for the process of number n. Without one, nobody else is alive.
    locks: Option<Arc<OwnFile>>,
    /// 1 and up; 0 of an onlooker, who is not in the table.
    number: u32,
    /// `incarnation | number`; what names this process.
    owner: u32,
}

impl Membership {
    /// The process of this `number`, which nobody has, nor takes before it has [entered](Index::enter): the caller holds the
    /// attach mutex.
    pub(crate) fn new(locks: Arc<OwnFile>, number: u32) -> Self {
        Self { locks: Some(locks), number, owner: 0 }
    }

    /// One who looks on: nobody knows of it, and it changes nothing.
    pub(crate) fn of_onlooker(locks: Arc<OwnFile>) -> Self {
        Self { locks: Some(locks), number: 0, owner: 0 }
    }

    /// The only one there is.
    pub(crate) fn alone() -> Self {
        Self { locks: None, number: 1, owner: 0 }
    }
}

/// What one process at a time may do. A byte of the lock file each, behind those of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Lead: look after the directory when nobody asks for it. Held for as long as a process is attached.
    Leadership,
    /// Empty segments, and take checkpoints.
    Space,
    /// Claim bytes within the bound.
    Admission,
    /// Cull in the inserting call.
    Culling,
    /// Count the entries again.
    Counting,
}

impl Turn {
    fn byte(self) -> i64 {
        i64::from(MOST_PROCESSES) + 1 + self as i64
    }

    /// Where it is counted how often the turn was taken, for those that are waited for.
    fn count_at(self) -> Option<usize> {
        match self {
            Self::Leadership | Self::Counting => None,
            Self::Space => Some(at::TURNS),
            Self::Admission => Some(at::TURNS + 1),
            Self::Culling => Some(at::TURNS + 2),
        }
    }

    /// How long one that has the turn is waited for: so long that only one that is stopped is not done.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Leadership | Self::Counting => Duration::ZERO,
            // With checkpoints, which wait for the disk, and go on after each file.
            Self::Space => Duration::from_secs(10),
            Self::Admission | Self::Culling => Duration::from_secs(1),
        }
    }
}

/// What came of waiting for a turn.
pub(crate) enum Waited<T, I> {
    Turn(T),
    /// There is no need of it any more.
    Instead(I),
}

/// The error of whoever waited for a turn in vain.
pub(crate) fn busy(operation: &'static str) -> Error {
    let why = "another process makes room, and does not come to its end; it may be stopped";
    Error::new(ErrorKind::Busy, operation).with_source(why)
}

/// A turn among processes, had until this is dropped. Threads of one process need a lock of their own beside.
#[derive(Debug)]
pub(crate) struct HeldTurn<'a> {
    locks: Option<&'a OwnFile>,
    turn: Turn,
}

impl Drop for HeldTurn<'_> {
    fn drop(&mut self) {
        let locks = self.locks.filter(|locks| locks.is_ours());
        if let Some(Err(error)) = locks.map(|locks| lock::unlock(locks, self.turn.byte())) {
            tracing::error!(turn = ?self.turn, %error, "cannot let go of a lock");
        }
    }
}

impl Index {
    /// Takes a turn, if no other process has it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn take_turn(&self, turn: Turn) -> Result<Option<HeldTurn<'_>>> {
        let Some(locks) = self.membership.locks.as_deref() else {
            return Ok(Some(HeldTurn { locks: None, turn }));
        };
        let taken = lock::try_lock(locks, turn.byte());
        let taken =
            taken.map_err(|e| Error::new(ErrorKind::Io, "lock the directory").with_source(e))?;
        if taken {
            self.goes_on(turn);
        }
        Ok(taken.then_some(HeldTurn { locks: Some(locks), turn }))
    }

    /// Says, of a turn that this process has, that it is at work: whoever waits for the turn begins to count anew.
    pub(crate) fn goes_on(&self, turn: Turn) {
        if let Some(count) = turn.count_at() {
            self.words()[count].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often the turn was taken, and whoever had it went on.
    pub(crate) fn turns(&self, turn: Turn) -> u64 {
        turn.count_at().map_or(0, |count| self.words()[count].load(Ordering::Relaxed))
    }

    /// The same, but waits for another process.
    ///
    /// # Errors
    /// `Busy` if one that has it does not go on for so long that it must be stopped, or very many were faster; or if the kernel
    /// refuses.
    pub(crate) fn wait_for(&self, turn: Turn) -> Result<HeldTurn<'_>> {
        let Waited::Turn(held) = self.wait_for_turn(turn, || Ok(None::<Infallible>))?;
        Ok(held)
    }

    /// The same, or until `instead`, which is asked about once a millisecond, says that there is no need any more.
    ///
    /// # Errors
    /// As [`wait_for`](Index::wait_for), or what `instead` says.
    pub(crate) fn wait_for_turn<I>(
        &self,
        turn: Turn,
        mut instead: impl FnMut() -> Result<Option<I>>,
    ) -> Result<Waited<HeldTurn<'_>, I>> {
        const ASKED_EVERY: Duration = Duration::from_millis(1);
        /// Where many wait for the turn, and each takes its time.
        const MOST_TURNS: u32 = 6;
        let (mut wait, started) = (Backoff::default(), Instant::now());
        let mut asked = started;
        // Whoever had it at first may be done: then nobody is stopped yet.
        let (mut turns, mut turned) = (self.turns(turn), started);
        loop {
            if let Some(held) = self.take_turn(turn)? {
                return Ok(Waited::Turn(held));
            }
            let now = self.turns(turn);
            if now != turns {
                (turns, turned) = (now, Instant::now());
            }
            let is_over = || {
                turned.elapsed() > turn.patience()
                    || started.elapsed() > MOST_TURNS * turn.patience()
            };
            if wait.gave_time() && is_over() {
                return Err(busy("lock the directory"));
            }
            if asked.elapsed() > ASKED_EVERY {
                if let Some(instead) = instead()? {
                    return Ok(Waited::Instead(instead));
                }
                asked = Instant::now();
            }
            wait.pause();
        }
    }

    fn member(&self, number: u32) -> &[AtomicU64] {
        let at = ATTACH_AT + (number.clamp(1, MOST_PROCESSES) - 1) as usize * MEMBER_WORDS;
        &self.words()[at..at + MEMBER_WORDS]
    }

    /// Enters this process, under an incarnation that its number has not had lately.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        let number = self.membership.number;
        let line = self.member(number);
        let before = line[0].fetch_and(!ATTACHED, Ordering::AcqRel);
        let was_attached = before & ATTACHED != 0;
        let before = before as u32;
        // After that, or whoever had the number would seem to live for as long as this process stands still here.
        if let Some(locks) = &self.membership.locks
            && !lock::try_lock(locks, i64::from(number))?
        {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process has taken the same number",
            ));
        }
        let mut incarnation = crate::engine::segment::random()? as u32 & INCARNATION;
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
        self.membership.owner = incarnation << NUMBER_BITS | number;
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
        (self.membership.number != 0).then(|| self.member(self.membership.number))
    }

    /// What names this process in the locks that it takes.
    pub(crate) fn owner(&self) -> u32 {
        self.membership.owner
    }

    /// Whether `owner` is this process.
    pub(crate) fn is_own(&self, owner: u32) -> bool {
        owner == self.owner()
    }

    /// Whether the process called `owner` is attached.
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
            self.membership.locks.as_ref().filter(|_| number != self.membership.number)
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
    pub(crate) fn bury_dead(&self) -> bool {
        if self.membership.locks.is_none() {
            return false;
        }
        for number in self.attached().filter(|number| *number != self.membership.number) {
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
        let others = self.attached().filter(|number| *number != self.membership.number);
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
