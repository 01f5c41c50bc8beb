//! Linearizability of one key: whether the answers to its callers fit a sequential order of their
//! operations.

use std::cell::RefCell;
use std::collections::HashMap;

/// The operation of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum OpKind {
    Set(u8),
    Add(u8),
    Incr,
    Delete,
    Clear,
    Get,
    Evict,
}

/// The answer to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Done,
    /// Whether it changed anything.
    Did(bool),
    Value(Option<u8>),
}

/// An operation on the key. The times are positions in the order of all begins and returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) what: OpKind,
    pub(crate) began: u8,
    /// The time and the answer; `None` if it has not returned.
    pub(crate) returned: Option<(u8, Answer)>,
    /// Whether it must have taken effect.
    pub(crate) required: bool,
}

/// What may be found at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Finally {
    Anything,
    /// The key holds this value.
    Holds(Option<u8>),
    /// A recovery found this value. Evictions are not logged, so an evicted value may be back.
    Recovered(Option<u8>),
}

/// The value of the key, and the value that was evicted and not superseded since.
type Holds = (Option<u8>, Option<u8>);

/// The initial value of each key.
pub(crate) const INITIAL: u8 = 5;

/// Whether the operations have an order that fits their answers, their times and what is found at
/// the end. Operations that are not required may be part of the order or not.
pub(crate) fn is_explained(
    operations: &[Operation],
    initial: Option<u8>,
    finally: Finally,
) -> bool {
    type Known = HashMap<(Vec<Operation>, Option<u8>, Finally), bool>;
    thread_local!(static KNOWN: RefCell<Known> = RefCell::default());
    let question = (operations.to_vec(), initial, finally);
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&question).copied()) {
        return known;
    }
    let answer = explain(operations, 0, (initial, None), finally);
    KNOWN.with_borrow_mut(|known| known.insert(question, answer));
    answer
}

fn explain(operations: &[Operation], done: u32, holds: Holds, finally: Finally) -> bool {
    let left = || operations.iter().enumerate().filter(move |(i, _)| done & (1 << i) == 0);
    let fits = match finally {
        Finally::Anything => true,
        Finally::Holds(value) => holds.0 == value,
        Finally::Recovered(value) => holds.0 == value || (value.is_some() && holds.1 == value),
    };
    if fits && left().all(|(_, operation)| !operation.required) {
        return true;
    }
    // An operation cannot come before one that returned before it began. An operation that is left
    // out did not happen.
    let first = left().filter(|(_, o)| o.required).filter_map(|(_, o)| Some(o.returned?.0)).min();
    left().any(|(i, operation)| {
        let (answer, after) = perform(operation.what, holds);
        first.is_none_or(|first| operation.began <= first)
            && operation.returned.is_none_or(|(_, actual)| actual == answer)
            && explain(operations, skip_earlier(operations, done, i), after, finally)
    })
}

/// `done` with `now`, and with the optional operations that are left out: those that had returned
/// when `now` began.
fn skip_earlier(operations: &[Operation], done: u32, now: usize) -> u32 {
    let began = operations[now].began;
    operations.iter().enumerate().fold(done | 1 << now, |done, (i, o)| {
        if o.returned.is_some_and(|(returned, _)| returned < began) { done | 1 << i } else { done }
    })
}

fn perform(what: OpKind, holds: Holds) -> (Answer, Holds) {
    let (value, evicted) = holds;
    match what {
        OpKind::Set(new) => (Answer::Done, (Some(new), None)),
        OpKind::Add(new) if value.is_none() => (Answer::Did(true), (Some(new), None)),
        OpKind::Add(_) => (Answer::Did(false), holds),
        OpKind::Incr => match value {
            Some(n) => (Answer::Value(Some(n + 1)), (Some(n + 1), None)),
            None => (Answer::Value(None), holds),
        },
        OpKind::Delete => (Answer::Did(value.is_some()), (None, None)),
        OpKind::Clear => (Answer::Done, (None, None)),
        OpKind::Get => (Answer::Value(value), holds),
        OpKind::Evict => (Answer::Done, (None, value.or(evicted))),
    }
}
