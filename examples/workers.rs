//! The workers of a web server: several processes, one cache, and no server for it. One of them is killed on the way.
//!
//!     cargo run --example workers [-- DIR]

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]

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
        // How this program starts itself, see below.
        (Some(role), Some(dir)) if role == "--worker" => Ok(work(Path::new(&dir))?),
        (Some(dir), _) => serve(&PathBuf::from(dir)),
        (None, _) => serve(&tempfile::tempdir()?.path().join("cache")),
    }
}

/// A worker: opens the directory as if it were alone.
fn work(dir: &Path) -> keepwarm::Result<()> {
    let cache = Cache::open(dir)?;
    let first = std::process::id();
    for number in 0..REQUESTS {
        let page = first.wrapping_add(number * 7) % PAGES;
        // Of all workers that miss a page one renders it, and the others are given what it made.
        cache.get_or_set(&format!("page {page}"), Timeout::Never, || render(&cache, page))?;
        // Atomic among all of them.
        cache.incr_or_init("requests", 1, 0, Timeout::Never)?;
    }
    Ok(())
}

fn render(cache: &Cache, page: u32) -> String {
    thread::sleep(Duration::from_millis(20));
    // Should it not be counted, the page is none the worse for it.
    let _ = cache.incr_or_init("rendered", 1, 0, Timeout::Never);
    format!("<h1>Page {page}</h1>")
}

fn serve(dir: &Path) -> Result<(), Box<dyn Error>> {
    let cache = Cache::open(dir)?;
    // In case the directory is one that was used before.
    cache.clear()?;
    let count = |name| cache.get::<u64>(name).map(Option::unwrap_or_default);

    let start = || Command::new(env::current_exe()?).arg("--worker").arg(dir).spawn();
    let mut workers = (0..WORKERS).map(|_| start()).collect::<Result<Vec<Child>, _>>()?;
    while count("requests")? < 500 {
        thread::sleep(Duration::from_millis(1));
    }
    // This one among them.
    println!("{} processes have the directory open", cache.process_stats()?.len());

    // Whatever it was doing at this moment: nobody waits for it, and nothing that it had stored is lost.
    if let Some(victim) = workers.first_mut() {
        victim.kill()?;
        println!("killed one of them after {} requests of all", count("requests")?);
    }
    workers.push(start()?);
    for mut worker in workers {
        worker.wait()?;
    }
    // A page is rendered again if the one who did it first was killed over it.
    println!(
        "{} requests were answered; {} pages rendered for {PAGES}",
        count("requests")?,
        count("rendered")?
    );
    println!("sound: {}", cache.check()?.is_sound());
    Ok(())
}
