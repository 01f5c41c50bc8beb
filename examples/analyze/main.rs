//! Finds the most complex and the near-duplicate functions of Rust sources, and keeps what it found out in a
//! keepwarm directory, so that the next run is done at once.
//!
//!     cargo run --release --example analyze -- [DIR]
//!
//! Try it twice: the first run parses every file, the second reads none. Kill it in the middle, with `kill -9`
//! if you like: the next run computes only what is missing. The report on standard output is the same byte for
//! byte, however it came about; what it took is told on standard error.
//!
//! What this example shows of keepwarm is in `store.rs`: one cache shared by all threads, views with a prefix
//! and a version, typed values, `get_many`, and `get_or_set` for what several threads may want at once.

#![expect(clippy::print_stderr, reason = "it is a command-line tool")]

mod analysis;
mod args;
mod duplicates;
mod fingerprint;
mod functions;
mod report;
mod sources;
mod store;
mod summary;
mod work;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use clap::Parser as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Args;
use crate::sources::Input;
use crate::store::Store;
use crate::summary::Summary;
use crate::work::Work;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("keepwarm-analyze: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut lap = Instant::now();
    let mut lap = || std::mem::replace(&mut lap, Instant::now()).elapsed();
    let input = match &args.dir {
        Some(dir) => Input::directory(dir)?,
        None => Input::package_and_dependencies()?,
    };
    let listing = lap();

    let cache_dir = args.cache.clone().map_or_else(store::default_dir, Ok)?;
    let store = Store::open(&cache_dir, args.analysis_version)?;
    let jobs = match args.jobs {
        Some(jobs) => jobs.get(),
        None => thread::available_parallelism().map_or(1, usize::from),
    };

    let progress =
        if args.quiet { ProgressBar::hidden() } else { progress_bar(input.sources.len()) };
    let work = Work {
        store: &store,
        sources: &input.sources,
        progress: &progress,
        log_acknowledged: args.log_acknowledged,
    };
    let (findings, counts) = work.run(jobs)?;
    progress.finish_and_clear();
    store.close()?;
    let results = lap();

    let report = report::text(&input, &findings, args.analysis_version, args.top);
    match &args.report {
        Some(path) => fs::write(path, report)
            .map_err(|e| Failure::caused(format!("cannot write {}", path.display()), e))?,
        None => print(&report)?,
    }

    let summary = Summary {
        files: input.sources.len(),
        counts,
        jobs,
        listing,
        results,
        report: lap(),
        cache: &cache_dir,
    };
    if !args.quiet {
        eprint!("{summary}");
    }
    if args.json_summary {
        eprintln!("{}", summary.json());
    }
    Ok(())
}

/// Draws on standard error, and only if that is a terminal.
fn progress_bar(files: usize) -> ProgressBar {
    let bar = ProgressBar::new(files as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {pos}/{len} files, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// To standard output. A reader that has seen enough, such as `head`, is no reason to complain.
fn print(report: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(report.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::caused("cannot write the report", e))
        }
        _ => Ok(()),
    }
}

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why there is no report: for people.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    fn caused(message: impl fmt::Display, cause: impl Error) -> Self {
        Self(format!("{message}: {cause}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<keepwarm::Error> for Failure {
    fn from(error: keepwarm::Error) -> Self {
        Self::caused("the cache failed", error)
    }
}
