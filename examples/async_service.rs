//! A cache in async code: what many tasks ask for is computed once, by an async closure, and whoever computes may
//! give up.
//!
//!     cargo run --features async --example async_service [-- DIR]

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use keepwarm::{AsyncCache, Lifespan};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Something that takes its time to answer, and counts how often it is asked.
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

/// Fresh for half a second; of use for a minute more.
async fn report(cache: &AsyncCache, database: &Database, name: &str) -> keepwarm::Result<String> {
    let lifespan = Lifespan::new(Duration::from_millis(500)).stale_for(Duration::from_secs(60));
    cache.get_or_set(name, lifespan, || database.report(name)).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let cache = AsyncCache::open(dir).await?;
    // Here it is to be missed, also if the directory is one that was used before.
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

    // Stale, it is of use to everybody while one task has it computed anew.
    sleep(Duration::from_millis(600)).await;
    let anew = report(&cache, &database, "sales");
    let meanwhile = async {
        let started = Instant::now();
        (report(&cache, &database, "sales").await, started.elapsed())
    };
    // Both begin in this order.
    let (anew, (stale, took)) = tokio::join!(biased; anew, meanwhile);
    println!("\none task waited for: {}", anew?);
    println!("another had, after {} µs: {}", took.as_micros(), stale?);

    // Who computes and gives up makes way for one of those who wait.
    cache.delete("stock").await?;
    let impatient = timeout(Duration::from_millis(10), report(&cache, &database, "stock"));
    let (gave_up, waited) = tokio::join!(biased; impatient, report(&cache, &database, "stock"));
    assert!(gave_up.is_err());
    println!("\none task gave up after 10 ms, the next one computed: {}", waited?);
    Ok(())
}
