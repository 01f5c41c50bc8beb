//! The effect of each step on the state.

use crate::history::{Answer, OpKind};
use crate::model::{
    KEYS, Kind, Protocol, Record, Segment, State, Step, Task, TaskId, Thread, Without,
};

impl Protocol {
    /// One step of a call. `None` if the thread must wait.
    pub(crate) fn call(
        &self,
        state: &mut State,
        thread: &mut Thread,
        step: Step,
        what: OpKind,
        key: u8,
        by: TaskId,
    ) -> Option<()> {
        let at = usize::from(key);
        match step {
            Step::LoadWord => thread.word = state.words[at],
            Step::ReadRecord => {
                let is_unreadable = thread.word.is_some_and(|word| !state.is_readable(word));
                if is_unreadable
                    && state.words[at] != thread.word
                    && !self.lacks(Without::ReadersRetry)
                {
                    thread.steps = self.steps(Task::Call(what, key));
                } else {
                    thread.answer = Some(Answer::Value(state.value(thread.word, state.generation)));
                }
            }
            Step::Find => {
                thread.word = state.words[at];
                let value = state.value(thread.word, state.generation);
                decide(thread, what, value, state.lost[at]);
                if !thread.has_work(what) {
                    thread.steps.clear();
                }
            }
            Step::Reserve => {
                thread.record = Some(state.records.len() as u8);
                let kind = match (what, thread.puts) {
                    (OpKind::Clear, _) => Kind::Clear,
                    (_, Some(value)) => Kind::Value(value),
                    (_, None) => Kind::Tombstone,
                };
                state.records.push(Record {
                    key,
                    kind,
                    sequence: 0,
                    generation: 0,
                    segment: state.active,
                    by,
                    is_copy: false,
                    in_flight: true,
                    stamped: false,
                    synced: false,
                });
            }
            Step::Lock => {
                if state.locks[at].is_some() {
                    return None;
                }
                state.locks[at] = Some(by.0);
                if what == OpKind::Evict && state.words[at] != thread.word {
                    thread.steps.clear();
                }
            }
            Step::ReadGeneration => thread.generation = state.generation,
            Step::Decide => self.decide_under_lock(state, thread, what, key),
            Step::CountUp => {
                let before = thread.word.filter(|word| state.records[usize::from(*word)].stamped);
                let before = before.map(|word| state.records[usize::from(word)].generation);
                // An entry of the current generation is already counted. A record of an older
                // generation is dead as soon as it is published.
                if before != Some(thread.generation) && state.count.0 == thread.generation {
                    if state.count.1 < self.bound {
                        state.count.1 += 1;
                    } else if !self.lacks(Without::CountUpFirst) {
                        self.restart(state, thread, what, key);
                        thread.steps.push(Step::MakeRoom);
                    }
                }
            }
            Step::MakeRoom => {
                let other = (at + 1) % KEYS;
                if state.locks[other].is_some() {
                    return None;
                }
                if let Some(word) = state.words[other].take() {
                    state.lost[other] = true;
                    state.count_down(word);
                    state.note_eviction(by);
                }
            }
            Step::TakeSequence => {
                state.records[usize::from(thread.record?)].sequence = state.next_sequence;
                state.next_sequence += 1;
            }
            Step::Stamp => {
                let found = thread.word.map(|word| state.records[usize::from(word)].generation);
                let record = &mut state.records[usize::from(thread.record?)];
                record.generation = match record.kind {
                    Kind::Tombstone => found.unwrap_or(thread.generation),
                    Kind::Value(_) | Kind::Clear => thread.generation,
                };
                record.stamped = true;
                record.in_flight &= what != OpKind::Clear;
            }
            Step::Publish => state.words[at] = thread.record.filter(|_| !thread.removes),
            Step::Empty => {
                state.words[at] = None;
                state.lost[at] |= !self.lacks(Without::LostMark);
            }
            Step::CountDown => state.count_down(thread.word?),
            Step::Sync => {
                let segment = state.records[usize::from(thread.record?)].segment;
                state.sync(|record| record.segment == segment);
            }
            Step::LockClear => {
                if state.clear_lock.is_some() {
                    return None;
                }
                state.clear_lock = Some(by.0);
                thread.generation = state.generation + 1;
                thread.answer = Some(Answer::Done);
            }
            Step::StoreCount => state.count = (thread.generation, 0),
            Step::StoreGeneration => {
                state.generation = thread.generation;
                state.clear_lock = None;
            }
            _ => return None,
        }
        // The last step under the lock releases it, and the record is no longer in flight.
        if state.locks[at] == Some(by.0) && matches!(thread.steps.last(), None | Some(Step::Sync)) {
            state.unlock(thread, at);
        }
        Some(())
    }

