//! The harness of `tests/support/harness.rs` speaks libtest's protocol: this program runs itself
//! with a table of examples and the command lines of `cargo test` and `cargo nextest`.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;

use std::process::{Command, ExitCode, Output};

use harness::Verdict;

/// If it is set, the program has the tests of [`EXAMPLES`] instead of its own.
const MARK: &str = "KEEPWARM_HARNESS_EXAMPLES";

const EXAMPLES: &[harness::Test] = &[
    ("passes", || Ok(())),
    ("passes_too", || Ok(())),
    ("fails", || panic!("as it must")),
    ("cannot_run", || Err("needs a reason")),
];

fn main() -> ExitCode {
    if std::env::var_os(MARK).is_some() {
        return harness::main(EXAMPLES);
    }
    harness::main(&[
        ("the_listing_of_nextest_has_every_test", nextest_lists_all),
        ("the_listing_of_ignored_tests_is_empty", none_is_ignored),
        ("the_listing_of_cargo_test_ends_with_a_count", listing_with_count),
        ("an_exact_name_runs_one_test", exact),
        ("a_filter_matches_a_part_of_the_name", part_of_name),
        ("skipped_tests_do_not_run", skipped),
        ("values_of_flags_are_not_filters", values_are_not_filters),
        ("an_unknown_flag_is_an_error", unknown_flag),
        ("a_missing_or_surplus_value_is_an_error", wrong_values),
        ("a_failed_test_is_counted_and_gives_code_101", failed),
        ("a_test_that_cannot_run_says_why_and_is_no_failure", not_run),
    ])
}

struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Answer {
    /// What ran, in order: `NAME OUTCOME`.
    fn ran(&self) -> Vec<String> {
        let lines = self.out.lines().filter_map(|line| line.strip_prefix("test "));
        lines.filter(|line| line.contains(" ... ")).map(|line| line.replace(" ...", "")).collect()
    }

    /// A refused command line: nothing runs, and the exit code is that of a failure.
    #[track_caller]
    fn is_refused(&self, reason: &str) {
        assert_eq!((self.code, self.out.as_str()), (Some(101), ""));
        assert_eq!(self.err, format!("error: {reason}\n"));
    }
}

/// Runs the examples with a command line, its words separated by spaces.
fn ask(line: &str) -> Answer {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(MARK, "1").args(line.split_whitespace());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Answer { code: status.code(), out: text(stdout), err: text(stderr) }
}

fn nextest_lists_all() -> Verdict {
    let answer = ask("--list --format terse");
    assert_eq!(answer.out, "passes: test\npasses_too: test\nfails: test\ncannot_run: test\n");
    assert_eq!(answer.code, Some(0));
    assert_eq!(ask("--list --format=terse").out, answer.out);
    Ok(())
}

fn none_is_ignored() -> Verdict {
    let answer = ask("--list --format terse --ignored");
    assert_eq!((answer.out.as_str(), answer.code), ("", Some(0)));
    assert_eq!(ask("--ignored").ran(), [""; 0]);
    assert_eq!(ask("--include-ignored passes").ran(), ["passes ok", "passes_too ok"]);
    Ok(())
}

fn listing_with_count() -> Verdict {
    let answer = ask("--list passes");
    assert_eq!(answer.out, "passes: test\npasses_too: test\n\n2 tests, 0 benchmarks\n");
    Ok(())
}

fn exact() -> Verdict {
    // The command line with which nextest runs one test.
    let answer = ask("--exact passes --nocapture");
    assert_eq!((answer.ran(), answer.code), (vec!["passes ok".to_owned()], Some(0)));
    assert_eq!(ask("passe --exact").ran(), [""; 0]);
    Ok(())
}

fn part_of_name() -> Verdict {
    assert_eq!(ask("passes").ran(), ["passes ok", "passes_too ok"]);
    assert_eq!(ask("too cannot").ran(), ["passes_too ok", "cannot_run ignored"]);
    let none = ask("no_such_test");
    let counts = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out;";
    assert!(none.out.contains(counts), "{}", none.out);
    assert_eq!(none.code, Some(0));
    Ok(())
}

fn skipped() -> Verdict {
    assert_eq!(ask("--skip fails --skip=too").ran(), ["passes ok", "cannot_run ignored"]);
    assert_eq!(ask("pass --skip passes").ran(), [""; 0]);
    assert_eq!(ask("--exact passes passes_too --skip passes").ran(), ["passes_too ok"]);
    Ok(())
}

fn values_are_not_filters() -> Verdict {
    for flags in ["--test-threads 1", "--test-threads=1", "--color always", "--format pretty"] {
        let answer = ask(&format!("{flags} passes"));
        assert_eq!(answer.ran(), ["passes ok", "passes_too ok"], "{flags}");
    }
    assert_eq!(ask("-- passes").ran(), ["passes ok", "passes_too ok"]);
    Ok(())
}

fn unknown_flag() -> Verdict {
    ask("--frobnicate passes").is_refused("unknown option --frobnicate");
    ask("--frobnicate=passes").is_refused("unknown option --frobnicate");
    ask("--list --format json").is_refused("the format json is not supported");
    Ok(())
}

fn wrong_values() -> Verdict {
    ask("passes --skip").is_refused("the option --skip needs a value");
    ask("--exact=passes").is_refused("the option --exact takes no value");
    Ok(())
}

fn failed() -> Verdict {
    let answer = ask("");
    let outcomes = ["passes ok", "passes_too ok", "fails FAILED", "cannot_run ignored"];
    assert_eq!((answer.ran(), answer.code), (outcomes.map(str::to_owned).to_vec(), Some(101)));
    let counts = "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out;";
    assert!(answer.out.contains(counts), "{}", answer.out);
    assert!(answer.err.contains("as it must"), "{}", answer.err);
    Ok(())
}

fn not_run() -> Verdict {
    let answer = ask("cannot_run");
    assert_eq!((answer.ran(), answer.code), (vec!["cannot_run ignored".to_owned()], Some(0)));
    assert_eq!(answer.err, "not run: cannot_run: needs a reason\n");
    Ok(())
}
