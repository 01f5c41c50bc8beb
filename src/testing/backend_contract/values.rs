//! Checks of one entry and of the ways to read it.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, UnderTest};
use super::verdict::{Verdict, ensure};
use crate::backend::{Change, Codec, Condition, Decoded, Expiry, Item, Soft, Streamed};
use crate::error::ErrorKind;
use crate::key::MAX_KEY_BYTES;

pub(super) fn stores_what_it_is_given(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let soft = Soft::new(subject.now().checked_add(Duration::from_secs(500)), Some(1234));
    let values: [&[u8]; 4] = [b"", b"\xc0", b"plain", &[0, 255, 13, 10, 0]];
    for value in values {
        for codec in [Codec::Raw, Codec::MessagePack] {
            for (expires_at, soft) in [(None, Soft::default()), (subject.late(), soft)] {
                let change = Change::store(value, codec, expires_at).with_soft(soft);
                subject.commit("k", Condition::Always, change)?;
                let Some(got) = subject.get("k")? else {
                    return Err(format!("{value:?} was stored and is not there"));
                };
                ensure!(got.value == value, "{value:?} came back as {:?}", got.value);
                ensure!(got.codec == codec, "codec {codec:?} came back as {:?}", got.codec);
                ensure!(
                    subject.same_expiry(got.expires_at, expires_at),
                    "expiry {expires_at:?} came back as {:?}",
                    got.expires_at
                );
                ensure!(got.soft == soft, "{soft:?} came back as {:?}", got.soft);
            }
        }
    }
    ensure!(subject.get("other")?.is_none(), "a key that was never stored has an entry");
    Ok(Verdict::Kept)
}

pub(super) fn keys_are_apart(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let long = "k".repeat(200);
    let short = ["", "a", "A", "a ", " a", "a:1", "1:a", "ключ", "a\0b", "a\nb", "%61", "*"];
    let keys: Vec<&str> = short.into_iter().chain([&*long]).collect();
    for key in &keys {
        subject.put(key, key.as_bytes(), None)?;
    }
    for key in &keys {
        let value = subject.value(key)?;
        ensure!(
            value.as_deref() == Some(key.as_bytes()),
            "the entry of {key:?} is {value:?} after others were stored"
        );
    }
    subject.commit("a", Condition::Always, Change::Delete)?;
    for key in keys.iter().filter(|key| **key != "a") {
        ensure!(subject.get(key)?.is_some(), "{key:?} is gone after \"a\" was deleted");
    }
    Ok(Verdict::Kept)
}

pub(super) fn long_keys(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let one = "k".repeat(MAX_KEY_BYTES);
    let other = format!("{}j", &one[1..]);
    subject.put(&one, b"1", None)?;
    subject.put(&other, b"2", None)?;
    ensure!(subject.value(&one)?.as_deref() == Some(b"1"), "a key of 65,536 bytes is not found");
    ensure!(
        subject.value(&other)?.as_deref() == Some(b"2"),
        "a key of 65,536 bytes that differs in the last is not found"
    );
    Ok(Verdict::Kept)
}

pub(super) fn large_values(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    if subject.backend.limits().max_bytes < 2 << 20 {
        return Ok(Verdict::Unchecked("max_bytes is below 2 MiB"));
    }
    let large: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    subject.put("large", &large, None)?;
    let got = subject.value("large")?;
    ensure!(
        got.as_ref() == Some(&large),
        "1 MiB came back as {:?} bytes",
        got.map(|value| value.len())
    );
    Ok(Verdict::Kept)
}

/// Whether every method that reads says that there is this entry, or that there is none.
fn reads_say(subject: &UnderTest, expected: Option<(&[u8], Expiry)>) -> Result<(), String> {
    let backend = &*subject.backend;
    let failed = |what, error| format!("{what} failed: {error}");
    let (value, end) = (expected.map(|e| e.0), expected.map(|e| e.1));
    let got = subject.get("k")?;
    ensure!(got.as_ref().map(|s| &s.value[..]) == value, "get gave {got:?}");
    let token = got.map(|stored| stored.token);

    let mut seen = None;
    let mut see = |item: Item<'_>| seen = Some((item.value.to_vec(), item.token));
    let visited = backend.visit("k", &mut see).map_err(|e| failed("visit", e))?;
    ensure!(visited == value.is_some(), "visit said {visited}");
    let seen = seen.filter(|_| visited);
    ensure!(seen.as_ref().map(|s| &s.0[..]) == value, "visit gave {seen:?}");
    ensure!(seen.map(|s| s.1) == token, "visit gave another token than get");

    let expiry = backend.expiry_of("k").map_err(|e| failed("expiry_of", e))?;
    let same = match (expiry, end) {
        (Some(got), Some(stored)) => subject.same_expiry(got, stored),
        (got, stored) => got == stored,
    };
    ensure!(same, "expiry_of gave {expiry:?} for {end:?}");

    for _ in 0..3 {
        let mut decode = |item: Item<'_>| {
            let value: Vec<u8> = item.value.to_vec();
            Some(Decoded::new(Arc::new(value), item.value.len()))
        };
        let shared = backend.get_decoded("k", TypeId::of::<Vec<u8>>(), &mut decode);
        let shared = shared.map_err(|e| failed("get_decoded", e))?;
        let shared = shared.and_then(|shared| shared.downcast::<Vec<u8>>().ok());
        ensure!(shared.as_ref().map(|s| &s[..]) == value, "get_decoded gave {shared:?}");
    }

    let mut streamed = None;
    match backend.stream("k").map_err(|e| failed("stream", e))? {
        Some(Streamed::Whole(stored)) => streamed = Some(stored.value.to_vec()),
        Some(Streamed::Pieces { len, mut source, .. }) => {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(1 << 24)];
            let mut at = 0;
            while at < bytes.len() {
                let read = source.read_at(at as u64, &mut bytes[at..]);
                match read.map_err(|e| failed("read_at", e))? {
                    0 => break,
                    read => at += read,
                }
            }
            bytes.truncate(at);
            streamed = Some(bytes);
        }
        None => {}
    }
    ensure!(streamed.as_deref() == value, "stream gave {:?} bytes", streamed.map(|s| s.len()));

    let weight = backend.weight("k");
    let least = value.map_or(0, <[u8]>::len);
    ensure!(
        weight >= least && (value.is_some() || weight == 0 || weight == usize::MAX),
        "weight gave {weight} for {least} bytes"
    );
    Ok(())
}

