//! The model: the shared state, the threads, and the order of their steps. The order is that of
//! `docs/design`, or that order with one step left out. A step is one access to the shared state,
//! together with the private work of its thread around it.

use stateright::{Model, Property};

use crate::crash;
use crate::history::{Answer, Finally, INITIAL, OpKind, Operation, is_explained};

/// A step that is left out, or done at the wrong time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Without {
    /// All steps are there, in the right order.
    Nothing,
    /// commit: the key is not looked up again under the lock.
    SecondLook,
    /// commit: the sequence is taken before the lock.
    SequenceUnderLock,
    /// commit: the word is published before the record is stamped.
    StampBeforeWord,
    /// commit: the slot of a deleted key is emptied before its tombstone is stamped.
    TombstoneBeforeEmptying,
    /// commit: `Sync` returns without a sync.
    SyncOfWrites,
    /// commit: a new entry is counted only after it was published.
    CountUpFirst,
    /// commit: a deleted entry is subtracted from the count before it is removed.
    CountDownLast,
    /// evict: the chain is not marked as lossy, so a delete that finds nothing logs nothing.
    LostMark,
    /// clear: the generation is raised before the record is stamped.
    ClearStampedFirst,
    /// get: an unreadable record is a miss, even if the word has changed.
    ReadersRetry,
    /// rotate: a segment is sealed while a record in it is in flight.
    DrainBeforeSealing,
    /// compact: the copy takes a sequence of its own.
    CopyKeepsSequence,
    /// compact: the copy is published without a comparison with the current word of the slot.
    CompareBeforeRedirecting,
    /// compact: copies are not synced before entries name them.
    SyncOfCopies,
    /// checkpoint: copies are not synced.
    SecondSyncOfCopies,
    /// Neither the compaction nor the checkpoint syncs the copies.
    AnySyncOfCopies,
    /// checkpoint: the segments to remove are chosen at the end.
    EmptiedBeforeItBegan,
    /// checkpoint: the replay position is the end of the log, although records are in flight.
    PositionOfFirstInFlight,
    /// checkpoint: the generation is read before the position.
    GenerationAfterPosition,
    /// checkpoint: it does not wait for a running clear.
    WaitForClear,
    /// checkpoint: a chain is copied while it is locked.
    WaitForLocks,
    /// checkpoint: the segments are not synced.
    SyncOfLog,
    /// checkpoint: the words are not synced before the header is written.
    SyncOfWords,
    /// checkpoint: emptied segments are removed before the header is synced.
    HeaderBeforeRelease,
    /// recovery: records that are older than the snapshot are replayed as well.
    OnlyNewRecords,
    /// recovery: the check of the value is not verified.
    CheckOfValue,
}

/// A task of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// A call on this key; a clear concerns all keys.
    Call(OpKind, u8),
    /// Seals the active segment, copies the live records out of the oldest sealed one, and empties
    /// it.
    Compact,
    Checkpoint,
}

/// The number of keys that a state has; no scenario uses more.
pub(crate) const KEYS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Value(u8),
    Tombstone,
    Clear,
}

/// A thread's number, and the number of its task.
pub(crate) type TaskId = (u8, u8);

/// A flag in the number of a task that evicted the entry of the other key to make room.
const EVICTS: u8 = 0x80;

/// The task that stored the initial values.
const INITIAL_WRITE: TaskId = (u8::MAX, 0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) key: u8,
    pub(crate) kind: Kind,
    pub(crate) sequence: u8,
    pub(crate) generation: u8,
    pub(crate) segment: u8,
    /// The task that wrote it; for a copy, the task that wrote the original.
    pub(crate) by: TaskId,
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
    Removed,
}

/// The snapshot that a checkpoint writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Snapshot {
    pub(crate) sequence: u8,
    pub(crate) generation: u8,
    /// The replay position: segment and record.
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

/// The private state of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Thread {
    /// The number of tasks that it has finished.
    pub(crate) task: u8,
    /// The remaining steps of its task, the next one last.
    pub(crate) steps: Vec<Step>,
    pub(crate) record: Option<u8>,
    /// The word that it saw.
    pub(crate) word: Option<u8>,
    pub(crate) generation: u8,
    pub(crate) puts: Option<u8>,
    pub(crate) removes: bool,
    pub(crate) answer: Option<Answer>,
    /// The segment that it compacts, and for each key the record copied and its copy.
    pub(crate) source: u8,
    pub(crate) copies: [Option<(u8, u8)>; KEYS],
    pub(crate) snapshot: Snapshot,
    /// The segments that were emptied when the checkpoint began, one bit each.
    pub(crate) emptied: u8,
    pub(crate) dead: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) next_sequence: u8,
    pub(crate) generation: u8,
    /// A generation and the number of its entries.
    pub(crate) count: (u8, u8),
    /// The bucket of each key: the record that its entry names, the thread that has it locked, and
    /// whether an entry was evicted from it.
    pub(crate) words: [Option<u8>; KEYS],
    pub(crate) locks: [Option<u8>; KEYS],
    pub(crate) lost: [bool; KEYS],
    pub(crate) clear_lock: Option<u8>,
    /// In the order of the log.
    pub(crate) records: Vec<Record>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) active: u8,
    /// The newest snapshot on the disk.
    pub(crate) snapshot: Snapshot,
    /// The snapshot whose header was written and is not synced.
    pub(crate) header: Option<Snapshot>,
    pub(crate) threads: Vec<Thread>,
    /// Begins and ends of calls; an end has the answer.
    calls: Vec<(TaskId, Option<Answer>)>,
}

/// A transition: a thread does its next step, or its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Proceed(u8, Step),
    Die(u8),
}

