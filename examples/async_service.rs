//! A cache in async code: a value that many tasks ask for is computed once, by an async closure,
//! and the computing task may be cancelled.
//!
//!     cargo run --features async --example async_service [-- DIR]

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use keepwarm::{AsyncCache, Lifespan};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// A slow database that counts its queries.
#[derive(Default)]
struct Database {
    queries: AtomicU32,
}

impl Database {
    async fn report(&self, name: &str) -> String {
        sleep(Duration::from_millis(100)).await;
        format!("{name}, edition {}", self.queries.fetch_add(1, Relaxed) + 1)
    }
}

/// A report that is fresh for half a second, and then stale for up to a minute.
async fn report(cache: &AsyncCache, database: &Database, name: &str) -> keepwarm::Result<String> {
    let lifespan = Lifespan::new(Duration::from_millis(500)).stale_for(Duration::from_secs(60));
    cache.get_or_set(name, lifespan, || database.report(name)).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let cache = AsyncCache::open(dir).await?;
    // The first calls must miss, also in a directory that was used before.
    cache.delete("sales").await?;
    let database = Arc::new(Database::default());

    let started = Instant::now();
    let mut requests = JoinSet::new();
    for _ in 0..64 {
        let (cache, database) = (cache.clone(), database.clone());
        requests.spawn(async move { report(&cache, &database, "sales").await });
    }
    for report in requests.join_all().await {
        assert_eq!(report?, "sales, edition 1");
    }
    println!("64 tasks asked, the database was asked {} time", database.queries.load(Relaxed));
    println!("all had the report after {} ms", started.elapsed().as_millis());

    // A stale report is served to the other tasks while one task refreshes it.
    sleep(Duration::from_millis(600)).await;
    let refresh = report(&cache, &database, "sales");
    let meanwhile = async {
        let started = Instant::now();
        (report(&cache, &database, "sales").await, started.elapsed())
    };
    // Both start in this order.
    let (refreshed, (stale, took)) = tokio::join!(biased; refresh, meanwhile);
    println!("\none task refreshed it and got: {}", refreshed?);
    println!("another task got, after {} µs: {}", took.as_micros(), stale?);

    // If the computing task times out, one of the waiting tasks computes.
    cache.delete("stock").await?;
    let first = timeout(Duration::from_millis(10), report(&cache, &database, "stock"));
    let (timed_out, waited) = tokio::join!(biased; first, report(&cache, &database, "stock"));
    assert!(timed_out.is_err());
    println!("\none task timed out after 10 ms, a waiting task computed: {}", waited?);
    Ok(())
}