pub(super) fn reads_agree(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    reads_say(&subject, None).map_err(|why| format!("at first, {why}"))?;
    for len in [1, 3, 5000, 60_000] {
        let value = vec![len as u8; len];
        let late = subject.late();
        subject.put("k", &value, late)?;
        reads_say(&subject, Some((&value, late)))
            .map_err(|why| format!("after a store of {len} bytes, {why}"))?;
        subject.commit("k", Condition::Present, Change::Touch { expires_at: None })?;
        reads_say(&subject, Some((&value, None))).map_err(|why| format!("after a touch, {why}"))?;
    }
    subject.commit("k", Condition::Always, Change::Delete)?;
    reads_say(&subject, None).map_err(|why| format!("after a delete, {why}"))?;
    Ok(Verdict::Kept)
}

pub(super) fn visits_hold_no_lock(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    subject.put("a", b"1", None)?;
    subject.put("b", b"2", None)?;
    let mut inner = Ok(());
    let mut outer = |_: Item<'_>| {
        inner = (|| {
            let inner = subject.backend.visit("b", &mut |_| ());
            inner.map_err(|e| format!("visit failed: {e}"))?;
            subject.value("b")?;
            subject.put("a", b"3", None)?;
            subject.put("b", b"4", None)?;
            subject.commit("b", Condition::Always, Change::Delete).map(drop)
        })();
    };
    subject.backend.visit("a", &mut outer).map_err(|e| format!("visit failed: {e}"))?;
    inner.map_err(|why| format!("within a visit, {why}"))?;
    ensure!(subject.value("a")?.as_deref() == Some(b"3"), "a write within a visit is lost");
    let mut inner = Ok(());
    let mut outer = |key: &str, _: Item<'_>| inner = subject.put(key, b"5", None).map(drop);
    match subject.backend.scan(0, &mut outer) {
        Err(error) if error.kind() != ErrorKind::Unsupported => {
            return Err(format!("scan failed: {error}"));
        }
        _ => inner.map_err(|why| format!("within a scan, {why}"))?,
    }
    Ok(Verdict::Kept)
}

pub(super) fn values_outlive_entries(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let value = vec![7; 40_000];
    subject.put("k", &value, None)?;
    let Some(held) = subject.get("k")? else { return Err("what was stored is not there".into()) };
    subject.put("k", &[8; 40_000], None)?;
    ensure!(held.value == value, "what was read changed when the entry was replaced");
    subject.backend.clear().map_err(|e| format!("clear failed: {e}"))?;
    subject.backend.maintain().map_err(|e| format!("maintain failed: {e}"))?;
    subject.backend.close().map_err(|e| format!("close failed: {e}"))?;
    ensure!(held.value == value, "what was read changed when the store was cleared and closed");
    Ok(Verdict::Kept)
}

pub(super) fn spools_commit_whole(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let spool = || subject.backend.spool().map_err(|e| format!("spool failed: {e}"));
    let Some(mut kept) = spool()? else {
        return Ok(Verdict::Unchecked("the store has no spools"));
    };
    subject.put("k", b"before", None)?;
    let late = subject.late();
    for _ in 0..4 {
        kept.write(&[5; 1000]).map_err(|e| format!("write failed: {e}"))?;
    }
    ensure!(
        subject.value("k")?.as_deref() == Some(b"before"),
        "what is written to a spool is seen before its commit"
    );
    kept.commit("k", late).map_err(|e| format!("the spool's commit failed: {e}"))?;
    let Some(got) = subject.get("k")? else { return Err("a committed spool is no entry".into()) };
    ensure!(got.value == vec![5; 4000], "4,000 bytes came back as {}", got.value.len());
    ensure!(got.codec == Codec::Raw, "a spool's value has the codec {:?}", got.codec);
    ensure!(subject.same_expiry(got.expires_at, late), "its expiry is {:?}", got.expires_at);
    if let Some(mut dropped) = spool()? {
        dropped.write(b"never").map_err(|e| format!("write failed: {e}"))?;
    }
    ensure!(subject.get("k")?.is_some_and(|s| s.token == got.token), "a dropped spool has effect");
    Ok(Verdict::Kept)
}
