//! Checks of commits, and of what concerns the whole store.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bench::{Bench, UnderTest};
use super::verdict::{Verdict, ensure};
use crate::backend::{Change, ClaimKey, Claimed, Codec, Condition, NewLimits, Outcome, Soft};
use crate::error::ErrorKind;

const STORE: Change<'_> = Change::store(b"new", Codec::Raw, None);
const TOUCH: Change<'_> = Change::Touch { expires_at: None };

pub(super) fn conditions_decide(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    for present in [false, true] {
        for condition in ["always", "absent", "present", "its token", "another token"] {
            for (name, change) in [("store", STORE), ("touch", TOUCH), ("delete", Change::Delete)] {
                subject.commit("k", Condition::Always, Change::Delete)?;
                let old = subject.put("k", b"old", None)?;
                let token = if present {
                    subject.put("k", b"old", None)?
                } else {
                    subject.commit("k", Condition::Always, Change::Delete)?;
                    old
                };
                let (condition_met, value) = match condition {
                    "always" => (true, Condition::Always),
                    "absent" => (!present, Condition::Absent),
                    "present" => (present, Condition::Present),
                    "its token" => (present, Condition::Token(token)),
                    _ => (false, Condition::Token(old ^ 0x55)),
                };
                let met = condition_met && (present || name == "store");
                let what = format!("{name} if {condition}, entry present: {present}");
                let outcome = subject.commit("k", value, change)?;
                one_decision(&subject, outcome, met, present.then_some(token), name)
                    .map_err(|why| format!("{what}: {why}"))?;
            }
        }
    }
    Ok(Verdict::Kept)
}

/// Whether the outcome, and what is there then, are those of a condition that is `met` or not.
fn one_decision(
    subject: &UnderTest,
    outcome: Outcome,
    met: bool,
    before: Option<u64>,
    name: &str,
) -> Result<(), String> {
    let after = subject.get("k")?;
    match outcome {
        Outcome::Refused { current } => {
            ensure!(!met, "refused");
            ensure!(current == before, "refused with the token {current:?}, not {before:?}");
            let token = after.map(|stored| stored.token);
            ensure!(token == before, "refused, and the entry changed all the same");
        }
        Outcome::Done { token, existed } => {
            ensure!(met, "took effect");
            ensure!(existed == before.is_some(), "existed is {existed}");
            let (value, there) = after.map(|s| (s.value, s.token)).unzip();
            ensure!(there == token, "the entry has the token {there:?}, not {token:?}");
            let expected: Option<&[u8]> = match name {
                "store" => Some(b"new"),
                "touch" => Some(b"old"),
                _ => None,
            };
            ensure!(value.as_deref() == expected, "left the value {value:?}");
        }
    }
    Ok(())
}

pub(super) fn touch_keeps_the_value(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let soft = Soft::new(subject.now().checked_add(Duration::from_secs(500)), Some(77));
    let change = Change::store(b"value", Codec::MessagePack, subject.late()).with_soft(soft);
    subject.commit("k", Condition::Always, change)?;
    let before = subject.get("k")?.map(|stored| stored.token);
    let end = subject.now().checked_add(Duration::from_secs(2_000_000));
    for expires_at in [end, None] {
        subject.commit("k", Condition::Present, Change::Touch { expires_at })?;
        let Some(got) = subject.get("k")? else { return Err("a touch removed the entry".into()) };
        ensure!(&got.value[..] == b"value", "a touch left the value {:?}", got.value);
        ensure!(got.codec == Codec::MessagePack, "a touch left the codec {:?}", got.codec);
        ensure!(
            subject.same_expiry(got.expires_at, expires_at),
            "a touch to {expires_at:?} left the expiry {:?}",
            got.expires_at
        );
        ensure!(got.soft == soft.touched(), "a touch left the freshness {:?}", got.soft);
        ensure!(Some(got.token) != before, "a touch left the token as it was");
    }
    Ok(Verdict::Kept)
}

pub(super) fn tokens_are_unique(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let mut seen = BTreeSet::new();
    for round in 0..60 {
        for change in [STORE, TOUCH, STORE] {
            let outcome = subject.commit("k", Condition::Always, change)?;
            let Outcome::Done { token: Some(token), .. } = outcome else {
                return Err(format!("{change:?} gave {outcome:?}"));
            };
            ensure!(token != 0, "a token is 0");
            ensure!(seen.insert(token), "the token {token} is used a second time");
            let there = subject.get("k")?.map(|stored| stored.token);
            ensure!(there == Some(token), "the commit gave {token}, a read gives {there:?}");
        }
        match round % 3 {
            0 => drop(subject.commit("k", Condition::Always, Change::Delete)?),
            1 => subject.backend.clear().map_err(|e| format!("clear failed: {e}"))?,
            _ => {
                subject.put("k", b"short", subject.soon()).map(|token| seen.insert(token))?;
                if round < 6 || bench.real_time.is_none() {
                    subject.pass();
                }
            }
        }
        if round == 30 {
            subject.backend.close().map_err(|e| format!("close failed: {e}"))?;
        }
    }
    Ok(Verdict::Kept)
}

