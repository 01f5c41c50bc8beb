//! The command line tool: one function for each command. [`args`] has the command line, [`render`]
//! prints values.

mod args;
mod render;

use std::fmt;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use keepwarm::{Builder, Cache, Clock, ProcessStats, Stats, SystemClock};
use serde_json::json;

use self::args::{Args, Command, DirectoryArg, KeyArgs, ValueFormat};
use self::render::Shown;

/// The exit code of `get` without an entry, and of `check` with a problem.
const NO: u8 = 1;
/// The exit code of a command that failed. clap uses it for wrong usage.
const FAILED: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    match run(args.command, &mut out).and_then(|answer| Ok(out.flush().map(|()| answer)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        // The reader of our output has closed it.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // If this fails, the error cannot be reported anywhere.
            let _ = writeln!(io::stderr(), "keepwarm: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

/// Runs `command`. `false` means exit code [`NO`].
fn run(command: Command, out: &mut impl Write) -> Result<bool, Failure> {
    match command {
        Command::Stats { directory, json } => stats(&existing(&directory, None)?, json, out),
        Command::Get { directory, keys, key, raw } => {
            get(&existing(&directory, Some(keys))?, &key, raw, out)
        }
        Command::Set { directory, keys, key, value, format, timeout } => {
            let value = if value == "-" { read_stdin()? } else { value.into_bytes() };
            let cache = builder(&directory, Some(keys)).open()?;
            match format.of() {
                ValueFormat::Text => cache.set(&key, text(&value)?, timeout)?,
                ValueFormat::Json => cache.set(&key, &json_value(&value)?, timeout)?,
                ValueFormat::Bytes => cache.set_bytes(&key, &value, timeout)?,
            }
            cache.close()?;
            Ok(true)
        }
        Command::Ls { directory, keys, values, json, limit } => {
            list(&existing(&directory, Some(keys))?, values, json, limit, out)
        }
        Command::Salvage { directory } => {
            check_exists(&directory)?;
            let cache = builder(&directory, None).salvage(true).open()?;
            writeln!(out, "entries  {}", cache.len())?;
            cache.close()?;
            Ok(true)
        }
        Command::Check { directory, json } => check(&existing(&directory, None)?, json, out),
    }
}

fn stats(cache: &Cache, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let all = cache.total_stats()?;
    // The first is this process, which has counted nothing.
    let processes = cache.process_stats()?.split_off(1);
    if json {
        let processes: Vec<_> = processes
            .iter()
            .map(|p| json!({ "pid": p.pid, "since_ms": p.since.as_millis(), "stats": p.stats }))
            .collect();
        writeln!(
            out,
            "{}",
            json!({
                "entries": all.entries,
                "bytes": all.bytes,
                "all": all,
                "processes": processes,
            })
        )?;
        return Ok(true);
    }
    writeln!(out, "entries    {}", all.entries)?;
    writeln!(out, "bytes      {}", all.bytes)?;
    writeln!(out, "processes  {}", processes.len())?;
    if processes.is_empty() {
        // The counters start at zero with the first process that opens the directory.
        return Ok(true);
    }
    let mut line = |name: &str, seconds: &str, counts: [&dyn fmt::Display; 6]| {
        let [hits, misses, commits, evicted, expired, corrupt] = counts;
        writeln!(
            out,
            "{name:>10} {seconds:>10} {hits:>12} {misses:>12} {commits:>12} {evicted:>12} \
             {expired:>12} {corrupt:>8}"
        )
    };
    line("pid", "seconds", [&"hits", &"misses", &"commits", &"evicted", &"expired", &"corrupt"])?;
    fn counts(stats: &Stats) -> [&dyn fmt::Display; 6] {
        [&stats.hits, &stats.misses, &stats.commits, &stats.evicted, &stats.expired, &stats.corrupt]
    }
    let now = SystemClock.now();
    for ProcessStats { pid, since, stats, .. } in &processes {
        let seconds = now.saturating_since(*since).as_secs();
        line(&pid.to_string(), &seconds.to_string(), counts(stats))?;
    }
    // Processes that have ended are included.
    line("all", "", counts(&all))?;
    Ok(true)
}

fn get(cache: &Cache, key: &str, raw: bool, out: &mut impl Write) -> Result<bool, Failure> {
    match cache.get::<Shown>(key)? {
        None => return Ok(false),
        Some(Shown::Text(text)) if raw => out.write_all(text.as_bytes())?,
        Some(Shown::Bytes(bytes)) if raw => out.write_all(&bytes)?,
        Some(value) => writeln!(out, "{}", value.to_json())?,
    }
    Ok(true)
}

fn list(
    cache: &Cache,
    values: bool,
    json: bool,
    limit: Option<usize>,
    out: &mut impl Write,
) -> Result<bool, Failure> {
    let limit = limit.unwrap_or(usize::MAX);
    if values {
        for entry in cache.iter::<Shown>().take(limit) {
            let (key, value) = entry?;
            let value = value.to_json();
            if json {
                writeln!(out, "{{\"key\":{},\"value\":{value}}}", json!(key))?;
            } else {
                writeln!(out, "{}\t{value}", printable(&key))?;
            }
        }
    } else {
        for key in cache.keys().take(limit) {
            let key = key?;
            if json {
                writeln!(out, "{}", json!({ "key": key }))?;
            } else {
                writeln!(out, "{}", printable(&key))?;
            }
        }
    }
    Ok(true)
}

fn check(cache: &Cache, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let report = cache.check()?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&report).map_err(io::Error::other)?)?;
    } else {
        writeln!(out, "segments  {}", report.segments)?;
        writeln!(out, "records   {}", report.records)?;
        writeln!(out, "entries   {}, {} of them expired", report.entries, report.expired)?;
        for problem in &report.problems {
            writeln!(out, "problem: {}", printable(problem))?;
        }
        if report.changed {
            writeln!(
                out,
                "entries changed during the check, so their number was not compared with the count"
            )?;
        }
        writeln!(out, "{}", if report.is_sound() { "sound" } else { "not sound" })?;
    }
    Ok(report.is_sound())
}

