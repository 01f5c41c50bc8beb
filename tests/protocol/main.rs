//! A model of the protocol in `docs/design`, explored exhaustively: every order of the steps of a
//! few threads, with a kill and a power cut in every state, and with the death of any one process
//! at any step. Four properties must hold:
//!
//! - the answers to the callers fit one order of their calls;
//! - a kill loses nothing that was acknowledged;
//! - a power cut leaves nothing older than what was synced;
//! - the bound on entries is never exceeded.
//!
//! Each step is necessary: without it, one of these properties fails.
//!
//! The model checks the order of steps, not the code. `tests/power_cut`, `tests/kill_points.rs` and
//! `tests/threads.rs` run the code.
//!
//! Shows invariants I14, I15 and I18.
#![cfg(test)]

mod crash;
mod history;
mod model;
mod steps;

use stateright::{Checker, HasDiscoveries, Model};

use history::OpKind::{self, Add, Clear, Delete, Evict, Get, Incr, Set};
use model::Task::{self, Call, Checkpoint, Compact};
use model::Without::{self, *};
use model::{Action, Protocol};

/// All operations that change a key, and a read.
const CALLS: [OpKind; 7] = [Set(9), Add(8), Incr, Delete, Clear, Evict, Get];

/// Explores a protocol. Returns the number of states, and the shortest path to a state in which a
/// property does not hold.
fn explore(protocol: &Protocol) -> (usize, Option<(&'static str, Vec<Action>)>) {
    let checker =
        protocol.clone().checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let found = checker.discoveries().into_iter().map(|(name, path)| (name, path.into_actions()));
    (checker.unique_state_count(), found.min_by_key(|(_, path)| path.len()))
}

/// A protocol with these tasks of each thread, and with all steps.
fn protocol(tasks: &[&[Task]]) -> Protocol {
    let tasks = tasks.iter().map(|tasks| tasks.to_vec()).collect();
    Protocol {
        tasks,
        without: Nothing,
        bound: 2,
        filled: 1,
        sync: true,
        deaths: false,
        snapshot: true,
    }
}

/// Explores all scenarios, asserts that the properties hold, and prints a summary.
fn holds(what: &str, scenarios: impl Iterator<Item = Protocol>) {
    let started = std::time::Instant::now();
    let (mut count, mut all_states) = (0, 0);
    for scenario in scenarios {
        let (states, found) = explore(&scenario);
        assert_eq!(found, None, "{scenario:?}");
        count += 1;
        all_states += states;
    }
    println!(
        "{what}: {count} scenarios, {all_states} states, no violation, {:?}",
        started.elapsed()
    );
}

/// All unordered pairs of calls.
fn pairs() -> impl Iterator<Item = (Task, Task)> {
    let first = |i: usize, a: OpKind| CALLS[i..].iter().map(move |b| (Call(a, 0), Call(*b, 0)));
    CALLS.into_iter().enumerate().flat_map(move |(i, a)| first(i, a))
}

fn without_snapshot(protocol: Protocol) -> Protocol {
    Protocol { snapshot: false, ..protocol }
}

fn with_death(protocol: Protocol) -> Protocol {
    Protocol { deaths: true, ..protocol }
}

fn with_bound_one(protocol: Protocol) -> Protocol {
    Protocol { bound: 1, ..protocol }
}

fn calls() -> impl Iterator<Item = Task> {
    CALLS.into_iter().map(|what| Call(what, 0))
}

#[test]
fn concurrent_calls_keep_the_properties() {
    let twice = |(a, b)| protocol(&[&[a, a], &[b]]);
    holds("two calls beside one", calls().flat_map(|a| calls().map(move |b| (a, b))).map(twice));
    let seen = |(a, b)| with_death(protocol(&[&[a], &[b, Call(Get, 0)]]));
    holds("one of two dies", pairs().map(seen));
    let two_keys = |a| with_bound_one(protocol(&[&[a, Call(Add(8), 0)], &[Call(Set(9), 1)]]));
    holds("at the bound", calls().map(two_keys));
}

#[test]
fn calls_beside_a_checkpoint_keep_the_properties() {
    let beside = |(a, b)| protocol(&[&[a], &[b], &[Checkpoint]]);
    holds("two calls beside a checkpoint", pairs().map(beside));
    holds("two calls beside the first checkpoint", pairs().map(beside).map(without_snapshot));
    let buffered = |a| Protocol { sync: false, ..protocol(&[&[a], &[Compact], &[Checkpoint]]) };
    holds("a call beside a compaction and a checkpoint, without syncs", calls().map(buffered));
    let rounds = |a| without_snapshot(protocol(&[&[a], &[Checkpoint, Compact, Checkpoint]]));
    holds("a call beside one checkpoint after the other", calls().map(rounds));
    let one_dies = |a| with_death(protocol(&[&[a, Call(Get, 0)], &[Compact, Checkpoint]]));
    holds("a call beside a compaction, one dies", calls().map(one_dies));
}

#[test]
fn calls_beside_a_compaction_keep_the_properties() {
    holds(
        "two calls beside a compaction",
        pairs().map(|(a, b)| protocol(&[&[a], &[b], &[Compact, Checkpoint]])),
    );
}

#[test]
fn one_of_the_two_syncs_of_the_copies_is_enough() {
    for without in [SyncOfCopies, SecondSyncOfCopies] {
        let once = |a| Protocol {
            without,
            ..without_snapshot(protocol(&[&[a], &[Checkpoint, Compact, Checkpoint]]))
        };
        holds(&format!("without {without:?}"), calls().map(once));
    }
}

/// For each step, a scenario in which a property fails without it.
fn scenarios() -> Vec<(Without, Protocol)> {
    let key = |what| Call(what, 0);
    let other = |what| Call(what, 1);
    let scenario = |without, tasks: &[&[Task]]| Protocol { without, ..protocol(tasks) };
    let all = [
        scenario(SecondLook, &[&[key(Incr)], &[key(Incr)]]),
        scenario(SequenceUnderLock, &[&[key(Set(9))], &[key(Set(8)), key(Get)]]),
        scenario(StampBeforeWord, &[&[key(Set(9))], &[key(Get)]]),
        scenario(TombstoneBeforeEmptying, &[&[key(Delete)], &[key(Get)]]),
        scenario(SyncOfWrites, &[&[key(Set(9))]]),
        with_bound_one(scenario(CountUpFirst, &[&[other(Set(9))], &[key(Get)]])),
        with_bound_one(scenario(CountDownLast, &[&[key(Delete)], &[other(Set(9))]])),
        scenario(LostMark, &[&[key(Evict), key(Delete)]]),
        scenario(ClearStampedFirst, &[&[key(Clear)], &[key(Get)]]),
        scenario(ReadersRetry, &[&[key(Get)], &[Compact, Checkpoint]]),
        scenario(DrainBeforeSealing, &[&[key(Set(9))], &[Compact, Checkpoint]]),
        scenario(CopyKeepsSequence, &[&[key(Set(9))], &[Compact, Checkpoint]]),
        scenario(CompareBeforeRedirecting, &[&[key(Set(9))], &[Compact]]),
        scenario(AnySyncOfCopies, &[&[Compact, Checkpoint]]),
        scenario(EmptiedBeforeItBegan, &[&[Compact], &[Checkpoint]]),
        scenario(PositionOfFirstInFlight, &[&[key(Set(9))], &[Checkpoint]]),
        scenario(GenerationAfterPosition, &[&[key(Clear)], &[Checkpoint]]),
        scenario(WaitForClear, &[&[key(Clear)], &[Checkpoint]]),
        scenario(WaitForLocks, &[&[key(Set(9))], &[Checkpoint]]),
        scenario(SyncOfLog, &[&[key(Set(9))], &[Checkpoint]]),
        scenario(SyncOfWords, &[&[Checkpoint]]),
        scenario(HeaderBeforeRelease, &[&[Checkpoint, Compact, Checkpoint]]),
        scenario(OnlyNewRecords, &[&[key(Delete)], &[Compact, Checkpoint]]),
        scenario(CheckOfValue, &[&[key(Set(9))]]),
    ];
    all.into_iter().map(|protocol| (protocol.without, protocol)).collect()
}

/// The actions of the threads in their order, as text.
fn describe(path: &[Action]) -> String {
    let (mut text, mut last) = (String::new(), None);
    for action in path {
        let (thread, step) = match action {
            Action::Proceed(thread, step) => (*thread, format!("{step:?}")),
            Action::Die(thread) => (*thread, "dies".to_owned()),
        };
        let prefix = if last == Some(thread) { ",".to_owned() } else { format!("; {thread}:") };
        text += &format!("{prefix} {step}");
        last = Some(thread);
    }
    text.trim_start_matches("; ").to_owned()
}

#[test]
fn no_step_can_be_left_out() {
    let mut missed = Vec::new();
    for (without, protocol) in scenarios() {
        let (_, found) = explore(&Protocol { without: Nothing, ..protocol.clone() });
        assert_eq!(found, None, "with all steps, {protocol:?}");
        match explore(&protocol) {
            (states, Some((property, path))) => {
                println!(
                    "without {without:?}, {states} states: violates \"{property}\": {}",
                    describe(&path)
                );
            }
            (states, None) => missed.push((without, states)),
        }
    }
    assert!(missed.is_empty(), "no property fails without {missed:?}");
}
