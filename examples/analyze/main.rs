//! A source analyser: finds the most complex and the near-duplicate functions of Rust sources, and
//! keeps the results in a keepwarm directory, so that the next run takes almost no time.
//!
//!     cargo run --release --example analyze -- [DIR]
//!
//! Run it twice: the first run parses every file, the second reads none. Kill it in the middle,
//! even with `kill -9`: the next run computes only missing results. The report on standard output
//! is the same byte for byte in all cases; the summary on standard error says what the run did.
//!
//! `store.rs` shows the use of keepwarm: one cache shared by all threads, views with a prefix and a
//! version, typed values, `get_many`, and `get_or_set` for results that several threads may need at
//! the same time.

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

/// A progress bar on standard error, hidden if that is not a terminal.
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

/// Prints to standard output. A closed pipe, as with `head`, is not an error.
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

/// The message that explains to the user why there is no report.
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
