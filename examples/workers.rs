//! The workers of a web server: several processes share one cache without a cache server. One of
//! them is killed while it works.
//!
//!     cargo run --example workers [-- DIR]

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use keepwarm::{Cache, Timeout};

const WORKERS: usize = 4;
const REQUESTS: u32 = 1_000;
const PAGES: u32 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        // `serve` starts this program again in this role.
        (Some(role), Some(dir)) if role == "--worker" => Ok(work(Path::new(&dir))?),
        (Some(dir), _) => serve(&PathBuf::from(dir)),
        (None, _) => serve(&tempfile::tempdir()?.path().join("cache")),
    }
}

/// A worker: opens the directory as a single process would.
fn work(dir: &Path) -> keepwarm::Result<()> {
    let cache = Cache::open(dir)?;
    let first = std::process::id();
    for number in 0..REQUESTS {
        let page = first.wrapping_add(number * 7) % PAGES;
        // Of all workers that miss a page, one renders it and the others get the result.
        cache.get_or_set(&format!("page {page}"), Timeout::Never, || render(&cache, page))?;
        // Atomic across all processes.
        cache.incr_or_init("requests", 1, 0, Timeout::Never)?;
    }
    Ok(())
}

fn render(cache: &Cache, page: u32) -> String {
    thread::sleep(Duration::from_millis(20));
    // A failure to count does not affect the page.
    let _ = cache.incr_or_init("rendered", 1, 0, Timeout::Never);
    format!("<h1>Page {page}</h1>")
}

fn serve(dir: &Path) -> Result<(), Box<dyn Error>> {
    let cache = Cache::open(dir)?;
    // In case the directory was used before.
    cache.clear()?;
    let count = |name| cache.get::<u64>(name).map(Option::unwrap_or_default);

    let start = || Command::new(env::current_exe()?).arg("--worker").arg(dir).spawn();
    let mut workers = (0..WORKERS).map(|_| start()).collect::<Result<Vec<Child>, _>>()?;
    while count("requests")? < 500 {
        thread::sleep(Duration::from_millis(1));
    }
    // This process counts too.
    println!("{} processes have the directory open", cache.process_stats()?.len());

    // Whatever it was doing at this moment: no process waits for it, and all it stored is kept.
    if let Some(victim) = workers.first_mut() {
        victim.kill()?;
        println!("killed one worker after {} requests of all workers", count("requests")?);
    }
    workers.push(start()?);
    for mut worker in workers {
        worker.wait()?;
    }
    // A page is rendered again if its renderer was killed before it stored the page.
    println!(
        "{} requests were answered; {} pages rendered for {PAGES}",
        count("requests")?,
        count("rendered")?
    );
    println!("sound: {}", cache.check()?.is_sound());
    Ok(())
}
