//! Single flight: what many threads miss at once is computed once.
//!
//!     cargo run --example single_flight [-- DIR]
//!
//! Without it, the moment a popular entry expires is the moment when everybody computes it again.

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use keepwarm::{Cache, ComputeError, Timeout};

const THREADS: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let cache = Cache::open(dir)?;
    // Here it is to be missed, also if the directory is one that was used before.
    cache.delete("report")?;
    cache.delete("rates")?;

    // All threads ask for what takes a while to compute.
    let computed = AtomicU32::new(0);
    let slow_report = || {
        computed.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_millis(100));
        "many pages".to_owned()
    };
    let started = Instant::now();
    all_at_once(|| {
        let report = cache.get_or_set("report", Duration::from_secs(60), slow_report);
        assert!(report.is_ok_and(|report| report == "many pages"));
    });
    println!("{THREADS} threads asked for the report, {} computed it", computed.load(Relaxed));
    println!("all had it after {} ms", started.elapsed().as_millis());

    // A computation that fails is not kept, and does not fail for all: one of those who wait tries next.
    let attempts = AtomicU32::new(0);
    let failed = AtomicU32::new(0);
    let unreliable = || match attempts.fetch_add(1, Relaxed) {
        0 | 1 => Err("no answer from the server"),
        _ => Ok(1.0842),
    };
    all_at_once(|| match cache.try_get_or_set("rates", Timeout::Default, unreliable) {
        Ok(rate) => assert_eq!(rate, 1.0842),
        Err(ComputeError::Compute("no answer from the server")) => {
            failed.fetch_add(1, Relaxed);
        }
        Err(error) => println!("unexpected: {error}"),
    });
    println!(
        "\n{THREADS} threads asked for the rates, {} tried, {} of them got an error, the others the value",
        attempts.load(Relaxed),
        failed.load(Relaxed),
    );
    Ok(())
}

/// Calls `f` in all threads at the same time.
fn all_at_once(f: impl Fn() + Sync) {
    let barrier = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                f();
            });
        }
    });
}