pub(super) fn copies_are_complete(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let copy = |from, to| subject.backend.copy(from, to).map_err(|e| format!("copy failed: {e}"));
    ensure!(copy("from", "to")?.is_none(), "a copy of nothing has a token");
    let soft = Soft::new(subject.now().checked_add(Duration::from_secs(500)), Some(77));
    let late = subject.late();
    for len in [3, 60_000] {
        let value = vec![9; len];
        subject.put("to", b"was there before", None)?;
        let change = Change::store(&value, Codec::MessagePack, late).with_soft(soft);
        subject.commit("from", Condition::Always, change)?;
        let token = copy("from", "to")?;
        let (Some(from), Some(to)) = (subject.get("from")?, subject.get("to")?) else {
            return Err("after a copy one of the two is missing".to_owned());
        };
        ensure!(token == Some(from.token), "copy gave {token:?}, the original has {}", from.token);
        ensure!(to.value == value && to.codec == Codec::MessagePack, "the copy has another value");
        ensure!(subject.same_expiry(to.expires_at, late), "the copy ends at {:?}", to.expires_at);
        ensure!(to.soft == soft, "the copy has the freshness {:?}", to.soft);
    }
    Ok(Verdict::Kept)
}

/// Some keys as a cache makes them, under several prefixes and versions.
fn some_keys(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{}:{}:key {n}", ["", "app", "a:1"][n % 3], n % 2)).collect()
}

fn len(subject: &UnderTest) -> Result<Option<u64>, String> {
    match subject.backend.len() {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(format!("len failed: {error}")),
    }
}

pub(super) fn clear_empties(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let keys = some_keys(200);
    for round in 0..2 {
        for key in &keys {
            subject.commit(key, Condition::Always, STORE)?;
        }
        subject.backend.clear().map_err(|e| format!("clear failed: {e}"))?;
        for key in &keys {
            ensure!(subject.get(key)?.is_none(), "{key:?} is there after clear {round}");
        }
        let added = subject.commit(&keys[0], Condition::Absent, STORE)?;
        ensure!(matches!(added, Outcome::Done { .. }), "an add after a clear gave {added:?}");
        subject.backend.clear().map_err(|e| format!("clear failed: {e}"))?;
        let (counted, listed) = (len(&subject)?, subject.scan()?.map(|keys| keys.len()));
        ensure!(counted.is_none_or(|n| n == 0), "len is {counted:?} after a clear");
        ensure!(listed.is_none_or(|n| n == 0), "a scan gives {listed:?} keys after a clear");
    }
    Ok(Verdict::Kept)
}

pub(super) fn len_counts(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let keys = some_keys(20);
    let counts = |expected: u64, when: &str| -> Result<(), String> {
        let got = subject.backend.len().map_err(|e| format!("len failed: {e}"))?;
        ensure!(got == expected, "len is {got} {when}, not {expected}");
        Ok(())
    };
    counts(0, "at first")?;
    for key in &keys {
        subject.put(key, b"1", None)?;
        subject.put(key, b"2", None)?;
    }
    counts(20, "after 20 keys were stored twice")?;
    for key in &keys[..5] {
        subject.commit(key, Condition::Always, Change::Delete)?;
        subject.commit(key, Condition::Always, Change::Delete)?;
    }
    counts(15, "after 5 were deleted")?;
    Ok(Verdict::Kept)
}

/// How often a scan hands out each key, while entries that do not stay come and go.
fn scanned(subject: &UnderTest, keys: &[String]) -> Result<Option<BTreeMap<String, u32>>, String> {
    for key in keys {
        subject.put(key, key.as_bytes(), None)?;
    }
    let (mut times, mut wrong, mut cursor) = (BTreeMap::new(), None, 0);
    for step in 0..1_000_000 {
        let mut visit = |key: &str, item: crate::backend::Item<'_>| {
            *times.entry(key.to_owned()).or_insert(0) += 1;
            if !key.starts_with("passing") && item.value != key.as_bytes() {
                wrong = Some(format!("a scan gives {key:?} the value {:?}", item.value));
            }
        };
        let next = subject.backend.scan(cursor, &mut visit);
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        match next {
            Ok(Some(next)) => cursor = next,
            Ok(None) => return Ok(Some(times)),
            Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(None),
            Err(error) => return Err(format!("scan failed: {error}")),
        }
        subject.put(&format!("passing {step}"), b"", None)?;
        subject.put(&keys[step % keys.len()], keys[step % keys.len()].as_bytes(), None)?;
        subject.commit(&format!("passing {step}"), Condition::Always, Change::Delete)?;
    }
    Err("a scan has no end".to_owned())
}

