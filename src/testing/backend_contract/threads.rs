//! Checks of atomicity among threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use super::bench::Bench;
use super::verdict::{Verdict, ensure};
use crate::backend::{Change, Codec, Condition, Outcome};
use crate::timeout::Timeout;

const THREADS: u64 = 4;
const ROUNDS: usize = 150;

/// Has all threads do `work` at the same time in each round, and counts how many say that they won.
fn winners(
    rounds: usize,
    work: impl Fn(usize, u64) -> Result<bool, String> + Sync,
) -> Result<Vec<u64>, String> {
    let wins: Vec<AtomicU64> = (0..rounds).map(|_| AtomicU64::new(0)).collect();
    let barrier = Barrier::new(THREADS as usize);
    let failed = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (wins, barrier, work) = (&wins, &barrier, &work);
                scope.spawn(move || {
                    let mut failed = None;
                    for (round, wins) in wins.iter().enumerate() {
                        barrier.wait();
                        match work(round, thread) {
                            Ok(won) => drop(wins.fetch_add(u64::from(won), SeqCst)),
                            // Goes on to meet the others at the barrier.
                            Err(why) => failed = Some(why),
                        }
                    }
                    failed
                })
            })
            .collect();
        threads.into_iter().find_map(|thread| match thread.join() {
            Ok(failed) => failed,
            Err(_) => Some("a thread panicked".to_owned()),
        })
    });
    match failed {
        Some(why) => Err(why),
        None => Ok(wins.into_iter().map(AtomicU64::into_inner).collect()),
    }
}

pub(super) fn add_has_one_winner(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let wins = winners(ROUNDS, |round, thread| {
        let (key, value) = (format!("key {round}"), [thread as u8]);
        let change = Change::store(&value, Codec::Raw, None);
        Ok(matches!(subject.commit(&key, Condition::Absent, change)?, Outcome::Done { .. }))
    })?;
    let wrong = wins.iter().position(|wins| *wins != 1);
    ensure!(wrong.is_none(), "of {THREADS} adds of a key {:?} won", wrong.map(|at| wins[at]));
    Ok(Verdict::Kept)
}

pub(super) fn swap_has_one_winner(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let tokens: Vec<u64> = (0..ROUNDS)
        .map(|round| subject.put(&format!("key {round}"), b"first", None))
        .collect::<Result<_, _>>()?;
    let wins = winners(ROUNDS, |round, thread| {
        let (key, value) = (format!("key {round}"), [thread as u8]);
        let change = match thread % 2 {
            0 => Change::store(&value, Codec::Raw, None),
            _ => Change::Touch { expires_at: None },
        };
        let outcome = subject.commit(&key, Condition::Token(tokens[round]), change)?;
        Ok(matches!(outcome, Outcome::Done { .. }))
    })?;
    let wrong = wins.iter().position(|wins| *wins != 1);
    ensure!(wrong.is_none(), "of {THREADS} swaps of a token {:?} won", wrong.map(|at| wins[at]));
    Ok(Verdict::Kept)
}

pub(super) fn counters_are_exact(bench: &Bench) -> Result<Verdict, String> {
    let (cache, _) = bench.cache(|builder| builder)?;
    let per_thread = 300;
    let counted = winners(1, |_, _| {
        for _ in 0..per_thread {
            let sum = cache.incr_or_init("count", 1, 0, Timeout::Never);
            sum.map_err(|error| format!("incr failed: {error}"))?;
        }
        Ok(true)
    })?;
    let sum = cache.get::<u64>("count").map_err(|error| format!("get failed: {error}"))?;
    let expected = counted[0] * per_thread;
    ensure!(sum == Some(expected), "{expected} increments came to {sum:?}");
    Ok(Verdict::Kept)
}

pub(super) fn readers_see_whole_values(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let done = AtomicBool::new(false);
    let whole = |bytes: &[u8]| bytes.iter().all(|byte| *byte == bytes[0]) && bytes.len() > 900;
    subject.put("k", &[1; 1000], None)?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..1500u32 {
                let value = vec![n as u8; 1000 + (n as usize % 7) * 512];
                if let Err(why) = subject.put("k", &value, None) {
                    done.store(true, SeqCst);
                    return Err(why);
                }
            }
            done.store(true, SeqCst);
            Ok(())
        });
        while !done.load(SeqCst) {
            let mut torn = None;
            let visited = subject.backend.visit("k", &mut |item| torn = Some(!whole(item.value)));
            match visited {
                Ok(true) if torn == Some(true) => return Err("visit gave a torn value".to_owned()),
                Ok(true) => {}
                Ok(false) => return Err("an entry was gone while it was replaced".to_owned()),
                Err(error) => return Err(format!("visit failed: {error}")),
            }
            match subject.get("k")? {
                Some(stored) if whole(&stored.value) => {}
                other => return Err(format!("get gave {:?} bytes", other.map(|s| s.value.len()))),
            }
        }
        writer.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
    })?;
    Ok(Verdict::Kept)
}

pub(super) fn read_your_writes(bench: &Bench) -> Result<Verdict, String> {
    let subject = bench.fresh()?;
    let acknowledged = AtomicU64::new(0);
    subject.put("k", &0u64.to_le_bytes(), None)?;
    let read = || -> Result<u64, String> {
        let value = subject.value("k")?.and_then(|value| value.try_into().ok());
        value.map(u64::from_le_bytes).ok_or_else(|| "an acknowledged write is gone".to_owned())
    };
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let least = acknowledged.load(SeqCst);
                if least == u64::MAX {
                    return Ok(());
                }
                let got = read()?;
                ensure!(got >= least, "write {least} was acknowledged, and then {got} was read");
            }
        });
        let write = || {
            for n in 1..=1500u64 {
                subject.put("k", &n.to_le_bytes(), None)?;
                acknowledged.store(n, SeqCst);
                let got = read()?;
                ensure!(got == n, "write {n} was acknowledged, and then {got} was read");
            }
            Ok(())
        };
        let written = write();
        acknowledged.store(u64::MAX, SeqCst);
        let read = reader.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()));
        written.and(read)
    })?;
    Ok(Verdict::Kept)
}
