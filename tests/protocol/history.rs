//! Whether what the callers of one key saw can be explained by doing their operations one after the other.

use std::cell::RefCell;
use std::collections::HashMap;

/// What a caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum What {
    Set(u8),
    Add(u8),
    Incr,
    Delete,
    Clear,
    Get,
    Evict,
}

/// What a caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    Done,
    /// Whether it did anything.
    Did(bool),
    Value(Option<u8>),
}

/// An operation on the key: when it began and returned, in the order of all such moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Operation {
    pub(crate) what: What,
    pub(crate) began: u8,
    /// With what it was told; `None` if it has not returned.
    pub(crate) returned: Option<(u8, Told)>,
    /// Whether it must have taken effect.
    pub(crate) required: bool,
}

/// What may be found in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Finally {
    Anything,
    /// The key holds this.
    Holds(Option<u8>),
    /// A recovery found this: evictions are not logged, so what was evicted may be back.
    Recovered(Option<u8>),
}

/// What the key holds, and what was evicted and not superseded since.
type Holds = (Option<u8>, Option<u8>);

/// The value that each key has in the beginning.
pub(crate) const INITIAL: u8 = 5;

/// Whether there is an order of the operations, those that are not required with or without, that fits what everybody
/// was told and when, and what is found in the end.
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
    // Nothing comes before what had returned when it began. What is left out did not happen at all.
    let first = left().filter(|(_, o)| o.required).filter_map(|(_, o)| Some(o.returned?.0)).min();
    left().any(|(i, operation)| {
        let (told, after) = perform(operation.what, holds);
        first.is_none_or(|first| operation.began <= first)
            && operation.returned.is_none_or(|(_, was_told)| was_told == told)
            && explain(operations, skip_earlier(operations, done, i), after, finally)
    })
}

/// `done` and `now`, and what was left out: optional operations that had returned when `now` began.
fn skip_earlier(operations: &[Operation], done: u32, now: usize) -> u32 {
    let began = operations[now].began;
    operations.iter().enumerate().fold(done | 1 << now, |done, (i, o)| {
        if o.returned.is_some_and(|(returned, _)| returned < began) { done | 1 << i } else { done }
    })
}

fn perform(what: What, holds: Holds) -> (Told, Holds) {
    let (value, evicted) = holds;
    match what {
        What::Set(new) => (Told::Done, (Some(new), None)),
        What::Add(new) if value.is_none() => (Told::Did(true), (Some(new), None)),
        What::Add(_) => (Told::Did(false), holds),
        What::Incr => match value {
            Some(n) => (Told::Value(Some(n + 1)), (Some(n + 1), None)),
            None => (Told::Value(None), holds),
        },
        What::Delete => (Told::Did(value.is_some()), (None, None)),
        What::Clear => (Told::Done, (None, None)),
        What::Get => (Told::Value(value), holds),
        What::Evict => (Told::Done, (None, value.or(evicted))),
    }
}