    fn decide_under_lock(&self, state: &mut State, thread: &mut Thread, what: OpKind, key: u8) {
        let at = usize::from(key);
        let (puts, removes, word) = (thread.puts, thread.removes, thread.word);
        if !self.lacks(Without::SecondLook) {
            thread.word = state.words[at];
        }
        let value = state.value(thread.word, thread.generation);
        decide(thread, what, value, state.lost[at]);
        let is_other = (puts, removes) != (thread.puts, thread.removes);
        // An increment requires the same entry whose value it has read.
        let is_outdated = what == OpKind::Incr && thread.word != word;
        if !thread.has_work(what) {
            thread.steps.clear();
        } else if is_other || is_outdated {
            self.restart(state, thread, what, key);
        } else if removes && value.is_none() {
            // The key is absent, but a recovery may bring it back: only the tombstone is written.
            thread.steps.retain(|step| !matches!(step, Step::Publish | Step::CountDown));
        }
    }

    /// Abandons the reserved space in the log, and starts again.
    fn restart(&self, state: &mut State, thread: &mut Thread, what: OpKind, key: u8) {
        state.unlock(thread, key.into());
        thread.record = None;
        thread.steps = self.steps(Task::Call(what, key));
    }

    /// One step of a compaction. `None` if the thread must wait.
    pub(crate) fn compact(&self, state: &mut State, thread: &mut Thread, step: Step) -> Option<()> {
        match step {
            Step::Rotate => {
                let old = state.active;
                let in_flight = state.records.iter().any(|r| r.segment == old && r.in_flight);
                if in_flight && !self.lacks(Without::DrainBeforeSealing) {
                    return None;
                }
                state.segments[usize::from(old)] = Segment::Sealed;
                state.active = state.segments.len() as u8;
                state.segments.push(Segment::Open);
                thread.source = state.segments.iter().position(|s| *s == Segment::Sealed)? as u8;
            }
            Step::Copy => {
                let target = state.segments.len() as u8;
                for key in 0..KEYS {
                    let Some(word) = state.words[key].filter(|word| state.is_readable(*word))
                    else {
                        continue;
                    };
                    let mut copy = state.records[usize::from(word)];
                    if copy.segment != thread.source {
                        continue;
                    }
                    if self.lacks(Without::CopyKeepsSequence) {
                        copy.sequence = state.next_sequence;
                        state.next_sequence += 1;
                    }
                    (copy.segment, copy.is_copy, copy.in_flight, copy.synced) =
                        (target, true, false, false);
                    thread.copies[key] = Some((word, state.records.len() as u8));
                    state.records.push(copy);
                }
                if thread.copies.iter().any(Option::is_some) {
                    state.segments.push(Segment::Sealed);
                }
            }
            Step::SyncCopies => state.sync(|record| record.is_copy),
            Step::Redirect => {
                for key in (0..KEYS).filter(|key| thread.copies[*key].is_some()) {
                    if state.locks[key].is_some() {
                        return None;
                    }
                }
                for (word, (from, to)) in
                    state.words.iter_mut().zip(thread.copies).filter_map(|(w, c)| Some((w, c?)))
                {
                    if *word == Some(from) || self.lacks(Without::CompareBeforeRedirecting) {
                        *word = Some(to);
                    }
                }
            }
            Step::SetEmptied => {
                let is_named = state
                    .words
                    .iter()
                    .flatten()
                    .any(|w| state.records[usize::from(*w)].segment == thread.source);
                if !is_named {
                    state.segments[usize::from(thread.source)] = Segment::Emptied;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// One step of a checkpoint. `None` if the thread must wait.
    pub(crate) fn checkpoint(
        &self,
        state: &mut State,
        thread: &mut Thread,
        step: Step,
    ) -> Option<()> {
        let snapshot = &mut thread.snapshot;
        match step {
            Step::NoteEmptied => {
                let emptied = |(_, segment): &(u8, &Segment)| **segment == Segment::Emptied;
                thread.emptied = (0..)
                    .zip(&state.segments)
                    .filter(emptied)
                    .fold(0, |bits, (id, _)| bits | 1 << id);
            }
            Step::NotePosition => {
                let open = |r: &Record| r.segment == state.active && r.in_flight;
                let first = state.records.iter().position(open);
                let first = first.filter(|_| !self.lacks(Without::PositionOfFirstInFlight));
                snapshot.position = (state.active, first.unwrap_or(state.records.len()) as u8);
            }
            Step::NoteSequence => snapshot.sequence = state.next_sequence,
            Step::NoteGeneration => {
                if state.clear_lock.is_some() && !self.lacks(Without::WaitForClear) {
                    return None;
                }
                snapshot.generation = state.generation;
            }
            Step::CopyChain(key) => {
                if state.locks[usize::from(key)].is_some() && !self.lacks(Without::WaitForLocks) {
                    return None;
                }
                snapshot.words[usize::from(key)] = state.words[usize::from(key)];
            }
            Step::SyncLog => {
                let copies = ![Without::SecondSyncOfCopies, Without::AnySyncOfCopies]
                    .contains(&self.without);
                state.sync(|record| copies || !record.is_copy);
            }
            Step::SyncWords => snapshot.words_synced = true,
            Step::WriteHeader => state.header = Some(*snapshot),
            Step::SyncHeader => state.snapshot = state.header.take()?,
            Step::Release => {
                for (id, segment) in state.segments.iter_mut().enumerate() {
                    if thread.emptied & (1 << id) != 0 && *segment == Segment::Emptied {
                        *segment = Segment::Removed;
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }
}

impl Thread {
    /// Whether a call changes anything, after [`decide`].
    fn has_work(&self, what: OpKind) -> bool {
        match what {
            OpKind::Evict => self.word.is_some(),
            _ => self.removes || self.puts.is_some(),
        }
    }
}

impl State {
    fn unlock(&mut self, thread: &Thread, key: usize) {
        self.locks[key] = None;
        if let Some(record) = thread.record {
            self.records[usize::from(record)].in_flight = false;
        }
    }

    /// Decrements the count for a removed entry that named this record.
    fn count_down(&mut self, word: u8) {
        if self.records[usize::from(word)].generation == self.count.0 {
            self.count.1 = self.count.1.saturating_sub(1);
        }
    }

    /// Syncs the stamped records that `covers` selects.
    fn sync(&mut self, covers: impl Fn(&Record) -> bool) {
        self.records
            .iter_mut()
            .filter(|record| record.stamped && covers(record))
            .for_each(|r| r.synced = true);
    }
}

/// Decides what a call changes and answers, from the current value.
fn decide(thread: &mut Thread, what: OpKind, value: Option<u8>, lost: bool) {
    (thread.puts, thread.removes) = match what {
        OpKind::Set(new) => (Some(new), false),
        OpKind::Add(new) => (Some(new).filter(|_| value.is_none()), false),
        OpKind::Incr => (value.map(|n| n + 1), false),
        // A recovery may bring an evicted value back. The tombstone prevents that.
        OpKind::Delete => (None, value.is_some() || lost),
        OpKind::Clear | OpKind::Get | OpKind::Evict => (None, false),
    };
    thread.answer = Some(match what {
        OpKind::Add(_) => Answer::Did(value.is_none()),
        OpKind::Delete => Answer::Did(value.is_some()),
        OpKind::Incr => Answer::Value(thread.puts),
        _ => Answer::Done,
    });
}
