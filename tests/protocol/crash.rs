//! Recovery in the model: after a kill of all processes, or after a power cut that leaves any part
//! of what was not synced. It is checked in every state.

use crate::history::{Answer, Finally, OpKind, Operation, is_explained};
use crate::model::{Kind, Protocol, Record, Segment, Snapshot, State, Without};

/// Which part of a record is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Nothing,
    /// The header without the value.
    Header,
    All,
}

/// The content of a key after a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Value(Option<u8>),
    /// The bytes of a record without its value, returned as a value.
    Garbage,
}

fn recover(
    protocol: &Protocol,
    state: &State,
    key: u8,
    snapshot: &Snapshot,
    there: &[Presence],
    removed_are_back: bool,
) -> Found {
    let is_there = |number: usize, record: &Record| {
        // A record that has lost its value counts as never written.
        let is_whole = there[number] == Presence::All || protocol.lacks(Without::CheckOfValue);
        record.stamped
            && there[number] != Presence::Nothing
            && is_whole
            && (removed_are_back || state.segments[usize::from(record.segment)] != Segment::Removed)
    };
    let is_behind = |number: usize, record: &Record| {
        let (segment, from) = snapshot.position;
        record.segment > segment || (record.segment == segment && number >= usize::from(from))
    };
    let mut generation = snapshot.generation;
    let word = snapshot.words[usize::from(key)].map(usize::from);
    let mut newest: Option<usize> =
        word.filter(|number| is_there(*number, &state.records[*number]));
    for (number, record) in state.records.iter().enumerate() {
        if !is_there(number, record) || !is_behind(number, record) {
            continue;
        }
        generation = generation.max(record.generation);
        let is_new =
            record.sequence >= snapshot.sequence || protocol.lacks(Without::OnlyNewRecords);
        let is_newer = newest.is_none_or(|newest| state.records[newest].sequence < record.sequence);
        if record.kind != Kind::Clear && record.key == key && is_new && is_newer {
            newest = Some(number);
        }
    }
    let Some(newest) = newest else { return Found::Value(None) };
    match state.records[newest].kind {
        Kind::Value(_) if state.records[newest].generation < generation => Found::Value(None),
        Kind::Value(_) if there[newest] == Presence::Header => Found::Garbage,
        Kind::Value(value) => Found::Value(Some(value)),
        Kind::Tombstone | Kind::Clear => Found::Value(None),
    }
}

/// Whether a kill in this state keeps all acknowledged operations, and shows no value that no
/// operation stored.
pub(crate) fn kill_is_harmless(protocol: &Protocol, state: &State) -> bool {
    let there = vec![Presence::All; state.records.len()];
    let snapshot = state.header.as_ref().unwrap_or(&state.snapshot);
    (0..protocol.keys()).all(|key| {
        let operations: Vec<_> =
            state.operations(protocol, key).into_iter().map(|(o, _)| o).collect();
        match recover(protocol, state, key, snapshot, &there, false) {
            Found::Value(value) => {
                is_explained(&operations, state.initial(key), Finally::Recovered(value))
            }
            Found::Garbage => false,
        }
    })
}

/// Whether a power cut in this state leaves no value that is older than a synced one, and no
/// garbage.
pub(crate) fn power_cut_is_harmless(protocol: &Protocol, state: &State) -> bool {
    let snapshots = [Some(state.snapshot), state.header];
    let without_words = |snapshot: Snapshot| {
        let lost = Snapshot { words: Default::default(), ..snapshot };
        (!snapshot.words_synced).then_some(lost)
    };
    let snapshots: Vec<Snapshot> = snapshots
        .into_iter()
        .flatten()
        .flat_map(|s| [Some(s), without_words(s)])
        .flatten()
        .collect();
    let doubtful: Vec<usize> = (0..state.records.len())
        .filter(|n| state.records[*n].stamped && !state.records[*n].synced)
        .collect();
    let any_removed = state.segments.contains(&Segment::Removed);
    let mut there = vec![Presence::All; state.records.len()];
    (0..protocol.keys()).all(|key| {
        let operations = durable(protocol, state, key);
        let initial = state.initial(key);
        (0..3usize.pow(doubtful.len() as u32)).all(|mut choice| {
            for number in &doubtful {
                there[*number] = [Presence::Nothing, Presence::Header, Presence::All][choice % 3];
                choice /= 3;
            }
            snapshots.iter().all(|snapshot| {
                [false, true].into_iter().take(1 + usize::from(any_removed)).all(|back| {
                    match recover(protocol, state, key, snapshot, &there, back) {
                        Found::Value(value) => {
                            is_explained(&operations, initial, Finally::Recovered(value))
                        }
                        Found::Garbage => false,
                    }
                })
            })
        })
    })
}

/// The calls that changed `key`, or may have changed it. Those whose records are synced are
/// required.
fn durable(protocol: &Protocol, state: &State, key: u8) -> Vec<Operation> {
    let operations = state.operations(protocol, key).into_iter();
    let changes = operations.filter(|(operation, _)| {
        let answer = operation.returned.map(|(_, answer)| answer);
        operation.what != OpKind::Get
            && !matches!(answer, Some(Answer::Did(false) | Answer::Value(None)))
    });
    changes
        .map(|(operation, by)| {
            let is_synced = |r: &Record| r.by == by && r.synced;
            let required =
                operation.required && (protocol.sync || state.records.iter().any(is_synced));
            Operation { required, ..operation }
        })
        .collect()
}
