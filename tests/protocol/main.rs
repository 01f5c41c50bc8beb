//! The protocol of `docs/design.md`, explored: every order in which a few threads can do its steps, with a kill and a
//! power cut tried in every state, and with any one process dying anywhere. What callers are told must fit one order
//! of their calls; after a kill everything acknowledged is there, after a power cut nothing older than what was
//! synced; the bound is never exceeded. And each step is needed: without it, one of these fails.
//!
//! This is about the order of steps, not about the code; `tests/power_cut`, `tests/kill_points.rs` and
//! `tests/threads.rs` run the code.
#![cfg(test)]

mod crash;
mod history;
mod model;
mod steps;

use stateright::{Checker, HasDiscoveries, Model};

use history::What::{self, Add, Clear, Delete, Evict, Get, Incr, Set};
use model::Task::{self, Call, Checkpoint, Compact};
use model::{Action, Protocol, Without};

/// All that changes a key, and looking at it.
const CALLS: [What; 7] = [Set(9), Add(8), Incr, Delete, Clear, Evict, Get];

/// Explores, and returns the number of states and the shortest way to a state in which something does not hold.
fn explore(protocol: &Protocol) -> (usize, Option<(&'static str, Vec<Action>)>) {
    let checker = protocol.clone().checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let found = checker.discoveries().into_iter().map(|(name, path)| (name, path.into_actions()));
    (checker.unique_state_count(), found.min_by_key(|(_, path)| path.len()))
}

/// Threads with their tasks, nothing left out.
fn protocol(tasks: &[&[Task]]) -> Protocol {
    let tasks = tasks.iter().map(|tasks| tasks.to_vec()).collect();
    Protocol { tasks, without: Without::Nothing, bound: 2, filled: 1, sync: true, deaths: false }
}

/// Explores all, and says what that was.
fn holds(what: &str, scenarios: impl Iterator<Item = Protocol>) {
    let started = std::time::Instant::now();
    let (mut count, mut all_states) = (0, 0);
    for scenario in scenarios {
        let (states, found) = explore(&scenario);
        assert_eq!(found, None, "{scenario:?}");
        count += 1;
        all_states += states;
    }
    println!("{what}: {count} scenarios, {all_states} states, no violation, {:?}", started.elapsed());
}

/// All pairs of calls, one order of the two.
fn pairs() -> impl Iterator<Item = (Task, Task)> {
    let first = |i: usize, a: What| CALLS[i..].iter().map(move |b| (Call(a, 0), Call(*b, 0)));
    CALLS.into_iter().enumerate().flat_map(move |(i, a)| first(i, a))
}

#[test]
fn calls_beside_each_other() {
    holds(
        "calls",
        CALLS.into_iter().flat_map(|a| {
            let a = Call(a, 0);
            CALLS.into_iter().map(move |b| protocol(&[&[a, a], &[Call(b, 0)]]))
        }),
    );
}

#[test]
fn calls_beside_a_checkpoint() {
    holds("beside a checkpoint", pairs().map(|(a, b)| protocol(&[&[a], &[b], &[Checkpoint]])));
}

#[test]
fn calls_beside_a_compaction() {
    holds("beside a compaction", pairs().map(|(a, b)| protocol(&[&[a], &[b], &[Compact, Checkpoint]])));
    let buffered = |protocol| Protocol { sync: false, ..protocol };
    holds(
        "one beside both, buffered",
        CALLS.into_iter().map(|a| buffered(protocol(&[&[Call(a, 0)], &[Compact], &[Checkpoint]]))),
    );
    holds(
        "two rounds",
        CALLS.into_iter().map(|a| protocol(&[&[Call(a, 0)], &[Checkpoint, Compact, Checkpoint]])),
    );
}

#[test]
fn any_one_may_die() {
    let mortal = |protocol| Protocol { deaths: true, ..protocol };
    let get = Call(Get, 0);
    holds("one dies", pairs().map(|(a, b)| mortal(protocol(&[&[a], &[b, get]]))));
    holds(
        "one dies, checkpoint",
        CALLS.into_iter().map(|a| mortal(protocol(&[&[Call(a, 0), get], &[Compact, Checkpoint]]))),
    );
}

#[test]
fn the_bound_is_kept() {
    let crowded = |protocol| Protocol { bound: 1, ..protocol };
    holds(
        "crowded",
        CALLS.into_iter().map(|a| crowded(protocol(&[&[Call(a, 0), Call(Add(8), 0)], &[Call(Set(9), 1)]]))),
    );
}

/// Where each step is missed.
fn scenarios() -> Vec<(Without, Protocol)> {
    let key = |what| Call(what, 0);
    let other = |what| Call(what, 1);
    let crowded = |protocol| Protocol { bound: 1, ..protocol };
    let scenario = |without, tasks: &[&[Task]]| Protocol { without, ..protocol(tasks) };
    use Without::*;
    let all = [
        scenario(SecondLook, &[&[key(Incr)], &[key(Incr)]]),
        scenario(SequenceUnderLock, &[&[key(Set(9))], &[key(Set(8)), key(Get)]]),
        scenario(StampBeforeWord, &[&[key(Set(9))], &[key(Get)]]),
        scenario(TombstoneBeforeEmptying, &[&[key(Delete)], &[key(Get)]]),
        scenario(SyncOfWrites, &[&[key(Set(9))]]),
        crowded(scenario(CountUpFirst, &[&[other(Set(9))], &[key(Get)]])),
        crowded(scenario(CountDownLast, &[&[key(Delete)], &[other(Set(9))]])),
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

#[test]
fn no_step_can_be_left_out() {
    let mut missed = Vec::new();
    for (without, protocol) in scenarios() {
        let (_, found) = explore(&Protocol { without: Without::Nothing, ..protocol.clone() });
        assert_eq!(found, None, "nothing left out, {protocol:?}");
        match explore(&protocol) {
            (states, Some((property, path))) => {
                println!("{without:?}, {states} states: not so that {property}: {path:?}");
            }
            (states, None) => missed.push((without, states)),
        }
    }
    assert!(missed.is_empty(), "nothing is wrong without {missed:?}");
}
