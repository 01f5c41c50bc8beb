//! The documents, compared with the source: invariants are cited by numbers that exist, the map of
//! the source lists every file, named files exist, pages and lines stay short.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a page in `docs/design`.
const MOST_LINES: usize = 200;
/// Most columns of a line of prose.
const MOST_COLUMNS: usize = 100;

/// The numbers of invariants: 7 of `I7`.
type Numbers = BTreeSet<u32>;

/// The root of the package. Read when the test runs, as the program may be moved.
fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files below `folder` with this extension, by their paths from the root.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let is_built = |name: &str| name == "target" || name == ".git";
    let mut found: Vec<String> = walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .filter_entry(|entry| !entry.file_name().to_str().is_some_and(is_built))
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|e| e == extension))
        .map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

fn pages() -> Vec<String> {
    files("docs/design", "md")
}

/// The number that `text` begins with, as in `I7`.
fn number(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('I')?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// What a page defines: `**I7. ...`.
fn defined() -> BTreeMap<u32, String> {
    let mut defined = BTreeMap::new();
    for page in pages() {
        let text = read(&page);
        for number in text.lines().filter_map(|line| number(line.strip_prefix("**")?)) {
            let twice = defined.insert(number, page.clone());
            assert_eq!(twice, None, "I{number} is defined twice, in {page} too");
        }
    }
    assert!(defined.len() > 20, "the invariants were found");
    defined
}

/// What a file cites: the numbers behind the word on the same line, as in `(invariant I7)` and
/// `(invariants I7, I8)`.
fn cited(path: &str) -> Numbers {
    let text = read(path);
    let mut cited = Numbers::new();
    for rest in text.lines().flat_map(|line| line.split("nvariant").skip(1)) {
        let words = rest.trim_start_matches('s').split([' ', ',']);
        let words = words.filter(|word| !word.is_empty() && *word != "and");
        cited.extend(words.map_while(number));
    }
    cited
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn sources_and_tests() -> Vec<String> {
    let this = "tests/documents.rs";
    ["src", "tests"].iter().flat_map(|folder| files(folder, "rs")).filter(|f| f != this).collect()
}

/// The rows of the table in `overview.md`: an invariant, its page, and the files that show it.
fn table() -> Vec<(u32, String, Vec<String>)> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, _, page, shown_by, _] = cells[..] else { return None };
        Some((number(name)?, page.to_owned(), in_backticks(shown_by)))
    };
    read("docs/design/overview.md").lines().filter_map(row).collect()
}

