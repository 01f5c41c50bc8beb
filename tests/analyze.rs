//! The example `analyze`, run as a separate process over a tree of Rust files, with its results in
//! a directory. The tests count how many files it reads and analyses.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::Value;
use tempfile::TempDir;
use walkdir::WalkDir;

/// The numbers of files that parse, and of files that do not.
const GOOD: usize = 600;
const BAD: usize = 4;
const FILES: usize = GOOD + BAD;

const HOUR: Duration = Duration::from_secs(3600);

/// The built example. Cargo sets no variable for it as it does for binaries, but `cargo test`
/// builds it next to this test. `cargo test --test analyze` does not build it, so this checks that
/// it is current.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join("analyze");
    let built = fs::metadata(&program).and_then(|metadata| metadata.modified());
    let built = built.unwrap_or_else(|e| panic!("{}: {e}; {BUILD_IT}", program.display()));
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in
        ["src", "examples/analyze"].map(|dir| WalkDir::new(package.join(dir))).into_iter().flatten()
    {
        let source = source.unwrap();
        let changed = source.metadata().unwrap().modified().unwrap();
        let current = source.file_type().is_dir() || changed <= built;
        assert!(current, "{} is newer than the example; {BUILD_IT}", source.path().display());
    }
    program
});

const BUILD_IT: &str = "`cargo test` builds it, as does `cargo build --example analyze`";

/// A directory with sources, and a directory beside it for the cache.
struct Tree {
    dir: TempDir,
}

impl Tree {
    /// No two files are equal, and all were last modified an hour ago.
    fn new() -> Self {
        let tree = Self::empty();
        for i in 0..GOOD {
            tree.write(
                &Self::name(i),
                &format!("pub fn number_{i}(x: u64) -> u64 {{\n    x + {i}\n}}\n"),
            );
        }
        for i in 0..BAD {
            tree.write(&format!("bad/b{i}.rs"), &format!("fn number_{i}( {{\n"));
        }
        tree
    }

    fn empty() -> Self {
        let tree = Self { dir: TempDir::new().unwrap() };
        fs::create_dir(tree.sources()).unwrap();
        tree
    }

    /// The name of a file that parses.
    fn name(i: usize) -> String {
        format!("m{}/f{i}.rs", i % 7)
    }

    fn sources(&self) -> PathBuf {
        self.dir.path().join("sources")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sources().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.set_modified(name, SystemTime::now() - HOUR);
    }

    fn set_modified(&self, name: &str, time: SystemTime) {
        File::options().append(true).open(self.path(name)).unwrap().set_modified(time).unwrap();
    }

    /// The command for a run over the whole tree.
    fn command(&self) -> Command {
        let mut command = Command::new(&*PROGRAM);
        command.arg(self.sources()).arg("--cache").arg(self.dir.path().join("cache"));
        command
    }

    /// Runs the example to its end.
    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command().args(["--quiet", "--json-summary"]).args(args))
    }
}

/// The output of a run that succeeded.
struct Run {
    report: String,
    summary: Value,
    /// With `--log-acknowledged`: the digests of the results that the run stored.
    acknowledged: Vec<String>,
}

impl Run {
    fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{command:?}: {status}: {stderr}");
        let (acknowledged, rest): (Vec<&str>, Vec<&str>) =
            stderr.lines().partition(|line| line.starts_with("stored "));
        let last = rest.last().expect("the summary is the last line");
        Self {
            report: String::from_utf8(stdout).unwrap(),
            summary: serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}")),
            acknowledged: acknowledged.into_iter().map(digest).collect(),
        }
    }

    fn count(&self, name: &str) -> usize {
        usize::try_from(self.summary[name].as_u64().unwrap()).unwrap()
    }

    /// Compares the numbers of files read, analysed, and found in the cache.
    #[track_caller]
    fn assert_counts(&self, read: usize, computed: usize, from_cache: usize) {
        let counts = (self.count("read"), self.count("computed"), self.count("from_cache"));
        assert_eq!(
            counts,
            (read, computed, from_cache),
            "(read, computed, from_cache); {}",
            self.summary
        );
    }
}

