//! The report. It depends only on the findings, not on when they were computed, nor by how many
//! threads.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::analysis::{Analysis, Outcome};
use crate::duplicates::{self, Group, Located};
use crate::fingerprint::LEAST_TOKENS;
use crate::sources::{Input, Source};
use crate::work::Finding;

/// The ranges of the bars in the distribution of complexity.
const BARS: [(u32, u32); 6] = [(1, 1), (2, 5), (6, 10), (11, 20), (21, 50), (51, u32::MAX)];
/// The number of members listed for a group of near-duplicates.
const MOST_MEMBERS: usize = 8;

/// A function, its package, and whether the lists leave it out.
struct Found<'a> {
    located: Located<'a>,
    package: usize,
    /// Not in the lists: for tests, or generated.
    unlisted: bool,
}

impl Found<'_> {
    fn complexity(&self) -> u32 {
        self.located.function.complexity
    }
}

/// The whole report. Lists have at most `top` entries.
pub(crate) fn text(
    input: &Input,
    findings: &[Finding],
    analysis_version: i64,
    top: usize,
) -> String {
    let mut report = Report { text: String::new(), input, findings, top };
    let functions = report.functions();
    report.line(format_args!("Rust sources of {}", input.description));
    report.line(format_args!("Version {analysis_version} of the analysis"));
    report.totals(&functions);
    report.distribution(&functions);
    report.most_complex(&functions);
    report.near_duplicates(&functions);
    report.packages(&functions);
    report.without_result();
    report.text
}

struct Report<'a> {
    text: String,
    input: &'a Input,
    findings: &'a [Finding],
    top: usize,
}

impl<'a> Report<'a> {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    fn heading(&mut self, heading: &str) {
        self.line(format_args!("\n{heading}\n{}", "-".repeat(heading.chars().count())));
    }

    /// Says how many entries of a list were left out.
    fn more(&mut self, all: usize) {
        if all > self.top {
            let more = all - self.top;
            self.line(format_args!("… and {more} more"));
        }
    }