fn in_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Fails with all that is wrong, not with the first of it.
fn none(wrong: &[String], what: &str) {
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

#[test]
fn every_cited_invariant_exists() {
    let (defined, mut wrong) = (defined(), Vec::new());
    let documents = pages().into_iter().chain(["ARCHITECTURE.md".to_owned()]);
    // It explains how they are cited.
    let documents = documents.filter(|page| !page.ends_with("overview.md"));
    for file in sources_and_tests().into_iter().chain(documents) {
        for number in cited(&file).into_iter().filter(|number| !defined.contains_key(number)) {
            wrong.push(format!("{file}: I{number}"));
        }
    }
    none(&wrong, "cited, and in no page of docs/design");
}

#[test]
fn the_code_cites_every_invariant() {
    let mut by_code = Numbers::new();
    for file in sources_and_tests().iter().filter(|file| !is_test(file)) {
        by_code.extend(cited(file));
    }
    let defined = defined();
    let missing = defined.iter().filter(|(number, _)| !by_code.contains(number));
    let wrong: Vec<_> = missing.map(|(number, page)| format!("I{number} of {page}")).collect();
    none(&wrong, "cited nowhere in src");
}

#[test]
fn every_invariant_is_in_the_table_with_tests_that_cite_it() {
    let (mut missing, mut wrong) = (defined(), Vec::new());
    for (number, page, shown_by) in table() {
        let page = format!("docs/design/{page}.md");
        if missing.remove(&number).as_ref() != Some(&page) {
            wrong.push(format!("I{number}: defined in another page than {page}, or listed twice"));
        }
        if shown_by.is_empty() {
            wrong.push(format!("I{number}: no test"));
        }
        for file in shown_by {
            if !root().join(&file).is_file() {
                wrong.push(format!("I{number}: {file} does not exist"));
            } else if !cited(&file).contains(&number) {
                wrong.push(format!("I{number}: {file} does not cite it"));
            }
        }
    }
    wrong.extend(missing.keys().map(|number| format!("I{number}: not in the table")));
    none(&wrong, "the table of docs/design/overview.md");
}

#[test]
fn the_map_lists_every_source_file_once() {
    // A heading names a folder, and an item of the list below it a file in it.
    let (mut folder, mut listed, mut wrong) = (String::new(), BTreeSet::new(), Vec::new());
    for line in read("ARCHITECTURE.md").lines() {
        let first = in_backticks(line).into_iter().next();
        if line.starts_with('#') {
            folder = first.filter(|name| name.starts_with("src/")).unwrap_or_default();
        } else if let Some(name) = first.filter(|name| name.ends_with(".rs"))
            && line.starts_with("- `")
            && !folder.is_empty()
        {
            let path = format!("{folder}{name}");
            if !root().join(&path).is_file() {
                wrong.push(format!("{path} does not exist"));
            }
            if !listed.insert(path.clone()) {
                wrong.push(format!("{path} is listed twice"));
            }
        }
    }
    let missing = files("src", "rs").into_iter().filter(|file| !listed.contains(file));
    wrong.extend(missing.map(|file| format!("{file} is not listed")));
    none(&wrong, "ARCHITECTURE.md");
}

#[test]
fn files_that_the_design_names_exist() {
    let tops = ["src/", "tests/", "benches/", "scripts/", "docs/"];
    let is_path = |name: &String| tops.iter().any(|top| name.starts_with(top));
    let mut wrong = Vec::new();
    for page in pages().into_iter().chain(["ARCHITECTURE.md".to_owned()]) {
        for path in read(&page).lines().flat_map(in_backticks).filter(is_path) {
            if !path.contains('*') && !root().join(&path).exists() {
                wrong.push(format!("{page}: {path}"));
            }
        }
    }
    none(&wrong, "named, and not there");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in files("", "md") {
        let folder = root().join(Path::new(&page).parent().unwrap());
        for target in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            let is_file = !path.is_empty() && !target.contains("://") && !target.contains('`');
            if is_file && !folder.join(path).exists() {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    none(&wrong, "links to what is not there");
}

#[test]
fn pages_of_the_design_are_short() {
    let lengths = pages().into_iter().map(|page| (read(&page).lines().count(), page));
    let long = lengths.filter(|(lines, _)| *lines > MOST_LINES);
    none(&long.map(|(lines, page)| format!("{page}: {lines}")).collect::<Vec<_>>(), "too long");
}

#[test]
fn lines_of_prose_are_short() {
    let mut long = Vec::new();
    for page in files("", "md") {
        let mut in_code = false;
        for (number, line) in read(&page).lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            let is_prose = !in_code && !line.starts_with('|') && !line.starts_with("    ");
            if is_prose && without_targets(line).chars().count() > MOST_COLUMNS {
                long.push(format!("{page}:{}", number + 1));
            }
        }
    }
    none(&long, "more than 100 columns");
}

/// A line without what links in it lead to, which cannot be broken.
fn without_targets(line: &str) -> String {
    let mut bare = String::new();
    for (i, part) in line.split("](").enumerate() {
        let after = if i == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) };
        bare.push_str(after);
    }
    let is_short = |word: &&str| !word.contains("://");
    bare.split(' ').filter(is_short).collect::<Vec<_>>().join(" ")
}
