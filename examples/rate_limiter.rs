//! Counters, and two rate limiters made of them.
//!
//!     cargo run --example rate_limiter [-- DIR]
//!
//! The counts are in the cache directory, so a restart of the program does not let everybody in again.

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use keepwarm::{Cache, Timeout};

/// At most `limit` requests of each client in each window of time.
struct Limiter {
    cache: Cache,
    limit: i64,
    window: Duration,
}

impl Limiter {
    /// The simplest way: one counter for each client and window. At the border of two windows a client may
    /// have twice the limit in a short time.
    fn fixed(&self, client: &str, now: Duration) -> keepwarm::Result<bool> {
        Ok(self.count(client, self.number(now))? <= self.limit)
    }

    /// Smoother: what the window just before this one counted fades while this one passes. Still two counters
    /// for each client, however many requests there are.
    fn sliding(&self, client: &str, now: Duration) -> keepwarm::Result<bool> {
        let number = self.number(now);
        let passed = (now.as_secs_f64() / self.window.as_secs_f64()).fract();
        let before = self.cache.get::<i64>(&key(client, number - 1))?.unwrap_or(0);
        let counted = self.count(client, number)?;
        let allowed = before as f64 * (1.0 - passed) + counted as f64 <= self.limit as f64;
        if !allowed {
            // Only what was allowed counts, or a client that asks all the time would never be let in again.
            self.cache.decr(&key(client, number), 1)?;
        }
        Ok(allowed)
    }

    /// Counts a request. Atomic, so no request is missed however many threads count at once. The first one of
    /// a window sets the timeout, which is long enough for the window after it to look back.
    fn count(&self, client: &str, number: u128) -> keepwarm::Result<i64> {
        self.cache.incr_or_init(&key(client, number), 1, 0, self.window * 2)
    }

    fn number(&self, now: Duration) -> u128 {
        now.as_millis() / self.window.as_millis()
    }
}

fn key(client: &str, number: u128) -> String {
    format!("{client}:{number}")
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let cache = Cache::open(&dir)?;

    // A plain counter. Given a directory, it goes on where the last run ended.
    let runs = cache.incr_or_init("runs", 1, 0, Timeout::Never)?;
    println!("run number {runs} with this directory");

    let window = Duration::from_secs(60);
    let limiter = |name: &str| Limiter { cache: cache.with_prefix(name), limit: 5, window };

    // The time is handed in, so that nobody has to wait for this example.
    let start = Duration::from_secs(3600);
    let client = format!("10.0.0.{runs}");
    println!("\n8 requests each time, of which 5 a minute are allowed:");
    println!("second   fixed window   sliding window");
    let (fixed, sliding) = (limiter("fixed"), limiter("sliding"));
    for second in [0, 30, 61, 90, 125] {
        let now = start + Duration::from_secs(second);
        let by_fixed = of_eight(|| fixed.fixed(&client, now))?;
        let by_sliding = of_eight(|| sliding.sliding(&client, now))?;
        println!("{second:>6} {by_fixed:>14} {by_sliding:>16}");
    }

    // Whoever opens the directory next finds the counters as they are.
    drop((fixed, sliding, cache));
    let again = Limiter { cache: Cache::open(&dir)?.with_prefix("fixed"), limit: 5, window };
    let answer =
        if again.fixed(&client, start + Duration::from_secs(125))? { "allowed" } else { "refused" };
    println!("\nthe directory opened again, another request in second 125: {answer}");
    Ok(())
}

/// How many of eight requests are allowed.
fn of_eight(ask: impl Fn() -> keepwarm::Result<bool>) -> keepwarm::Result<u32> {
    let mut allowed = 0;
    for _ in 0..8 {
        allowed += u32::from(ask()?);
    }
    Ok(allowed)
}
