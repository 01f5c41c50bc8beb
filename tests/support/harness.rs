//! A test harness: the command line and the output of libtest, for a program whose tests start the
//! program itself again as a child process. Tests run one after the other, on the main thread.
//!
//! It speaks the part of libtest's protocol that `cargo test`, `cargo nextest` and `scripts/test`
//! need: `--list --format terse` prints one `NAME: test` a line, `--exact NAME` runs one test, and
//! the exit code is 101 if a test fails or the command line is wrong. Output is never captured.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// The outcome of a test that did not fail: it passed, or it cannot run here, for this reason.
pub(crate) type Verdict = Result<(), &'static str>;

/// A test: its name and its function.
pub(crate) type Test = (&'static str, fn() -> Verdict);

/// The exit code of libtest when a test fails or the command line is wrong.
const FAILURE: u8 = 101;

/// Flags of libtest that change nothing here: no test is ignored, and no output is captured.
const WITHOUT_EFFECT: &[&str] = &[
    "--nocapture",
    "--no-capture",
    "--show-output",
    "--quiet",
    "-q",
    "--include-ignored",
    "--test",
    "--bench",
];

/// Flags of libtest that take a value and change nothing here.
const VALUE_WITHOUT_EFFECT: &[&str] = &["--test-threads", "--color", "-Z"];

/// A parsed command line.
#[derive(Debug, Default)]
struct Request {
    list: bool,
    terse: bool,
    exact: bool,
    /// `--ignored` selects only tests marked `#[ignore]`. A table has none.
    ignored: bool,
    names: Vec<String>,
    skipped: Vec<String>,
}

impl Request {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut request = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                request.names.extend(arguments);
                break;
            }
            if !argument.starts_with('-') {
                request.names.push(argument);
                continue;
            }
            let (flag, mut value) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut required = || {
                let value = value.take().or_else(|| arguments.next());
                value.ok_or_else(|| format!("the option {flag} needs a value"))
            };
            match flag.as_str() {
                "--list" => request.list = true,
                "--exact" => request.exact = true,
                "--ignored" => request.ignored = true,
                "--include-ignored" => request.ignored = false,
                "--skip" => request.skipped.push(required()?),
                "--format" => {
                    request.terse = match required()?.as_str() {
                        "pretty" => false,
                        "terse" => true,
                        other => return Err(format!("the format {other} is not supported")),
                    }
                }
                flag if VALUE_WITHOUT_EFFECT.contains(&flag) => drop(required()?),
                flag if WITHOUT_EFFECT.contains(&flag) => {}
                // If it took a value, that value would become a filter.
                _ => return Err(format!("unknown option {flag}")),
            }
            if value.is_some() {
                return Err(format!("the option {flag} takes no value"));
            }
        }
        Ok(request)
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| {
            if self.exact { filter == name } else { name.contains(filter.as_str()) }
        };
        !self.ignored
            && (self.names.is_empty() || self.names.iter().any(matches))
            && !self.skipped.iter().any(matches)
    }
}

/// Lists or runs the tests that the command line selects.
pub(crate) fn main(tests: &[Test]) -> ExitCode {
    let request = match Request::parse(std::env::args().skip(1)) {
        Ok(request) => request,
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::from(FAILURE);
        }
    };
    let selected: Vec<&Test> = tests.iter().filter(|(name, _)| request.selects(name)).collect();
    if request.list {
        selected.iter().for_each(|(name, _)| println!("{name}: test"));
        if !request.terse {
            println!("\n{} tests, 0 benchmarks", selected.len());
        }
        return ExitCode::SUCCESS;
    }
    run(&selected, tests.len() - selected.len())
}

fn run(selected: &[&Test], filtered_out: usize) -> ExitCode {
    println!("\nrunning {} tests", selected.len());
    let (started, mut passed, mut failed, mut not_run) = (Instant::now(), 0, 0, 0);
    for (name, test) in selected {
        let verdict = match catch_unwind(AssertUnwindSafe(test)) {
            Ok(Ok(())) => {
                passed += 1;
                "ok"
            }
            Ok(Err(why)) => {
                not_run += 1;
                eprintln!("not run: {name}: {why}");
                "ignored"
            }
            Err(_) => {
                failed += 1;
                "FAILED"
            }
        };
        println!("test {name} ... {verdict}");
    }
    println!(
        "\ntest result: {}. {passed} passed; {failed} failed; {not_run} ignored; 0 measured; \
         {filtered_out} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}
