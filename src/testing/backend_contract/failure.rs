//! Checks of what a store does when it refuses, or cannot be reached.

use std::sync::Arc;

use super::bench::Bench;
use super::verdict::{Verdict, ensure};
use crate::backend::{Change, Codec, Condition};
use crate::error::{Error, ErrorKind};

/// The largest value that a check makes only to have it refused.
const MOST: u64 = 64 << 20;

pub(super) fn refusals_change_nothing(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let smallest = crate::backend::NewLimits::new().max_bytes(1 << 20);
    // Where that cannot be, the limits are as they are.
    let _ = subject.backend.configure(&smallest);
    let max_bytes = subject.backend.limits().max_bytes;
    if max_bytes > MOST {
        return Ok(Verdict::Unchecked("max_bytes is above 64 MiB"));
    }
    let token = subject.put("k", b"value", None)?;
    let large = vec![0; max_bytes as usize + 1];
    for condition in [Condition::Always, Condition::Token(token)] {
        let change = Change::store(&large, Codec::Raw, None);
        match subject.backend.commit("k", condition, change) {
            Ok(outcome) => return Err(format!("{} bytes gave {outcome:?}", large.len())),
            Err(error) => ensure!(
                error.kind() == ErrorKind::ValueTooLarge,
                "a value that does not fit is the error {error}"
            ),
        }
        let got = subject.get("k")?;
        ensure!(
            got.as_ref().is_some_and(|s| s.token == token && &s.value[..] == b"value"),
            "after a refusal the entry is {got:?}"
        );
    }
    Ok(Verdict::Kept)
}

/// Whether an error says that the store could not do it now.
fn is_outage(error: &Error) -> bool {
    use ErrorKind::{Busy, Interrupted, Io, NoSpace, UnknownOutcome, Unreachable};
    matches!(error.kind(), Unreachable | UnknownOutcome | Io | NoSpace | Busy | Interrupted)
}

/// Switches the outage off again, also after a panic.
struct Outage(Arc<dyn Fn(bool) + Send + Sync>);

impl Drop for Outage {
    fn drop(&mut self) {
        (self.0)(false);
    }
}

pub(super) fn outages_lose_nothing(bench: &Bench) -> Result<Verdict, String> {
    let Some(switch) = bench.outage.clone() else {
        return Ok(Verdict::Unchecked("the contract has no switch for outages"));
    };
    let subject = bench.fresh()?;
    let mut tokens = Vec::new();
    for n in 0..20 {
        tokens.push(subject.put(&format!("key {n}"), b"value", None)?);
    }
    let backend = &*subject.backend;
    switch(true);
    let outage = Outage(switch);
    let mut unknown = false;
    for n in 0..20 {
        let key = &format!("key {n}");
        let fails = |what: &str, result: Result<(), Error>| match result {
            Ok(()) => Err(format!("{what} succeeded during an outage")),
            Err(error) if is_outage(&error) => Ok(error.kind() == ErrorKind::UnknownOutcome),
            Err(error) => Err(format!("{what} failed during an outage with {error:?}")),
        };
        fails("get", backend.get(key).map(drop))?;
        fails("visit", backend.visit(key, &mut |_| ()).map(drop))?;
        fails("expiry_of", backend.expiry_of(key).map(drop))?;
        let change = match n % 3 {
            0 => Change::store(b"other", Codec::Raw, None),
            1 => Change::Touch { expires_at: None },
            _ => Change::Delete,
        };
        unknown |= fails("commit", backend.commit(key, Condition::Always, change).map(drop))?;
    }
    let cleared = backend.clear();
    ensure!(cleared.is_err(), "clear succeeded during an outage");
    unknown |= cleared.is_err_and(|error| error.kind() == ErrorKind::UnknownOutcome);
    drop(outage);
    if unknown {
        subject.get("key 0")?;
        return Ok(Verdict::Kept);
    }
    for (n, token) in tokens.into_iter().enumerate() {
        let got = subject.get(&format!("key {n}"))?;
        ensure!(
            got.as_ref().is_some_and(|s| s.token == token && &s.value[..] == b"value"),
            "after an outage, in which nothing was said to be uncertain, an entry is {got:?}"
        );
    }
    Ok(Verdict::Kept)
}