/// Opens an existing cache read-only, also where writing is not permitted. Showing a directory must
/// not create one.
fn existing(directory: &DirectoryArg, keys: Option<KeyArgs>) -> Result<Cache, Failure> {
    check_exists(directory)?;
    Ok(builder(directory, keys).read_only(true).open()?)
}

fn check_exists(directory: &DirectoryArg) -> Result<(), Failure> {
    let dir = &directory.dir;
    if !dir.exists() {
        return Err(Failure::told(dir, "there is no such directory; only `set` creates one"));
    }
    // `meta` is the first file that is made, and is never removed: without it there is no cache.
    if dir.is_dir() && !dir.join("meta").exists() {
        return Err(Failure::told(dir, "this is not a keepwarm directory"));
    }
    Ok(())
}

/// The options with which every command opens the directory: it keeps its limits.
fn builder(directory: &DirectoryArg, keys: Option<KeyArgs>) -> Builder {
    let builder = Cache::builder(&directory.dir).keep_limits(true).hot_bytes(0);
    match keys {
        None => builder,
        Some(keys) if keys.stored => builder.key_function(|_, _, key| key.to_owned()),
        Some(keys) => builder.key_prefix(keys.prefix).version(keys.key_version),
    }
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut value)
        .map_err(|e| Failure::Told(format!("cannot read standard input: {e}")))?;
    Ok(value)
}

fn text(value: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(value).map_err(|e| {
        Failure::Told(format!("the value is not UTF-8 text: {e}; use --bytes to store it"))
    })
}

fn json_value(value: &[u8]) -> Result<serde_json::Value, Failure> {
    serde_json::from_slice(value).map_err(|e| Failure::Told(format!("the value is not JSON: {e}")))
}

/// `text` on one line, with control characters escaped, so that a key cannot control the terminal.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Why a command failed.
enum Failure {
    Cache(keepwarm::Error),
    Output(io::Error),
    Told(String),
}

impl Failure {
    fn told(dir: &Path, why: &str) -> Self {
        Self::Told(format!("{}: {why}", dir.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(error) => error.fmt(f),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
            Self::Told(why) => f.write_str(why),
        }
    }
}

impl From<keepwarm::Error> for Failure {
    fn from(error: keepwarm::Error) -> Self {
        Self::Cache(error)
    }
}

/// All I/O outside the cache that returns `io::Error` here is output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
