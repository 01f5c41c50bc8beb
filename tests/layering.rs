//! The house rules, read off the source: a file imports only from floors below its own or from its own folder,
//! `unsafe` stays in one room, files stay small, and no lint is silenced without a reason.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the library, from the ground up. Modules on the same floor may use each other, except those of
/// the ground, where `error` uses nothing of ours.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["time", "hash", "limits"],
    &["timeout", "options", "entry", "key"],
    &["sys"],
    &["engine"],
    &["backend"],
    &["codec", "cache"],
    &["testing", "cli", "fuzzing"],
];

/// Most lines in a file, not counting tests.
const MOST_LINES: usize = 500;

struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// Up to the tests in the file; none of a file that is all tests.
    code: Vec<String>,
}

impl Source {
    /// The top-level module that the file belongs to.
    fn module(&self) -> String {
        let first = self.path.iter().next().unwrap().to_str().unwrap();
        first.strip_suffix(".rs").unwrap_or(first).to_owned()
    }

    /// `None` for the roots `lib.rs` and `main.rs`, which hold the house together.
    fn floor(&self) -> Option<usize> {
        let module = self.module();
        if module == "lib" || module == "main" {
            return None;
        }
        let floor = floor_of(&module);
        Some(floor.unwrap_or_else(|| {
            panic!("{} is on no floor; give it one in FLOORS", self.path.display())
        }))
    }

    /// The code with comments and strings blanked, so that words in them are not taken for code.
    fn bare_lines(&self) -> impl Iterator<Item = (usize, String)> {
        self.code.iter().enumerate().map(|(i, line)| (i + 1, without_comments_and_strings(line)))
    }
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources: Vec<Source> = walkdir::WalkDir::new(&root)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let is_tests = path.file_name().is_some_and(|name| name == "tests.rs");
            let code = if is_tests { Vec::new() } else { code_of(&text) };
            Source { path: path.strip_prefix(&root).unwrap().to_owned(), code }
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 40, "the sources were found");
    sources
}

/// The lines up to the tests, which come last in a file.
fn code_of(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let tests =
        lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    lines[..tests.unwrap_or(lines.len())].iter().map(|line| (*line).to_owned()).collect()
}

fn without_comments_and_strings(line: &str) -> String {
    let (mut bare, mut in_string, mut chars) = (String::new(), false, line.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => drop(chars.next()),
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            c => bare.push(c),
        }
    }
    bare
}

/// The top-level modules that code mentions as `crate::MODULE`, with the line.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in source.bare_lines() {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            // `use crate::{a, b}` is written out by nobody here; it would hide from this test.
            assert!(
                !rest.starts_with('{'),
                "{}:{number}: import from one module at a time",
                source.path.display()
            );
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((number, name));
        }
    }
    found
}

#[test]
fn no_file_imports_from_a_floor_above() {
    let mut wrong = Vec::new();
    for source in sources() {
        let (Some(floor), module) = (source.floor(), source.module()) else { continue };
        for (number, import) in imports(&source) {
            // Macros and types that `lib.rs` makes available at the root are not modules.
            let Some(theirs) = floor_of(&import) else { continue };
            let from_own_folder = import == module;
            if !from_own_folder && (theirs > floor || floor == 0) {
                wrong.push(format!(
                    "src/{}:{number}: {module} uses {import}",
                    source.path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "imports from above:\n{}", wrong.join("\n"));
}

#[test]
fn floors_have_no_circles() {
    // Modules of one floor may use each other, but not in turn.
    let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources().iter().filter(|s| s.floor().is_some()) {
        let module = source.module();
        let others = imports(source).into_iter().map(|(_, import)| import);
        let others = others.filter(|import| *import != module && floor_of(import).is_some());
        uses.entry(module.clone()).or_default().extend(others);
    }
    fn reaches(
        uses: &BTreeMap<String, Vec<String>>,
        from: &str,
        to: &str,
        seen: &mut Vec<String>,
    ) -> bool {
        uses.get(from).into_iter().flatten().any(|next| {
            if next == to {
                return true;
            }
            if seen.contains(next) {
                return false;
            }
            seen.push(next.clone());
            reaches(uses, next, to, seen)
        })
    }
    for module in uses.keys() {
        assert!(
            !reaches(&uses, module, module, &mut Vec::new()),
            "{module} uses itself by way of others"
        );
    }
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    for source in sources().iter().filter(|source| source.module() != "sys") {
        for (number, line) in source.bare_lines() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(
                !words.any(|word| word == "unsafe"),
                "src/{}:{number}: unsafe",
                source.path.display()
            );
        }
    }
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    for source in sources() {
        for (number, line) in source.bare_lines() {
            let bare = line.replace(' ', "");
            let silenced = bare.contains("#[allow(") || bare.contains("#![allow(");
            assert!(!silenced, "src/{}:{number}: use #[expect(.., reason)]", source.path.display());
        }
    }
}

#[test]
fn no_file_is_larger_than_a_room() {
    for Source { path, code } in sources() {
        let lines = code.len();
        assert!(lines <= MOST_LINES, "src/{} has {lines} lines: two rooms", path.display());
    }
}

#[test]
fn the_root_holds_no_code_of_its_own() {
    let root = sources().into_iter().find(|source| source.path == Path::new("lib.rs")).unwrap();
    let mut depth = 0usize;
    for (number, line) in root.bare_lines() {
        let text = line.trim();
        let begins = [
            "mod ",
            "pub mod ",
            "pub use ",
            "use ",
            "#",
            "compile_error!",
            "const _",
            "}",
            "struct ",
        ];
        let allowed = text.is_empty() || depth > 0 || begins.iter().any(|b| text.starts_with(b));
        assert!(allowed, "src/lib.rs:{number}: {text}");
        depth = depth + text.matches('{').count() - text.matches('}').count();
    }
}
