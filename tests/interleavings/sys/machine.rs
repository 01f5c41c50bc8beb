//! A simulated machine with its memory, and the processes on it.

use std::cell::Cell as Local;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicU64 as Plain;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed};
use std::sync::{Arc, OnceLock};

/// The kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The memory of the processor.
    Plain,
    /// Loom: over all runs, each load returns each value that its memory order allows.
    Loom,
    /// Shuttle: one random order of all accesses in each run.
    Shuttle,
}

thread_local! {
    static MEMORY: Local<Memory> = const { Local::new(Memory::Plain) };
}

/// The memory of the machines of this thread.
pub(crate) fn memory() -> Memory {
    MEMORY.get()
}

/// A fault of a machine. A scenario must detect it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// All stores are relaxed: they do not publish earlier stores.
    RelaxedStores,
    /// A compare-and-swap does not compare.
    BlindSwaps,
    /// The kernel reports every process as dead.
    AllSeemDead,
    /// `BlindSwaps` and `AllSeemDead`.
    BlindAndAllSeemDead,
}

type Loom = loom::sync::atomic::AtomicU64;

#[derive(Debug)]
enum Word {
    Plain(Plain),
    Loom(Loom, Readers),
    Shuttle(shuttle::sync::atomic::AtomicU64),
}

/// For loom: an extra word for each reader of a word.
///
/// Loom runs two accesses in both orders if one of them is a store. But it remembers only the last
/// access of a word: if two threads load a word and the second one then stores it, loom does not
/// reorder the first load. So a process that loads a word also loads its own reader word, and a
/// process that stores a word changes the reader words of all others.
#[derive(Debug)]
struct Readers([Loom; LOOM_PROCESSES]);

const LOOM_PROCESSES: usize = 2;

impl Readers {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Loom::new(0)))
    }

    fn look(&self, process: u64) {
        self.0[process as usize - 1].load(Relaxed);
    }

    fn change(&self, process: u64) {
        for reader in (1..=LOOM_PROCESSES).filter(|reader| *reader as u64 != process) {
            self.0[reader - 1].fetch_add(1, Relaxed);
        }
    }
}

impl Word {
    fn new(memory: Memory, value: u64) -> Self {
        match memory {
            Memory::Plain => Self::Plain(Plain::new(value)),
            Memory::Loom => Self::Loom(Loom::new(value), Readers::new()),
            Memory::Shuttle => Self::Shuttle(shuttle::sync::atomic::AtomicU64::new(value)),
        }
    }
}

/// Evaluates `$do` with the atomic of a word, as an access by a process: `look` or `change`.
macro_rules! on {
    ($word:expr, $process:expr, $access:ident, $atomic:ident => $do:expr) => {
        match $word {
            Word::Plain($atomic) => $do,
            Word::Loom($atomic, readers) => {
                readers.$access($process);
                $do
            }
            Word::Shuttle($atomic) => $do,
        }
    };
}

/// The numbers of records and of lock bytes, enough for the processes and the roles of a scenario.
/// They are small for loom, which creates them slowly.
fn records_and_locks(memory: Memory) -> (usize, usize) {
    if memory == Memory::Loom { (4, LOOM_PROCESSES + 1) } else { (64, 16) }
}
/// The lock bytes of processes end here; those of the roles follow.
const ROLES_AT: i64 = crate::engine::format::index_header::MOST_PROCESSES as i64;

#[derive(Debug)]
pub(crate) struct Machine {
    memory: Memory,
    fault: Fault,
    len: Plain,
    /// Created at the first access, as most are never accessed.
    words: Vec<OnceLock<Word>>,
    /// The first words of records.
    records: Vec<Word>,
    /// The holder of each lock byte. The kernel orders the accesses.
    locks: Vec<Word>,
}

impl Machine {
    pub(crate) fn new(memory: Memory, len: usize) -> Arc<Self> {
        Self::with(memory, len, Fault::None)
    }

    pub(crate) fn with(memory: Memory, len: usize, fault: Fault) -> Arc<Self> {
        MEMORY.set(memory);
        let (records, locks) = records_and_locks(memory);
        let words = |count: usize| (0..count).map(|_| Word::new(memory, 0)).collect();
        Arc::new(Self {
            memory,
            fault,
            len: Plain::new(len as u64),
            words: (0..len / 8).map(|_| OnceLock::new()).collect(),
            records: words(records),
            locks: words(locks),
        })
    }

    fn lock(&self, byte: i64) -> &Word {
        let at = if byte > ROLES_AT { self.locks.len() as i64 / 2 + byte - ROLES_AT } else { byte };
        &self.locks[at as usize]
    }
}

/// The payload of the panic that ends a dying process.
pub(crate) struct Died;

/// A process on a machine.
#[derive(Debug)]
pub(crate) struct Process {
    machine: Arc<Machine>,
    number: u64,
    /// The number of changes after which it dies instead of the next one.
    changes_left: Plain,
    dead: Plain,
}

impl Process {
    pub(crate) fn new(machine: &Arc<Machine>, number: u32) -> Arc<Self> {
        let number = u64::from(number);
        let (changes_left, dead) = (Plain::new(u64::MAX), Plain::new(0));
        Arc::new(Self { machine: machine.clone(), number, changes_left, dead })
    }

    /// Makes the process die after `changes` more changes, instead of the next one.
    pub(crate) fn die_after(&self, changes: u64) {
        self.changes_left.store(changes, Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed) != 0
    }

    pub(crate) fn len(&self) -> u64 {
        self.machine.len.load(Relaxed)
    }

