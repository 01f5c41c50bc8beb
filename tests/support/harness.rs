//! A small test harness, for files whose tests start their own program again as a child process. Prints what
//! libtest prints, and heeds a name to filter by.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// What became of a test that did not fail: it passed, or it could not be run here, for this reason.
pub(crate) type Verdict = Result<(), &'static str>;

/// A test: its name and what it does.
pub(crate) type Test = (&'static str, fn() -> Verdict);

/// Runs the tests whose names the command line asks for, one after the other.
pub(crate) fn main(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let names: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let asked = |name: &str| {
        names.is_empty()
            || names.iter().any(|n| if has("--exact") { **n == name } else { name.contains(*n) })
    };
    let chosen: Vec<&Test> =
        tests.iter().filter(|(name, _)| asked(name) && !has("--ignored")).collect();
    if has("--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let (started, mut passed, mut failed, mut not_run) = (Instant::now(), 0, 0, 0);
    for (name, test) in &chosen {
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
        "\ntest result: {}. {passed} passed; {failed} failed; {not_run} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        tests.len() - chosen.len(),
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