/// The digest in a line that acknowledges a result.
fn digest(line: &str) -> String {
    line.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a_second_run_reads_nothing_and_reports_the_same() {
    let tree = Tree::new();
    let cold = tree.run(&[]);
    cold.assert_counts(FILES, FILES, 0);
    assert_eq!(cold.summary["run"], "cold");
    assert_eq!(
        (cold.count("files"), cold.count("not_kept"), cold.count("unreadable")),
        (FILES, 0, 0)
    );

    for jobs in ["1", "2", "7"] {
        let warm = tree.run(&["--jobs", jobs]);
        warm.assert_counts(0, 0, FILES);
        assert_eq!(warm.summary["run"], "warm");
        assert!(warm.report == cold.report, "the reports differ with {jobs} threads");
    }
}

#[test]
fn a_report_in_a_file_equals_that_on_standard_output() {
    let tree = Tree::new();
    let file = tree.dir.path().join("report");
    let printed = tree.run(&[]).report;
    assert_eq!(tree.run(&["--report", file.to_str().unwrap()]).report, "");
    assert!(fs::read_to_string(file).unwrap() == printed);
}

/// Four processes with two threads each. The first thread that needs a result computes it, the
/// others wait for it.
#[test]
fn concurrent_runs_compute_each_file_once() {
    let tree = Tree::new();
    let runs: Vec<Run> = thread::scope(|scope| {
        let run = || Run::of(tree.command().args(["--quiet", "--json-summary", "--jobs", "2"]));
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let computed: Vec<usize> = runs.iter().map(|run| run.count("computed")).collect();
    println!("of {FILES} files, four concurrent runs computed {computed:?}");
    assert_eq!(computed.iter().sum::<usize>(), FILES, "{computed:?}");
    assert!(runs.iter().all(|run| run.report == runs[0].report), "the reports differ");
    tree.run(&[]).assert_counts(0, 0, FILES);
}

/// Each run is certain to be killed in the middle: it must print a line for each stored result into
/// a pipe that holds few lines, and the test stops reading that pipe.
#[test]
fn after_a_kill_acknowledged_results_are_not_recomputed() {
    for jobs in [1, 2] {
        let tree = Tree::new();
        let mut acknowledged = HashSet::new();
        let rounds = [1, 20, 60];
        for lines in rounds {
            for digest in killed_after(lines, &tree, jobs) {
                assert!(
                    acknowledged.insert(digest),
                    "a result that was acknowledged was computed again"
                );
            }
        }
        let left = FILES - acknowledged.len();
        let last = tree.run(&["--log-acknowledged"]);
        let computed = last.count("computed");
        // At the kill, each thread may have stored one result that it has not yet acknowledged.
        let unacknowledged = jobs * rounds.len();
        assert!(left > unacknowledged, "too few files are left for the check below");
        assert!(
            (left - unacknowledged..=left).contains(&computed),
            "{left} left, {computed} computed"
        );
        assert_eq!(last.acknowledged.len(), computed);
        assert!(last.acknowledged.iter().all(|digest| !acknowledged.contains(digest)));
        assert_eq!(computed + last.count("from_cache"), FILES);

        let warm = tree.run(&[]);
        warm.assert_counts(0, 0, FILES);
        assert!(warm.report == last.report);
    }
}

/// Kills a run with SIGKILL as soon as it has acknowledged `lines` results. Returns the digests of
/// all results that it acknowledged.
fn killed_after(lines: usize, tree: &Tree, jobs: usize) -> Vec<String> {
    let (reader, writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    // A small buffer, so that no more than needed is read before the kill.
    let mut printed = BufReader::with_capacity(128, reader).lines().map(|line| {
        let line = line.unwrap();
        assert!(line.starts_with("stored "), "{line}");
        digest(&line)
    });

    let mut command = tree.command();
    command.args(["--quiet", "--log-acknowledged", "--jobs", &jobs.to_string()]);
    let mut child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    // The command holds the write end of the pipe.
    drop(command);
    let mut acknowledged: Vec<String> = printed.by_ref().take(lines).collect();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the run ended before it was killed");
    acknowledged.extend(printed);
    acknowledged
}

#[test]
fn only_an_edited_file_is_computed() {
    let tree = Tree::new();
    let before = tree.run(&[]);
    tree.write(&Tree::name(3), "pub fn edited(x: bool) -> u8 {\n    if x { 1 } else { 2 }\n}\n");
    let after = tree.run(&[]);
    after.assert_counts(1, 1, FILES - 1);
    assert_eq!(after.summary["run"], "partly warm");
    assert!(after.report != before.report);
    tree.run(&[]).assert_counts(0, 0, FILES);
}

#[test]
fn analysis_versions_do_not_share_or_replace_results() {
    let tree = Tree::new();
    tree.run(&["--analysis-version", "1"]).assert_counts(FILES, FILES, 0);
    tree.run(&["--analysis-version", "2"]).assert_counts(FILES, FILES, 0);
    tree.run(&["--analysis-version", "2"]).assert_counts(0, 0, FILES);
    tree.run(&["--analysis-version", "1"]).assert_counts(0, 0, FILES);
}

#[test]
fn renamed_touched_and_copied_files_are_not_computed() {
    let tree = Tree::new();
    tree.run(&[]);
    fs::rename(tree.path(&Tree::name(5)), tree.path("renamed.rs")).unwrap();
    let renamed = tree.run(&["--top", "1000"]);
    renamed.assert_counts(0, 0, FILES);
    assert!(renamed.report.contains("renamed.rs"), "{}", renamed.report);

    tree.set_modified("renamed.rs", SystemTime::now() - HOUR / 2);
    tree.run(&[]).assert_counts(1, 0, FILES);
    tree.run(&[]).assert_counts(0, 0, FILES);

    tree.write("copied.rs", &fs::read_to_string(tree.path("renamed.rs")).unwrap());
    tree.run(&[]).assert_counts(1, 0, FILES + 1);
}

/// A further change of a file that was modified just now might leave its time stamp as it is. Here,
/// a time stamp in the future stands for one of just now: it is distrusted during the whole test.
#[test]
fn a_file_modified_just_now_is_read_again() {
    let tree = Tree::new();
    let time = SystemTime::now() + HOUR;
    let name = Tree::name(8);
    tree.set_modified(&name, time);
    tree.run(&[]).assert_counts(FILES, FILES, 0);
    tree.run(&[]).assert_counts(1, 0, FILES);

    let text = fs::read_to_string(tree.path(&name)).unwrap();
    tree.write(&name, &text.replace('+', "*"));
    tree.set_modified(&name, time);
    tree.run(&[]).assert_counts(1, 1, FILES - 1);
}

#[test]
fn copies_are_computed_once() {
    let tree = Tree::empty();
    for i in 0..50 {
        tree.write(&format!("copy{i}.rs"), "pub fn same() {}\n");
    }
    let cold = tree.run(&["--jobs", "4"]);
    cold.assert_counts(50, 1, 0);
    assert_eq!(cold.count("copies"), 49);
    assert_eq!(cold.summary["run"], "cold");
    tree.run(&[]).assert_counts(0, 0, 50);
}

const BRANCHES: &str = "
struct Thing;
impl Thing {
    pub fn decide(&self, a: bool, b: Option<u8>) -> Result<u8, ()> {
        let Some(c) = b else { return Err(()) };    // 1
        if a && c > 2 {                             // 2, 3
            for _ in 0..3 {                         // 4
                assert!(a || c > 1);                // 5
            }
        }
        fn not_mine(x: u8) { if x > 0 {} }
        match c {
            0 if a => Ok(1),                        // a guard: 6
            1 => Ok(helper(c)?),                    // an arm and a question mark: 7, 8
            _ => Err(()),                           // an arm: 9
        }
    }
}
";

const ORIGINAL: &str = "
pub fn sum_of_even(numbers: &[u64], most: u64) -> u64 {
    let mut sum = 0;
    for number in numbers {
        if number % 2 == 0 && *number < most {
            sum += number.checked_mul(3).unwrap_or(most);
        }
    }
    // A comment that the copy does not have.
    if sum > most { most } else { sum.saturating_sub(1) }
}
";

/// The same function with other names, other numbers, and no comment.
const COPY: &str = "
pub fn total_of_fours(xs: &[u64], limit: u64) -> u64 {
    let mut total = 1;
    for x in xs {
        if x % 4 == 0 && *x < limit {
            total += x.checked_mul(7).unwrap_or(limit);
        }
    }
    if total > limit { limit } else { total.saturating_sub(2) }
}
";

/// A different function of the same length.
const OTHER: &str = "
pub fn longest(words: &[String], prefix: &str) -> Option<usize> {
    let fitting = words.iter().filter(|word| word.starts_with(prefix) && !word.is_empty());
    match fitting.map(|word| word.chars().count()).max() {
        Some(count) if count < prefix.len() * 2 => None,
        Some(count) => Some(count - prefix.chars().count()),
        None => None,
    }
}
";

#[test]
fn the_report_counts_decisions_and_finds_renamed_copies() {
    let tree = Tree::empty();
    for (name, text) in [
        ("branches.rs", BRANCHES),
        ("original.rs", ORIGINAL),
        ("copy.rs", COPY),
        ("other.rs", OTHER),
    ] {
        tree.write(name, text);
    }
    let report = tree.run(&[]).report;
    for line in [
        "        10        2     14  Thing::decide  branches.rs:4\n",
        "         2        1      1  Thing::decide::not_mine  branches.rs:11\n",
        "Groups: 1. Functions in them: 2. Lines beyond one function for each group: 9.\n",
        "1. 2 functions, 9 redundant lines\n",
        "    100 %     9 lines  total_of_fours  copy.rs:2\n",
        "    100 %    10 lines  sum_of_even  original.rs:2\n",
    ] {
        assert!(report.contains(line), "{line}{report}");
    }
}

#[test]
fn files_that_do_not_parse_are_reported_and_remembered() {
    let tree = Tree::empty();
    tree.write("good.rs", "fn good() {}\n");
    tree.write("unclosed.rs", "fn bad() {\n");
    tree.write("wrong.rs", "\nfn 1() {}\n");
    tree.write(
        "deep.rs",
        &format!("fn deep() {{ {}1{} }}\n", "(".repeat(100_000), ")".repeat(100_000)),
    );
    tree.write("unary.rs", &format!("fn unary() -> bool {{ {}true }}\n", "!".repeat(300_000)));
    fs::write(tree.path("latin1.rs"), b"// \xe9t\xe9\n").unwrap();
    tree.set_modified("latin1.rs", SystemTime::now() - HOUR);

    let cold = tree.run(&[]);
    cold.assert_counts(6, 6, 0);
    assert!(cold.report.contains("6 files: 0 generated, 5 do not parse"), "{}", cold.report);
    for place in [
        "deep.rs:1:268: nested too deeply",
        "latin1.rs:1:1: not UTF-8",
        "unclosed.rs:",
        "wrong.rs:2:4: expected ident",
    ] {
        assert!(cold.report.contains(place), "{place}: {}", cold.report);
    }
    let warm = tree.run(&[]);
    warm.assert_counts(0, 0, 6);
    assert!(warm.report == cold.report);
}

/// A message and exit status 1, and no panic.
#[test]
fn an_unusable_path_is_an_error_message() {
    let tree = Tree::empty();
    let missing = tree.dir.path().join("missing");
    let file = tree.dir.path().join("file");
    fs::write(&file, "not a cache").unwrap();
    let cache = tree.dir.path().join("cache");

    let fails = |sources: &Path, cache: &Path, says: &str| {
        let output =
            Command::new(&*PROGRAM).arg(sources).arg("--cache").arg(cache).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.starts_with("keepwarm-analyze: ") && printed.contains(says), "{printed}");
        assert!(output.stdout.is_empty());
    };
    fails(&missing, &cache, "is not a directory");
    fails(&tree.sources(), &file, "cannot use the cache");
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a cache");
}
