//! What is shared, who works on it, and in which order the steps are done: as `docs/design.md` has them, or with one of
//! them left out. A step is one access to what is shared, with what its thread does for itself around it.

use stateright::{Model, Property};

use crate::crash;
use crate::history::{Finally, INITIAL, Operation, Told, What, is_explained};

/// A step that is left out, or done in the wrong place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Without {
    /// All is as it should be.
    Nothing,
    /// commit: the key is not looked at again under the lock.
    SecondLook,
    /// commit: the sequence is taken before the lock is.
    SequenceUnderLock,
    /// commit: the word is published before the record is stamped.
    StampBeforeWord,
    /// commit: the slot of a deleted key is emptied before its tombstone is stamped.
    TombstoneBeforeEmptying,
    /// commit: `Sync` returns without a sync.
    SyncOfWrites,
    /// commit: a new entry is counted after it was published.
    CountUpFirst,
    /// commit: a deleted entry is not counted any more while it is still there.
    CountDownLast,
    /// evict: the chain is not marked, so a delete that finds nothing logs nothing.
    LostMark,
    /// clear: the generation is raised before the record is stamped.
    ClearStampedFirst,
    /// get: what cannot be read is a miss, even if the word has changed.
    ReadersRetry,
    /// rotate: a segment is sealed while something in it is in flight.
    DrainBeforeSealing,
    /// compact: the copy takes a sequence of its own.
    CopyKeepsSequence,
    /// compact: the copy is published whatever the slot holds by then.
    CompareBeforeRedirecting,
    /// compact: copies are not synced before entries name them.
    SyncOfCopies,
    /// checkpoint: copies are not synced.
    SecondSyncOfCopies,
    /// Neither syncs them.
    AnySyncOfCopies,
    /// checkpoint: which segments go is decided in the end.
    EmptiedBeforeItBegan,
    /// checkpoint: the log goes on where nothing is reserved yet, whatever is in flight.
    PositionOfFirstInFlight,
    /// checkpoint: the generation is noted before the position.
    GenerationAfterPosition,
    /// checkpoint: a clear that is under way is not waited for.
    WaitForClear,
    /// checkpoint: a chain is copied while somebody has it locked.
    WaitForLocks,
    /// checkpoint: the segments are not synced.
    SyncOfLog,
    /// checkpoint: the words are not synced before the header is written.
    SyncOfWords,
    /// checkpoint: emptied segments go before the header is synced.
    HeaderBeforeRelease,
    /// recovery: records from before the snapshot are replayed as well, where they are met.
    OnlyNewRecords,
    /// recovery: the value's check is not looked at.
    CheckOfValue,
}

/// What one thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// A call that concerns this key; a clear concerns all.
    Call(What, u8),
    /// Seals the active segment, copies what is alive out of the oldest that is sealed, and empties that.
    Compact,
    Checkpoint,
}

/// More than any scenario uses.
pub(crate) const KEYS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Value(u8),
    Tombstone,
    Clear,
}

/// A thread's number, and the number of its task.
pub(crate) type By = (u8, u8);

/// Set in the number of a task that made room by evicting the other key's entry.
const EVICTS: u8 = 0x80;

/// Who stored what there is in the beginning.
const BEGINNING: By = (u8::MAX, 0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) key: u8,
    pub(crate) kind: Kind,
    pub(crate) sequence: u8,
    pub(crate) generation: u8,
    pub(crate) segment: u8,
    /// Who wrote it, or what it is a copy of.
    pub(crate) by: By,
    pub(crate) is_copy: bool,
    pub(crate) in_flight: bool,
    pub(crate) stamped: bool,
    pub(crate) synced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Segment {
    Open,
    Sealed,
    Emptied,
    Gone,
}

/// What a checkpoint writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Snapshot {
    pub(crate) sequence: u8,
    pub(crate) generation: u8,
    /// Segment and record.
    pub(crate) position: (u8, u8),
    pub(crate) words: [Option<u8>; KEYS],
    pub(crate) words_synced: bool,
}

/// The next step of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    // commit
    Find,
    Reserve,
    Lock,
    ReadGeneration,
    Decide,
    CountUp,
    TakeSequence,
    Stamp,
    Publish,
    CountDown,
    Sync,
    MakeRoom,
    // get
    LoadWord,
    ReadRecord,
    // clear
    LockClear,
    StoreCount,
    StoreGeneration,
    // evict
    Empty,
    // compact
    Rotate,
    Copy,
    SyncCopies,
    Redirect,
    SetEmptied,
    // checkpoint
    NoteEmptied,
    NotePosition,
    NoteSequence,
    NoteGeneration,
    CopyChain(u8),
    SyncLog,
    SyncWords,
    WriteHeader,
    SyncHeader,
    Release,
}