    fn files(&self) -> impl Iterator<Item = (&'a Source, &'a Finding)> + use<'a> {
        self.input.sources.iter().zip(self.findings)
    }

    fn analyses(&self) -> impl Iterator<Item = (&'a Source, &'a Analysis)> + use<'a> {
        self.files().filter_map(|(source, finding)| match finding {
            Finding::Analysis(analysis) => Some((source, analysis)),
            Finding::Unreadable(_) => None,
        })
    }

    fn functions(&self) -> Vec<Found<'a>> {
        let mut found = Vec::new();
        for (source, analysis) in self.analyses() {
            if let Outcome::Parsed(functions) = &analysis.outcome {
                let unlisted = analysis.generated || of_tests(&source.name);
                found.extend(functions.iter().map(|function| Found {
                    located: Located { file: &source.name, function },
                    package: source.package,
                    unlisted: unlisted || function.test,
                }));
            }
        }
        found
    }

    fn totals(&mut self, functions: &[Found<'_>]) {
        let lines: u64 = self.analyses().map(|(_, analysis)| u64::from(analysis.lines)).sum();
        let rejected = self
            .analyses()
            .filter(|(_, analysis)| !matches!(analysis.outcome, Outcome::Parsed(_)))
            .count();
        let unreadable =
            self.files().filter(|(_, finding)| matches!(finding, Finding::Unreadable(_))).count();
        let unlisted = functions.iter().filter(|found| found.unlisted).count();
        let generated = self.analyses().filter(|(_, analysis)| analysis.generated).count();
        let mut complexity: Vec<u32> = functions.iter().map(Found::complexity).collect();
        complexity.sort_unstable();
        let total: u64 = complexity.iter().copied().map(u64::from).sum();
        let at = |percent: usize| {
            complexity
                .get((complexity.len() * percent / 100).min(complexity.len().saturating_sub(1)))
        };
        let at = |percent: usize| at(percent).copied().unwrap_or(0);

        self.heading("Totals");
        let input = self.input;
        self.line(format_args!(
            "{:>9} files: {generated} generated, {rejected} do not parse, \
             {unreadable} cannot be read",
            input.sources.len()
        ));
        self.line(format_args!("{lines:>9} lines"));
        self.line(format_args!(
            "{:>9} functions: {unlisted} for tests or generated",
            functions.len()
        ));
        self.line(format_args!(
            "{total:>9} cyclomatic complexity: median {}, 90 % up to {}, 99 % up to {}, at most {}",
            at(50),
            at(90),
            at(99),
            complexity.last().unwrap_or(&0),
        ));
        self.line(format_args!(
            "\nComplexity counts 1 for a function and 1 more for each decision: if, while, for,\n\
             each arm of a match beyond the first, a guard, let-else, &&, || and ?. Functions\n\
             for tests and generated ones count here, but are in no list below."
        ));
    }

    fn distribution(&mut self, functions: &[Found<'_>]) {
        self.heading("How complex functions are");
        let most = functions.len().max(1);
        for (from, to) in BARS {
            let count =
                functions.iter().filter(|found| (from..=to).contains(&found.complexity())).count();
            let range = match to {
                u32::MAX => format!("{from} and more"),
                _ if from == to => from.to_string(),
                _ => format!("{from} to {to}"),
            };
            // Rounded up, so that a bar is empty only if its count is 0.
            let bar = "#".repeat((count * 50).div_ceil(most));
            self.line(format_args!("{}", format!("{range:>11} {count:>8} {bar}").trim_end()));
        }
    }

    fn most_complex(&mut self, functions: &[Found<'_>]) {
        let mut listed: Vec<&Found<'_>> =
            functions.iter().filter(|found| !found.unlisted).collect();
        // A stable sort: among equals, the order of files and lines remains.
        listed.sort_by_key(|found| std::cmp::Reverse(found.complexity()));
        self.heading("The most complex functions");
        self.line(format_args!("complexity  nesting  lines  function"));
        for found in listed.iter().take(self.top) {
            let function = found.located.function;
            self.line(format_args!(
                "{:>10} {:>8} {:>6}  {}  {}:{}",
                function.complexity,
                function.nesting,
                function.lines(),
                function.name,
                found.located.file,
                function.first_line,
            ));
        }
        self.more(listed.len());
    }

    fn near_duplicates(&mut self, functions: &[Found<'a>]) {
        // The last version of each package, as packages are sorted by version.
        let last: HashMap<&str, usize> = self
            .input
            .packages
            .iter()
            .enumerate()
            .map(|(i, package)| (package.name.as_str(), i))
            .collect();
        let is_last =
            |package: usize| last.get(self.input.packages[package].name.as_str()) == Some(&package);
        let compared = functions.iter().filter(|found| !found.unlisted && is_last(found.package));
        let groups = duplicates::groups(compared.map(|found| found.located));
        let redundant: u32 = groups.iter().map(Group::redundant_lines).sum();

        self.heading("Near-duplicate functions");
        self.line(format_args!(
            "Groups: {}. Functions in them: {}. \
             Lines beyond one function for each group: {redundant}.",
            groups.len(),
            duplicates::members(&groups),
        ));
        self.line(format_args!(
            "Similar by {:.0} % or more to the first of the group, without names of variables\n\
             and values of literals; only functions of {LEAST_TOKENS} tokens or more, and only\n\
             the last version of each package.",
            duplicates::THRESHOLD * 100.0,
        ));
        for (i, group) in groups.iter().take(self.top).enumerate() {
            self.line(format_args!(
                "\n{}. {} functions, {} redundant lines",
                i + 1,
                group.members.len(),
                group.redundant_lines()
            ));
            for (located, similarity) in group.members.iter().take(MOST_MEMBERS) {
                self.line(format_args!(
                    "   {:>4} %  {:>4} lines  {}  {}:{}",
                    // Rounded down, so that only equal functions have 100 %.
                    (similarity * 100.0).floor(),
                    located.function.lines(),
                    located.function.name,
                    located.file,
                    located.function.first_line,
                ));
            }
            if let Some(more @ 1..) = group.members.len().checked_sub(MOST_MEMBERS) {
                self.line(format_args!("   … and {more} more"));
            }
        }
        if groups.len() > self.top {
            self.text.push('\n');
        }
        self.more(groups.len());
    }

    fn packages(&mut self, functions: &[Found<'_>]) {
        #[derive(Default, Clone)]
        struct Row {
            files: usize,
            lines: u64,
            functions: u64,
            complexity: u64,
            most: u32,
        }
        let mut rows = vec![Row::default(); self.input.packages.len()];
        for (source, analysis) in self.analyses() {
            rows[source.package].files += 1;
            rows[source.package].lines += u64::from(analysis.lines);
        }
        for found in functions.iter().filter(|found| !found.unlisted) {
            let row = &mut rows[found.package];
            row.functions += 1;
            row.complexity += u64::from(found.complexity());
            row.most = row.most.max(found.complexity());
        }
        let mut rows: Vec<_> =
            self.input.packages.iter().zip(rows).filter(|(_, row)| row.files > 0).collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.complexity));

        self.heading("Packages, by complexity");
        self.line(format_args!(
            "  files    lines  functions  complexity  a function    most  package"
        ));
        for (package, row) in rows.iter().take(self.top) {
            let mean = row.complexity as f64 / row.functions.max(1) as f64;
            self.line(format_args!(
                "{:>7} {:>8} {:>10} {:>11} {mean:>11.1} {:>7}  {}",
                row.files, row.lines, row.functions, row.complexity, row.most, package.label,
            ));
        }
        self.more(rows.len());
    }

    /// The files that could not be read or do not parse.
    fn without_result(&mut self) {
        let mut lines = Vec::new();
        for (source, finding) in self.files() {
            let name = &source.name;
            match finding {
                Finding::Unreadable(why) => lines.push(format!("{name}: cannot be read: {why}")),
                Finding::Analysis(Analysis {
                    outcome: Outcome::Rejected { line, column, message },
                    ..
                }) => {
                    lines.push(format!("{name}:{line}:{column}: {message}"));
                }
                Finding::Analysis(_) => {}
            }
        }
        if lines.is_empty() {
            return;
        }
        self.heading("Files without a result");
        for line in lines.iter().take(self.top) {
            self.line(format_args!("{line}"));
        }
        self.more(lines.len());
    }
}

/// Whether the path of a file says that it is for tests only. A file compiled under `mod tests;`
/// has no attribute of its own.
fn of_tests(name: &str) -> bool {
    name.split('/')
        .any(|part| part.ends_with("tests") || matches!(part, "benches" | "tests.rs" | "test.rs"))
}
