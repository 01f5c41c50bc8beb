//! Checks of the asynchronous side of a backend.

use super::bench::Bench;
use super::verdict::Verdict;

#[cfg(not(feature = "async"))]
pub(super) fn async_side_agrees(_: &Bench) -> Result<Verdict, String> {
    Ok(Verdict::Unchecked("the feature `async` is off"))
}

#[cfg(feature = "async")]
pub(super) fn async_side_agrees(bench: &Bench) -> Result<Verdict, String> {
    use super::verdict::ensure;
    use crate::backend::{Change, Codec, Condition, Outcome};
    use crate::error::{Error, ErrorKind};

    let subject = bench.fresh()?;
    let Some(side) = subject.backend.as_async() else {
        return Ok(Verdict::Unchecked("the store has no asynchronous side"));
    };
    let failed = |error: Error| format!("the asynchronous side failed: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let store = Change::store(b"value", Codec::Raw, None);
        let added = side.commit("k", Condition::Absent, store).await.map_err(failed)?;
        let Outcome::Done { token: Some(token), existed: false } = added else {
            return Err(format!("an add gave {added:?}"));
        };
        let again = side.commit("k", Condition::Absent, store).await.map_err(failed)?;
        ensure!(again == Outcome::Refused { current: Some(token) }, "a second add gave {again:?}");
        let got = side.get("k").await.map_err(failed)?;
        ensure!(got.is_some_and(|s| s.token == token), "get gives another entry than commit");
        let touch = Change::Touch { expires_at: subject.soon() };
        side.commit("k", Condition::Token(token), touch).await.map_err(failed)?;
        let expiry = side.expiry_of("k").await.map_err(failed)?;
        ensure!(matches!(expiry, Some(Some(_))), "expiry_of after a touch gave {expiry:?}");
        let copied = side.copy("k", "copy").await.map_err(failed)?;
        ensure!(copied.is_some_and(|copied| copied != token), "copy gave {copied:?}");
        match side.len().await {
            Ok(len) => ensure!(len == 2, "len is {len}, not 2"),
            Err(error) => ensure!(error.kind() == ErrorKind::Unsupported, "{}", failed(error)),
        }
        Ok(())
    })?;
    ensure!(subject.get("copy")?.is_some(), "the blocking side does not see a copy");
    let token = subject.put("k", b"blocking", None)?;
    runtime.block_on(async {
        let got = side.get("k").await.map_err(failed)?;
        ensure!(got.is_some_and(|s| s.token == token), "it does not see what the other side wrote");
        let deleted = side.commit("k", Condition::Token(token), Change::Delete).await;
        let deleted = deleted.map_err(failed)?;
        ensure!(deleted == Outcome::Done { token: None, existed: true }, "delete gave {deleted:?}");
        // A future that is dropped before it is over leaves the store as usable as before.
        drop(side.get("copy"));
        drop(side.commit("copy", Condition::Always, Change::Delete));
        side.clear().await.map_err(failed)
    })?;
    ensure!(subject.get("copy")?.is_none(), "an entry is there after clear");
    Ok(Verdict::Kept)
}