    pub(crate) fn set_len(&self, len: u64) {
        assert!(len as usize / 8 <= self.machine.words.len(), "the machine is too small");
        self.machine.len.store(len, Relaxed);
    }

    pub(crate) fn word(self: &Arc<Self>, at: usize) -> AtomicU64 {
        AtomicU64(Of::Word(self.clone(), at))
    }

    /// The value of the word; 0 if it was never accessed.
    pub(crate) fn read(self: &Arc<Self>, at: usize) -> u64 {
        let is_there = self.machine.words[at].get().is_some();
        if is_there { self.word(at).load(Relaxed) } else { 0 }
    }

    pub(crate) fn record(self: &Arc<Self>, number: u32) -> AtomicU64 {
        AtomicU64(Of::Record(self.clone(), number as usize))
    }

    pub(crate) fn try_lock(&self, byte: i64) -> bool {
        let mine = self.number;
        self.may_change()
            && on!(self.machine.lock(byte), self.number, change, a => {
                a.compare_exchange(0, mine, AcqRel, Acquire).is_ok()
            })
    }

    pub(crate) fn unlock(&self, byte: i64) {
        if self.may_change() {
            let _ = on!(self.machine.lock(byte), self.number, change, a => {
                a.compare_exchange(self.number, 0, AcqRel, Acquire)
            });
        }
    }

    pub(crate) fn is_held_by_another(&self, byte: i64) -> bool {
        let by = on!(self.machine.lock(byte), self.number, look, a => a.load(Acquire));
        let lies = matches!(self.machine.fault, Fault::AllSeemDead | Fault::BlindAndAllSeemDead);
        !lies && by != 0 && by != self.number
    }

    /// Counts a change, or dies. Returns whether the change may be made.
    fn may_change(&self) -> bool {
        if self.is_dead() {
            return false;
        }
        let left = self.changes_left.load(Relaxed);
        if left == 0 {
            self.dead.store(1, Relaxed);
            for lock in &self.machine.locks {
                let _ = on!(lock, self.number, change, a => {
                    a.compare_exchange(self.number, 0, AcqRel, Acquire)
                });
            }
            resume_unwind(Box::new(Died));
        }
        self.changes_left.store(left.saturating_sub(u64::from(left != u64::MAX)), Relaxed);
        true
    }
}

#[derive(Debug)]
enum Of {
    Word(Arc<Process>, usize),
    Record(Arc<Process>, usize),
    Private(Word),
}

/// The handle of one process for a word.
#[derive(Debug)]
pub(crate) struct AtomicU64(Of);

impl AtomicU64 {
    /// A word that is not shared.
    pub(crate) fn new(value: u64) -> Self {
        Self(Of::Private(Word::Plain(Plain::new(value))))
    }

    /// The word, and the number of the process that has the handle.
    fn word(&self) -> (&Word, u64) {
        match &self.0 {
            Of::Word(process, at) => {
                let memory = process.machine.memory;
                let word = process.machine.words[*at].get_or_init(|| Word::new(memory, 0));
                (word, process.number)
            }
            Of::Record(process, number) => (&process.machine.records[*number], process.number),
            Of::Private(word) => (word, 0),
        }
    }

    /// The word, the process number and the fault of the machine, if a change may be made.
    fn to_change(&self) -> Option<(&Word, u64, Fault)> {
        let fault = match &self.0 {
            Of::Word(process, _) | Of::Record(process, _) => {
                if !process.may_change() {
                    return None;
                }
                process.machine.fault
            }
            Of::Private(_) => Fault::None,
        };
        let (word, number) = self.word();
        Some((word, number, fault))
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        let (word, number) = self.word();
        on!(word, number, look, a => a.load(order))
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        let Some((word, number, fault)) = self.to_change() else { return };
        let order = if fault == Fault::RelaxedStores { Relaxed } else { order };
        on!(word, number, change, a => a.store(value, order));
    }

    pub(crate) fn compare_exchange(
        &self,
        from: u64,
        to: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let Some((word, number, fault)) = self.to_change() else { return Err(!from) };
        if matches!(fault, Fault::BlindSwaps | Fault::BlindAndAllSeemDead) {
            return Ok(on!(word, number, change, a => a.swap(to, success)));
        }
        on!(word, number, change, a => a.compare_exchange(from, to, success, failure))
    }

    pub(crate) fn compare_exchange_weak(
        &self,
        from: u64,
        to: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.compare_exchange(from, to, success, failure)
    }

    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        mut change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut seen = self.load(failure);
        while let Some(changed) = change(seen) {
            match self.compare_exchange(seen, changed, success, failure) {
                Ok(before) => return Ok(before),
                Err(now) => seen = now,
            }
        }
        Err(seen)
    }

    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.to_change()
            .map_or(0, |(word, number, _)| on!(word, number, change, a => a.swap(value, order)))
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.to_change().map_or(
            0,
            |(word, number, _)| on!(word, number, change, a => a.fetch_add(value, order)),
        )
    }

    pub(crate) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.to_change().map_or(
            0,
            |(word, number, _)| on!(word, number, change, a => a.fetch_and(value, order)),
        )
    }

    pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        self.to_change().map_or(
            0,
            |(word, number, _)| on!(word, number, change, a => a.fetch_max(value, order)),
        )
    }

    pub(crate) fn fetch_min(&self, value: u64, order: Ordering) -> u64 {
        self.to_change().map_or(
            0,
            |(word, number, _)| on!(word, number, change, a => a.fetch_min(value, order)),
        )
    }
}