/// A scenario: the tasks of the threads, the step that is left out, and the initial state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) tasks: Vec<Vec<Task>>,
    pub(crate) without: Without,
    /// The largest number of entries.
    pub(crate) bound: u8,
    /// The number of keys with an initial value.
    pub(crate) filled: u8,
    /// Whether each write is synced before it returns.
    pub(crate) sync: bool,
    /// Whether one of the processes may die.
    pub(crate) deaths: bool,
    /// Whether there is an initial snapshot.
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

    fn steps_of_call(&self, what: OpKind) -> Vec<Step> {
        use Step::*;
        match (what, self.without) {
            (OpKind::Get, _) => vec![LoadWord, ReadRecord],
            (OpKind::Evict, _) => vec![Find, Lock, Empty, CountDown],
            (OpKind::Clear, Without::ClearStampedFirst) => {
                vec![Reserve, LockClear, TakeSequence, StoreCount, StoreGeneration, Stamp, Sync]
            }
            (OpKind::Clear, _) => {
                vec![Reserve, LockClear, TakeSequence, Stamp, Sync, StoreCount, StoreGeneration]
            }
            (_, Without::SequenceUnderLock) => {
                let mut steps = vec![Find, Reserve, TakeSequence, Lock, ReadGeneration, Decide];
                steps.extend(if what == OpKind::Delete {
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
                    (OpKind::Delete, Without::TombstoneBeforeEmptying) => {
                        [TakeSequence, Publish, Stamp, CountDown]
                    }
                    (OpKind::Delete, Without::CountDownLast) => {
                        [TakeSequence, Stamp, CountDown, Publish]
                    }
                    (OpKind::Delete, _) => [TakeSequence, Stamp, Publish, CountDown],
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

    /// The number of keys that the scenario uses.
    pub(crate) fn keys(&self) -> u8 {
        let named = self.tasks.iter().flatten().map(|task| match task {
            Task::Call(_, key) => key + 1,
            Task::Compact | Task::Checkpoint => 1,
        });
        named.max().unwrap_or(1).max(self.filled)
    }

    /// The state after the next step of a thread; `None` if it must wait or has finished.
    fn proceed(&self, last: &State, number: u8) -> Option<State> {
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
                state.calls.push((by, thread.answer));
            }
            thread = Thread { task: thread.task + 1, ..Thread::default() };
        }
        state.threads[number as usize] = thread;
        Some(state)
    }

    /// The state after the death of a thread's process: its locks are taken over, and its clear is
    /// finished.
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
    /// Whether a reader can read this record.
    pub(crate) fn is_readable(&self, record: u8) -> bool {
        let record = &self.records[record as usize];
        record.stamped && self.segments[record.segment as usize] != Segment::Removed
    }

    /// The value of `word` if `generation` is the current one.
    pub(crate) fn value(&self, word: Option<u8>, generation: u8) -> Option<u8> {
        let record = &self.records[word.filter(|word| self.is_readable(*word))? as usize];
        match record.kind {
            Kind::Value(value) if record.generation >= generation => Some(value),
            _ => None,
        }
    }

    /// The initial value of the key.
    pub(crate) fn initial(&self, key: u8) -> Option<u8> {
        self.records
            .iter()
            .any(|record| record.by == INITIAL_WRITE && record.key == key)
            .then_some(INITIAL)
    }

    /// The calls that concern `key`, with their tasks.
    pub(crate) fn operations(&self, protocol: &Protocol, key: u8) -> Vec<(Operation, TaskId)> {
        let mut operations: Vec<(Operation, TaskId)> = Vec::new();
        for (moment, (by, answer)) in (0..).zip(&self.calls) {
            let task = protocol.tasks[by.0 as usize][(by.1 & !EVICTS) as usize];
            let Task::Call(what, of) = task else { continue };
            let (what, of) =
                if by.1 & EVICTS == 0 { (what, of) } else { (OpKind::Evict, KEYS as u8 - 1 - of) };
            match answer {
                _ if of != key && what != OpKind::Clear => {}
                None => {
                    let operation =
                        Operation { what, began: moment, returned: None, required: false };
                    operations.push((operation, *by));
                }
                Some(answer) => {
                    if let Some((operation, _)) = operations.iter_mut().rfind(|(_, b)| b == by) {
                        operation.returned = Some((moment, *answer));
                        // An eviction may find nothing to evict.
                        operation.required = what != OpKind::Evict;
                    }
                }
            }
        }
        operations
    }

    /// Records that a call evicted the entry of the other key.
    pub(crate) fn note_eviction(&mut self, (thread, task): TaskId) {
        let by = (thread, task | EVICTS);
        self.calls.extend([(by, None), (by, Some(Answer::Done))]);
    }

    /// Whether an order of the calls explains the answers so far, and the value of each key once
    /// all calls have returned.
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

    /// The number of entries of the counted generation.
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
            by: INITIAL_WRITE,
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
            actions.extend(next.map(|step| Action::Proceed(number, step)));
            actions.push(Action::Die(number));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        match action {
            Action::Proceed(thread, _) => self.proceed(state, thread),
            Action::Die(thread) => self.die(state, thread),
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "the answers to callers fit one order of their calls",
                |protocol, state: &State| state.is_linearizable(protocol),
            ),
            Property::always("a kill loses nothing and restores nothing old", |protocol, state| {
                crash::kill_is_harmless(protocol, state)
            }),
            Property::always(
                "a power cut leaves nothing older than what was synced",
                crash::power_cut_is_harmless,
            ),
            Property::always(
                "there are never more entries than the bound",
                |protocol, state: &State| state.entries() <= protocol.bound.into(),
            ),
        ]
    }
}