pub(super) fn scan_finds_all(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let keys = some_keys(700);
    let Some(times) = scanned(&subject, &keys)? else {
        return Err("scan is not supported".to_owned());
    };
    let missing: Vec<_> = keys.iter().filter(|key| !times.contains_key(*key)).collect();
    ensure!(missing.is_empty(), "{} of 700 are missing, {:?} say", missing.len(), missing[0]);
    let mut listed = BTreeSet::new();
    let mut cursor = Some(0);
    while let Some(at) = cursor {
        let visit = &mut |key: &str, _: crate::backend::Item<'_>| {
            listed.insert(key.to_owned());
        };
        cursor = subject.backend.scan_keys(at, visit).map_err(|e| format!("scan_keys: {e}"))?;
    }
    ensure!(keys.iter().all(|key| listed.contains(key)), "scan_keys finds fewer keys than scan");
    Ok(Verdict::Kept)
}

pub(super) fn scan_repeats_nothing(bench: &Bench) -> Result<Verdict, String> {
    let Some(times) = scanned(&bench.fresh()?, &some_keys(700))? else {
        return Ok(Verdict::Unchecked("the store has no scan"));
    };
    let repeated = times.iter().find(|(_, times)| **times > 1);
    ensure!(repeated.is_none(), "a scan hands out {repeated:?} times");
    Ok(Verdict::Kept)
}

pub(super) fn close_loses_nothing(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let token = subject.put("k", b"value", None)?;
    for _ in 0..2 {
        subject.backend.flush().map_err(|e| format!("flush failed: {e}"))?;
        subject.backend.close().map_err(|e| format!("close failed: {e}"))?;
        subject.backend.close().map_err(|e| format!("a second close failed: {e}"))?;
        let got = subject.get("k")?;
        ensure!(
            got.as_ref().is_some_and(|s| s.token == token && &s.value[..] == b"value"),
            "after a close the entry is {got:?}"
        );
    }
    subject.put("k", b"other", None)?;
    ensure!(subject.value("k")?.as_deref() == Some(b"other"), "a write after a close is lost");
    Ok(Verdict::Kept)
}

pub(super) fn limits_hold(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let limits = match subject.backend.configure(&NewLimits::new().max_entries(100)) {
        Ok(limits) => limits,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Ok(Verdict::Unchecked("the limits cannot be changed"));
        }
        Err(error) => return Err(format!("configure failed: {error}")),
    };
    let shown = subject.backend.limits();
    ensure!(shown == limits, "configure gave {limits:?}, limits gives {shown:?}");
    if limits.max_entries > 5000 {
        return Ok(Verdict::Unchecked("max_entries cannot be as low as 5,000"));
    }
    for n in 0..limits.max_entries * 2 {
        let key = format!("key {n}");
        subject.put(&key, b"", None)?;
        ensure!(subject.get(&key)?.is_some(), "entry {n} is gone as soon as it is stored");
        let counted = len(&subject)?;
        ensure!(
            counted.is_none_or(|len| len <= limits.max_entries),
            "{counted:?} entries of at most {}",
            limits.max_entries
        );
    }
    Ok(Verdict::Kept)
}

pub(super) fn computations_are_claimed(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let key = ClaimKey::Computation("k");
    for _ in 0..3 {
        let Claimed::Mine(claim) = subject.backend.claim(key) else {
            return Err("a claim that is free is refused".to_owned());
        };
        if !claim.is_seen() {
            return Ok(Verdict::Unchecked("no claim is seen by others"));
        }
        let second = subject.backend.claim(key);
        ensure!(!matches!(second, Claimed::Mine(_)), "a claim has two holders");
        for other in [ClaimKey::Computation("other"), ClaimKey::Lease(7)] {
            let claimed = subject.backend.claim(other);
            ensure!(matches!(claimed, Claimed::Mine(_)), "{other:?} is refused for another claim");
        }
    }
    Ok(Verdict::Kept)
}
