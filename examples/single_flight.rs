//! Single flight: a value that many threads miss at the same time is computed once.
//!
//!     cargo run --example single_flight [-- DIR]
//!
//! Without it, all callers compute a popular entry again at the moment it expires (a stampede).

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

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
    // The first calls must miss, also in a directory that was used before.
    cache.delete("report")?;
    cache.delete("rates")?;

    // All threads ask for a value that is slow to compute.
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

    // A failed computation is not stored, and fails only its own caller: then a waiter tries.
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
        "\n{THREADS} threads asked for the rates, {} tried, {} got an error, the others the value",
        attempts.load(Relaxed),
        failed.load(Relaxed),
    );
    Ok(())
}

/// Calls `f` on all threads at the same time.
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
