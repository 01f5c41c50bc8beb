//! What the tool does, command by command. What it was asked is in [`args`], how values look in [`shown`].

mod args;
mod shown;

use std::fmt;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use keepwarm::{Builder, Cache, Clock, ProcessStats, Stats, SystemClock};
use serde_json::json;

use self::args::{Args, Command, Format, Keys, Place};
use self::shown::Shown;

/// What `get` says where there is no entry, and `check` where something is wrong.
const NO: u8 = 1;
/// What every command says that could not be carried out. clap uses it for wrong usage.
const FAILED: u8 = 2;

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    match run(args.command, &mut out).and_then(|answer| Ok(out.flush().map(|()| answer)?)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        // Whoever reads our output has seen enough.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing more can be done if this fails.
            let _ = writeln!(io::stderr(), "keepwarm: {failure}");
            ExitCode::from(FAILED)
        }
    }
}

/// Carries out `command`, and gives the answer to the question that it is.
fn run(command: Command, out: &mut impl Write) -> Result<bool, Failure> {
    match command {
        Command::Stats { place, json } => stats(&existing(&place, None)?, json, out),
        Command::Get { place, keys, key, raw } => {
            get(&existing(&place, Some(keys))?, &key, raw, out)
        }
        Command::Set { place, keys, key, value, format, timeout } => {
            let value = if value == "-" { read_stdin()? } else { value.into_bytes() };
            let cache = builder(&place, Some(keys)).open()?;
            match format.of() {
                Format::Text => cache.set(&key, text(&value)?, timeout)?,
                Format::Json => cache.set(&key, &json_value(&value)?, timeout)?,
                Format::Bytes => cache.set_bytes(&key, &value, timeout)?,
            }
            cache.close()?;
            Ok(true)
        }
        Command::Ls { place, keys, values, json, limit } => {
            list(&existing(&place, Some(keys))?, values, json, limit, out)
        }
        Command::Salvage { place } => {
            existing_place(&place)?;
            let cache = builder(&place, None).salvage(true).open()?;
            writeln!(out, "entries  {}", cache.len())?;
            cache.close()?;
            Ok(true)
        }
        Command::Check { place, json } => check(&existing(&place, None)?, json, out),
    }
}

fn stats(cache: &Cache, json: bool, out: &mut impl Write) -> Result<bool, Failure> {
    let all = cache.total_stats()?;
    // The first is this process, which has done nothing.
    let processes = cache.process_stats()?.split_off(1);
    if json {
        let processes: Vec<_> = processes
            .iter()
            .map(|p| json!({ "pid": p.pid, "since_ms": p.since.as_millis(), "stats": p.stats }))
            .collect();
        writeln!(
            out,
            "{}",
            json!({ "entries": all.entries, "bytes": all.bytes, "all": all, "processes": processes })
        )?;
        return Ok(true);
    }
    writeln!(out, "entries    {}", all.entries)?;
    writeln!(out, "bytes      {}", all.bytes)?;
    writeln!(out, "processes  {}", processes.len())?;
    if processes.is_empty() {
        // What is counted begins anew with the first one.
        return Ok(true);
    }
    let mut line = |name: &str, seconds: &str, counts: [&dyn fmt::Display; 6]| {
        let [hits, misses, commits, evicted, expired, corrupt] = counts;
        writeln!(
            out,
            "{name:>10} {seconds:>10} {hits:>12} {misses:>12} {commits:>12} {evicted:>12} {expired:>12} {corrupt:>8}"
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
    // With those that have left.
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
                "entries changed meanwhile, so whether as many are there as counted was not looked at"
            )?;
        }
        writeln!(out, "{}", if report.is_sound() { "sound" } else { "not sound" })?;
    }
    Ok(report.is_sound())
}

/// The cache that is already there, be it in a place that cannot be written to: a look at a directory must not make one.
fn existing(place: &Place, keys: Option<Keys>) -> Result<Cache, Failure> {
    existing_place(place)?;
    Ok(builder(place, keys).read_only(true).open()?)
}

fn existing_place(place: &Place) -> Result<(), Failure> {
    let dir = &place.dir;
    if !dir.exists() {
        return Err(Failure::told(dir, "there is no such directory"));
    }
    // Made before anything else and for good, so that without it there is nothing to see.
    if dir.is_dir() && !dir.join("meta").exists() {
        return Err(Failure::told(dir, "this is not a keepwarm directory"));
    }
    Ok(())
}

/// How every command opens the directory: under the limits of the program that it belongs to.
fn builder(place: &Place, keys: Option<Keys>) -> Builder {
    let builder = Cache::builder(&place.dir).keep_limits(true).hot_bytes(0);
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
        .map_err(|e| Failure::Told(format!("standard input: {e}")))?;
    Ok(value)
}

fn text(value: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(value)
        .map_err(|e| Failure::Told(format!("the value is no text: {e}; see --bytes")))
}

fn json_value(value: &[u8]) -> Result<serde_json::Value, Failure> {
    serde_json::from_slice(value).map_err(|e| Failure::Told(format!("the value is not JSON: {e}")))
}

/// On one line, whatever a key holds, and without telling the terminal anything.
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

/// Why a command could not be carried out.
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
            Self::Output(error) => write!(f, "standard output: {error}"),
            Self::Told(why) => f.write_str(why),
        }
    }
}

impl From<keepwarm::Error> for Failure {
    fn from(error: keepwarm::Error) -> Self {
        Self::Cache(error)
    }
}

/// The only I/O that is not the cache's is to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