/// What one thread knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Thread {
    /// How many of its tasks it has done.
    pub(crate) task: u8,
    /// The steps of its task that are left, the next one last.
    pub(crate) steps: Vec<Step>,
    pub(crate) record: Option<u8>,
    /// The word that it saw.
    pub(crate) word: Option<u8>,
    pub(crate) generation: u8,
    pub(crate) puts: Option<u8>,
    pub(crate) removes: bool,
    pub(crate) told: Option<Told>,
    /// The segment that it compacts, and what it copied of each key: from where, to where.
    pub(crate) source: u8,
    pub(crate) copies: [Option<(u8, u8)>; KEYS],
    pub(crate) snapshot: Snapshot,
    /// The emptied segments when the checkpoint began, a bit each.
    pub(crate) emptied: u8,
    pub(crate) dead: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) next_sequence: u8,
    pub(crate) generation: u8,
    /// A generation and the number of its entries.
    pub(crate) count: (u8, u8),
    /// The bucket of each key: the record that its entry names, who has it locked, and whether it lost an entry.
    pub(crate) words: [Option<u8>; KEYS],
    pub(crate) locks: [Option<u8>; KEYS],
    pub(crate) lost: [bool; KEYS],
    pub(crate) clear_lock: Option<u8>,
    /// In the order of their places in the log.
    pub(crate) records: Vec<Record>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) active: u8,
    /// The newest snapshot that is on the disk.
    pub(crate) snapshot: Snapshot,
    /// The one whose header was written and is not synced.
    pub(crate) header: Option<Snapshot>,
    pub(crate) threads: Vec<Thread>,
    /// Beginnings and ends of calls, with what was told in the end.
    calls: Vec<(By, Option<Told>)>,
}

/// A thread goes on, or its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Goes(u8, Step),
    Dies(u8),
}

/// Who does what, and which step is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) tasks: Vec<Vec<Task>>,
    pub(crate) without: Without,
    /// Most entries.
    pub(crate) bound: u8,
    /// How many keys have a value in the beginning.
    pub(crate) filled: u8,
    /// Whether each write is synced before it returns.
    pub(crate) sync: bool,
    /// Whether one of the processes may die by itself.
    pub(crate) deaths: bool,
    /// Whether there is a snapshot in the beginning.
    pub(crate) snapshot: bool,
}

impl Protocol {
    pub(crate) fn lacks(&self, step: Without) -> bool {
        self.without == step
    }

    /// The steps of a task, the first one last.
    pub(crate) fn steps(&self, task: Task) -> Vec<Step> {
        let mut steps = match task {
            Task::Call(what, _) => self.steps_of_call(what),
            Task::Compact => {
                vec![Step::Rotate, Step::Copy, Step::SyncCopies, Step::Redirect, Step::SetEmptied]
            }
            Task::Checkpoint => self.steps_of_checkpoint(),
        };
        let left_out = match self.without {
            Without::SyncOfCopies | Without::AnySyncOfCopies => Some(Step::SyncCopies),
            Without::SyncOfWrites => Some(Step::Sync),
            Without::SyncOfLog => Some(Step::SyncLog),
            Without::SyncOfWords => Some(Step::SyncWords),
            _ => None,
        };
        steps.retain(|step| Some(*step) != left_out && (self.sync || *step != Step::Sync));
        steps.reverse();
        steps
    }

    fn steps_of_call(&self, what: What) -> Vec<Step> {
        use Step::*;
        match (what, self.without) {
            (What::Get, _) => vec![LoadWord, ReadRecord],
            (What::Evict, _) => vec![Find, Lock, Empty, CountDown],
            (What::Clear, Without::ClearStampedFirst) => {
                vec![Reserve, LockClear, TakeSequence, StoreCount, StoreGeneration, Stamp, Sync]
            }
            (What::Clear, _) => {
                vec![Reserve, LockClear, TakeSequence, Stamp, Sync, StoreCount, StoreGeneration]
            }
            (_, Without::SequenceUnderLock) => {
                let mut steps = vec![Find, Reserve, TakeSequence, Lock, ReadGeneration, Decide];
                steps.extend(if what == What::Delete {
                    [Stamp, Publish, CountDown]
                } else {
                    [CountUp, Stamp, Publish]
                });
                steps.push(Sync);
                steps
            }
            _ => {
                let mut steps = vec![Find, Reserve, Lock, ReadGeneration, Decide];
                steps.extend(match (what, self.without) {
                    (What::Delete, Without::TombstoneBeforeEmptying) => {
                        [TakeSequence, Publish, Stamp, CountDown]
                    }
                    (What::Delete, Without::CountDownLast) => {
                        [TakeSequence, Stamp, CountDown, Publish]
                    }
                    (What::Delete, _) => [TakeSequence, Stamp, Publish, CountDown],
                    (_, Without::StampBeforeWord) => [CountUp, TakeSequence, Publish, Stamp],
                    (_, Without::CountUpFirst) => [TakeSequence, Stamp, Publish, CountUp],
                    _ => [CountUp, TakeSequence, Stamp, Publish],
                });
                steps.push(Sync);
                steps
            }
        }
    }

