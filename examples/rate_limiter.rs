//! Counters, and two rate limiters built on them.
//!
//!     cargo run --example rate_limiter [-- DIR]
//!
//! The counts are in the cache directory, so a restart of the program does not reset the limits.

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use keepwarm::{Cache, Timeout};

/// Allows at most `limit` requests per client and window.
struct Limiter {
    cache: Cache,
    limit: i64,
    window: Duration,
}

impl Limiter {
    /// Fixed windows, the simplest way: one counter per client and window. Around the border of two
    /// windows a client can make twice the limit in a short time.
    fn fixed(&self, client: &str, now: Duration) -> keepwarm::Result<bool> {
        Ok(self.count(client, self.number(now))? <= self.limit)
    }

    /// A sliding window: the count of the previous window weighs less and less while the current
    /// one passes. Two counters per client, however many requests there are.
    fn sliding(&self, client: &str, now: Duration) -> keepwarm::Result<bool> {
        let number = self.number(now);
        let passed = (now.as_secs_f64() / self.window.as_secs_f64()).fract();
        let before = self.cache.get::<i64>(&key(client, number - 1))?.unwrap_or(0);
        let counted = self.count(client, number)?;
        let allowed = before as f64 * (1.0 - passed) + counted as f64 <= self.limit as f64;
        if !allowed {
            // Refused requests do not count; otherwise a client that never stops asking would never
            // be allowed again.
            self.cache.decr(&key(client, number), 1)?;
        }
        Ok(allowed)
    }

    /// Counts a request. Atomic, so no request is missed however many threads and processes count.
    /// The first request of a window sets the timeout: two windows, because the next window reads
    /// this count too.
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

    // A plain counter. With a directory, it continues where the last run ended.
    let runs = cache.incr_or_init("runs", 1, 0, Timeout::Never)?;
    println!("run number {runs} with this directory");

    let window = Duration::from_secs(60);
    let limiter = |name: &str| Limiter { cache: cache.with_prefix(name), limit: 5, window };

    // The time is a parameter, so that this example need not wait.
    let start = Duration::from_secs(3600);
    let client = format!("10.0.0.{runs}");
    println!("\n8 requests at each of these seconds, with a limit of 5 per minute:");
    println!("second   fixed window   sliding window");
    let (fixed, sliding) = (limiter("fixed"), limiter("sliding"));
    for second in [0, 30, 61, 90, 125] {
        let now = start + Duration::from_secs(second);
        let by_fixed = of_eight(|| fixed.fixed(&client, now))?;
        let by_sliding = of_eight(|| sliding.sliding(&client, now))?;
        println!("{second:>6} {by_fixed:>14} {by_sliding:>16}");
    }

    // The next program that opens the directory finds the counters.
    drop((fixed, sliding, cache));
    let again = Limiter { cache: Cache::open(&dir)?.with_prefix("fixed"), limit: 5, window };
    let answer =
        if again.fixed(&client, start + Duration::from_secs(125))? { "allowed" } else { "refused" };
    println!("\nafter reopening the directory, another request in second 125: {answer}");
    Ok(())
}

/// Makes eight requests and returns how many were allowed.
fn of_eight(ask: impl Fn() -> keepwarm::Result<bool>) -> keepwarm::Result<u32> {
    let mut allowed = 0;
    for _ in 0..8 {
        allowed += u32::from(ask()?);
    }
    Ok(allowed)
}
