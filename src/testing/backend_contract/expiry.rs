//! Checks of when an entry ends.

use super::bench::Bench;
use super::verdict::{Verdict, ensure};
use crate::backend::{Change, Codec, Condition, Outcome};
use crate::time::Timestamp;

pub(super) fn expired_is_absent(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let soon = subject.soon();
    let keys: Vec<String> = (0..12).map(|n| format!("key {n}")).collect();
    let mut tokens = Vec::new();
    for key in &keys {
        tokens.push(subject.put(key, b"value", soon)?);
    }
    subject.put("touched", b"value", subject.late())?;
    subject.commit("touched", Condition::Always, Change::Touch { expires_at: soon })?;
    subject.put("stays", b"value", subject.late())?;
    subject.pass();
    let listed = subject.scan()?;
    let mut left = listed.iter().flatten().filter(|key| *key != "stays");
    ensure!(left.next().is_none(), "a scan hands out an expired entry");
    ensure!(subject.get(&keys[0])?.is_none(), "get gives an expired entry");
    ensure!(subject.get("touched")?.is_none(), "get gives an entry that a touch let expire");
    let visited = subject.backend.visit(&keys[1], &mut |_| ());
    ensure!(matches!(visited, Ok(false)), "visit of an expired entry gave {visited:?}");
    let expiry = subject.backend.expiry_of(&keys[2]);
    ensure!(matches!(expiry, Ok(None)), "expiry_of an expired entry gave {expiry:?}");
    let copied = subject.backend.copy(&keys[3], "copy");
    ensure!(matches!(copied, Ok(None)), "copy of an expired entry gave {copied:?}");
    let streamed = subject.backend.stream(&keys[4]);
    ensure!(matches!(streamed, Ok(None)), "stream of an expired entry gave {streamed:?}");

    let store = Change::store(b"new", Codec::Raw, None);
    let touch = Change::Touch { expires_at: None };
    let cases = [
        (Condition::Present, store, false),
        (Condition::Token(tokens[6]), store, false),
        (Condition::Always, touch, false),
        (Condition::Always, Change::Delete, false),
        (Condition::Absent, store, true),
        (Condition::Always, store, true),
    ];
    for (key, (condition, change, takes_effect)) in keys[5..].iter().zip(cases) {
        let outcome = subject.commit(key, condition, change)?;
        let expected = match outcome {
            Outcome::Done { token, existed } => takes_effect && token.is_some() && !existed,
            Outcome::Refused { current } => !takes_effect && current.is_none(),
        };
        ensure!(expected, "{condition:?} on an expired entry gave {outcome:?}");
        ensure!(subject.get(key)?.is_some() == takes_effect, "{condition:?} left the wrong entry");
    }
    subject.backend.maintain().map_err(|e| format!("maintain failed: {e}"))?;
    ensure!(subject.get("stays")?.is_some(), "an entry that has not expired is gone");
    Ok(Verdict::Kept)
}

pub(super) fn lives_until_its_expiry(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    subject.put("late", b"value", subject.late())?;
    subject.put("touched", b"value", subject.soon())?;
    subject.commit("touched", Condition::Present, Change::Touch { expires_at: subject.late() })?;
    subject.put("replaced", b"value", subject.soon())?;
    subject.put("replaced", b"value", None)?;
    subject.put("soon", b"value", subject.soon())?;
    // In real time nothing can be said about the last moments before the end.
    if subject.pass_all_but_a_millisecond() {
        ensure!(subject.get("soon")?.is_some(), "an entry is gone 1 ms before its expiry");
    }
    subject.pass();
    subject.backend.maintain().map_err(|e| format!("maintain failed: {e}"))?;
    for key in ["late", "touched", "replaced"] {
        ensure!(subject.get(key)?.is_some(), "the entry {key:?} is gone before its expiry");
    }
    Ok(Verdict::Kept)
}

pub(super) fn past_expiry_stores_nothing(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let now = Some(subject.now());
    for past in [Some(Timestamp::from_millis(0)), Some(Timestamp::from_millis(1)), now] {
        for there in [false, true] {
            for touch in [false, true] {
                subject.commit("k", Condition::Always, Change::Delete)?;
                let was_there = there && {
                    subject.put("k", b"old", None).ok();
                    subject.get("k")?.is_some()
                };
                let change = match touch {
                    true => Change::Touch { expires_at: past },
                    false => Change::store(b"new", Codec::Raw, past),
                };
                let outcome = subject.commit("k", Condition::Always, change)?;
                let expected = match touch && !was_there {
                    true => Outcome::Refused { current: None },
                    false => Outcome::Done { token: None, existed: was_there },
                };
                ensure!(outcome == expected, "{change:?} gave {outcome:?}, not {expected:?}");
                ensure!(subject.get("k")?.is_none(), "{change:?} left an entry");
            }
        }
    }
    Ok(Verdict::Kept)
}