    fn steps_of_checkpoint(&self) -> Vec<Step> {
        use Step::*;
        let mut steps = match self.without {
            Without::EmptiedBeforeItBegan => vec![NotePosition, NoteSequence, NoteGeneration],
            Without::GenerationAfterPosition => {
                vec![NoteEmptied, NoteGeneration, NotePosition, NoteSequence]
            }
            _ => vec![NoteEmptied, NotePosition, NoteSequence, NoteGeneration],
        };
        steps.extend((0..self.keys()).map(CopyChain));
        steps.extend([SyncLog, SyncWords, WriteHeader]);
        steps.extend(match self.without {
            Without::EmptiedBeforeItBegan => vec![SyncHeader, NoteEmptied, Release],
            Without::HeaderBeforeRelease => vec![Release, SyncHeader],
            _ => vec![SyncHeader, Release],
        });
        steps
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u8 {
        let named = self.tasks.iter().flatten().map(|task| match task {
            Task::Call(_, key) => key + 1,
            Task::Compact | Task::Checkpoint => 1,
        });
        named.max().unwrap_or(1).max(self.filled)
    }

    /// What `thread` leaves when it goes on; `None` if it has to wait, or is done.
    fn go(&self, last: &State, number: u8) -> Option<State> {
        let mut state = last.clone();
        let mut thread = std::mem::take(&mut state.threads[number as usize]);
        let task = *self.tasks[number as usize].get(thread.task as usize)?;
        if thread.dead {
            return None;
        }
        let by = (number, thread.task);
        let is_call = matches!(task, Task::Call(..));
        if thread.steps.is_empty() {
            thread.steps = self.steps(task);
            if is_call {
                state.calls.push((by, None));
            }
        }
        let step = thread.steps.pop()?;
        match task {
            Task::Call(what, key) => self.call(&mut state, &mut thread, step, what, key, by)?,
            Task::Compact => self.compact(&mut state, &mut thread, step)?,
            Task::Checkpoint => self.checkpoint(&mut state, &mut thread, step)?,
        }
        if thread.steps.is_empty() {
            if is_call {
                state.calls.push((by, thread.told));
            }
            thread = Thread { task: thread.task + 1, ..Thread::default() };
        }
        state.threads[number as usize] = thread;
        Some(state)
    }

    /// What a thread leaves whose process dies: the next one takes its locks, and finishes its clear.
    fn die(&self, last: &State, number: u8) -> Option<State> {
        let thread = &last.threads[number as usize];
        if !self.deaths || thread.steps.is_empty() || last.threads.iter().any(|t| t.dead) {
            return None;
        }
        let mut state = last.clone();
        state.locks.iter_mut().filter(|lock| **lock == Some(number)).for_each(|lock| *lock = None);
        state.records.iter_mut().filter(|r| r.by.0 == number).for_each(|r| r.in_flight = false);
        if state.clear_lock == Some(number) {
            state.clear_lock = None;
            let stamped =
                thread.record.map(|record| &last.records[record as usize]).filter(|r| r.stamped);
            if let Some(generation) =
                stamped.map(|r| r.generation).filter(|g| *g > state.generation)
            {
                state.generation = generation;
                if state.count.0 < generation {
                    state.count = (generation, 0);
                }
            }
        }
        state.threads[number as usize].dead = true;
        Some(state)
    }
}

impl State {
    /// Whether a reader can read the record.
    pub(crate) fn is_readable(&self, record: u8) -> bool {
        let record = &self.records[record as usize];
        record.stamped && self.segments[record.segment as usize] != Segment::Gone
    }

    /// The value that `word` leads to where `generation` is the current one.
    pub(crate) fn value(&self, word: Option<u8>, generation: u8) -> Option<u8> {
        let record = &self.records[word.filter(|word| self.is_readable(*word))? as usize];
        match record.kind {
            Kind::Value(value) if record.generation >= generation => Some(value),
            _ => None,
        }
    }

    /// What the key had in the beginning.
    pub(crate) fn initial(&self, key: u8) -> Option<u8> {
        self.records
            .iter()
            .any(|record| record.by == BEGINNING && record.key == key)
            .then_some(INITIAL)
    }

    /// The calls that concern `key`, and who made them.
    pub(crate) fn operations(&self, protocol: &Protocol, key: u8) -> Vec<(Operation, By)> {
        let mut operations: Vec<(Operation, By)> = Vec::new();
        for (moment, (by, told)) in (0..).zip(&self.calls) {
            let task = protocol.tasks[by.0 as usize][(by.1 & !EVICTS) as usize];
            let Task::Call(what, of) = task else { continue };
            let (what, of) =
                if by.1 & EVICTS == 0 { (what, of) } else { (What::Evict, KEYS as u8 - 1 - of) };
            match told {
                _ if of != key && what != What::Clear => {}
                None => {
                    let operation =
                        Operation { what, began: moment, returned: None, required: false };
                    operations.push((operation, *by));
                }
                Some(told) => {
                    if let Some((operation, _)) = operations.iter_mut().rfind(|(_, b)| b == by) {
                        operation.returned = Some((moment, *told));
                        // An eviction may find that there is nothing to evict.
                        operation.required = what != What::Evict;
                    }
                }
            }
        }
        operations
    }

    /// A call evicted the entry of the other key.
    pub(crate) fn note_eviction(&mut self, (thread, task): By) {
        let by = (thread, task | EVICTS);
        self.calls.extend([(by, None), (by, Some(Told::Done))]);
    }

    /// Whether what was told so far can be explained, and what each key holds when all have returned.
    fn is_linearizable(&self, protocol: &Protocol) -> bool {
        (0..protocol.keys()).all(|key| {
            let operations: Vec<_> =
                self.operations(protocol, key).into_iter().map(|(o, _)| o).collect();
            let all_returned = operations.iter().all(|o| o.returned.is_some());
            let value = self.value(self.words[key as usize], self.generation);
            let finally = if all_returned { Finally::Holds(value) } else { Finally::Anything };
            is_explained(&operations, self.initial(key), finally)
        })
    }

    /// Entries that count.
    fn entries(&self) -> usize {
        let counts = |word: &u8| {
            let record = &self.records[*word as usize];
            record.stamped && record.generation == self.count.0
        };
        self.words.iter().flatten().filter(|word| counts(word)).count()
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let record = |key| Record {
            key,
            kind: Kind::Value(INITIAL),
            sequence: key + 1,
            generation: 0,
            segment: 0,
            by: BEGINNING,
            is_copy: false,
            in_flight: false,
            stamped: true,
            synced: true,
        };
        let words = std::array::from_fn(|key| (key < self.filled as usize).then_some(key as u8));
        let beginning = State {
            next_sequence: self.filled + 1,
            generation: 0,
            count: (0, self.filled),
            words,
            locks: [None; KEYS],
            lost: [false; KEYS],
            clear_lock: None,
            records: (0..self.filled).map(record).collect(),
            segments: vec![Segment::Open],
            active: 0,
            snapshot: Snapshot { words_synced: true, ..Snapshot::default() },
            header: None,
            threads: vec![Thread::default(); self.tasks.len()],
            calls: Vec::new(),
        };
        if !self.snapshot {
            return vec![beginning];
        }
        let (sequence, position) = (beginning.next_sequence, (0, self.filled));
        let snapshot = Snapshot { sequence, position, words, ..beginning.snapshot };
        vec![State { snapshot, ..beginning }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, thread) in (0..).zip(&state.threads) {
            let Some(task) = self.tasks[number as usize].get(thread.task as usize) else {
                continue;
            };
            let next = thread.steps.last().copied().or_else(|| self.steps(*task).last().copied());
            actions.extend(next.map(|step| Action::Goes(number, step)));
            actions.push(Action::Dies(number));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Goes(thread, _) => self.go(state, thread),
            Action::Dies(thread) => self.die(state, thread),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "what callers are told fits one order of their calls",
                |protocol, state: &State| state.is_linearizable(protocol),
            ),
            Property::always("a kill loses nothing, and brings nothing back", |protocol, state| {
                crash::kill_is_harmless(protocol, state)
            }),
            Property::always(
                "a power cut leaves nothing older than what was synced",
                |protocol, state| crash::power_cut_is_harmless(protocol, state),
            ),
            Property::always(
                "there are never more entries than the bound",
                |protocol, state: &State| state.entries() <= protocol.bound.into(),
            ),
        ]
    }
}
