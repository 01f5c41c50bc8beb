//! The house rules, read off the source: a file imports only from floors below its own or from its
//! own folder, no files import each other in a circle, `unsafe` stays in one room, files stay
//! small, and no lint is silenced without a reason.

// Always so for a file in `tests`; said for clippy, which then takes the helpers for tests as well.
#![cfg(test)]

mod sources;

use std::collections::BTreeMap;

use sources::{Source, Sources};

/// The floors of the library, from the ground up. A file belongs to the room with the longest path
/// that leads to it, and uses its own room and the floors below.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["time", "hash", "limits"],
    &["timeout", "options", "entry", "key"],
    &["sys"],
    &["engine::format"],
    &["engine::index"],
    &["engine::bell", "engine::counters", "engine::hints", "engine::hot_tier"],
    &["engine::shared", "engine::eviction"],
    &["engine::log", "engine::blob"],
    &["engine"],
    &["engine::ops"],
    &["engine::lifecycle"],
    &["engine::fuzz"],
    &["backend"],
    &["codec"],
    &["cache"],
    &["testing", "cli", "fuzzing"],
];

/// Most lines in a file, not counting tests.
const MOST_LINES: usize = 500;

/// The floor and the room of a file. `None` for the roots `lib.rs` and `main.rs`.
fn room_of(file: &Source) -> Option<(usize, &'static str)> {
    if file.module.is_empty() {
        return None;
    }
    let module = file.module.join("::");
    let is_in = |room: &str| {
        let rest = module.strip_prefix(room);
        // The room of the engine itself is one file: what is beside it needs a floor of its own.
        rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with("::") && room != "engine"))
    };
    let rooms = FLOORS.iter().enumerate();
    let rooms = rooms.flat_map(|(floor, rooms)| rooms.iter().map(move |room| (floor, *room)));
    let room = rooms.filter(|(_, room)| is_in(room)).max_by_key(|(_, room)| room.len());
    Some(room.unwrap_or_else(|| panic!("{} is on no floor; give it one in FLOORS", file.name())))
}

/// A circle in a graph: nodes each of which uses the next, the last the first. Found by walking
/// down from each node that was not visited, depth first: an edge back to a node on the way down
/// closes a circle.
fn circle<N: Copy + Ord>(uses: &BTreeMap<N, Vec<N>>) -> Option<Vec<N>> {
    fn walk<N: Copy + Ord>(
        node: N,
        uses: &BTreeMap<N, Vec<N>>,
        way: &mut Vec<N>,
        visited: &mut Vec<N>,
    ) -> Option<Vec<N>> {
        if let Some(at) = way.iter().position(|n| *n == node) {
            return Some(way[at..].to_vec());
        }
        if visited.contains(&node) {
            return None;
        }
        visited.push(node);
        way.push(node);
        let found = uses.get(&node).into_iter().flatten();
        let found = found.copied().find_map(|next| walk(next, uses, way, visited));
        way.pop();
        found
    }
    let mut visited = Vec::new();
    uses.keys().find_map(|node| walk(*node, uses, &mut Vec::new(), &mut visited))
}

#[test]
fn no_file_imports_from_a_floor_above() {
    let sources = Sources::read();
    let mut wrong = Vec::new();
    for (number, file) in sources.files.iter().enumerate() {
        let Some((floor, room)) = room_of(file) else { continue };
        for (used, line) in sources.uses(number) {
            let used = &sources.files[used];
            // Macros and types of `lib.rs` are on no floor.
            let Some((their_floor, their_room)) = room_of(used) else { continue };
            if their_room != room && their_floor >= floor {
                wrong.push(format!("{}:{line} uses {}", file.name(), used.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports from above:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = Sources::read();
    let uses: BTreeMap<usize, Vec<usize>> = (0..sources.files.len())
        .filter(|number| room_of(&sources.files[*number]).is_some())
        .map(|number| (number, sources.uses(number).into_keys().collect()))
        .collect();
    let edges: usize = uses.values().map(Vec::len).sum();
    assert!(edges > 300, "the imports were found: {edges}");
    // All at once: of each circle that is found, one edge is left out for the next search.
    let (mut uses, mut circles) = (uses, Vec::new());
    while let Some(circle) = circle(&uses) {
        let last = circle.len() - 1;
        uses.entry(circle[last]).or_default().retain(|used| *used != circle[0]);
        let names: Vec<_> = circle.iter().map(|number| sources.files[*number].name()).collect();
        circles.push(format!("{} -> {}", names.join(" -> "), names[0]));
    }
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

#[test]
fn circles_are_found() {
    let uses = |edges: &[(u8, u8)]| {
        let mut uses: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        edges.iter().for_each(|(from, to)| uses.entry(*from).or_default().push(*to));
        circle(&uses)
    };
    assert_eq!(uses(&[(1, 2), (1, 3), (2, 4), (3, 4)]), None);
    assert_eq!(uses(&[(1, 2), (2, 3), (3, 4), (4, 2)]), Some(vec![2, 3, 4]));
}

#[test]
fn the_engine_reaches_files_through_the_seam_alone() {
    // `use std::fs`, `std::fs::remove_file(..)`, and the extension traits of files.
    const FORBIDDEN: &[&str] = &["std::fs", "fs", "std::os::unix::fs", "std::os::fd", "tempfile"];
    let sources = Sources::read();
    let engine =
        sources.files.iter().filter(|file| file.module.first().is_some_and(|m| m == "engine"));
    let uses = engine.flat_map(|file| {
        file.uses_of(FORBIDDEN).into_iter().map(|line| format!("{}:{line}", file.name()))
    });
    let uses: Vec<_> = uses.collect();
    assert!(uses.is_empty(), "use crate::sys::storage in place of std::fs:\n{}", uses.join("\n"));
    let seam = sources.files.iter().find(|file| file.name() == "src/sys/storage/system.rs");
    assert!(!seam.unwrap().uses_of(FORBIDDEN).is_empty(), "such a use is found where there is one");
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    for file in Sources::read().files.iter().filter(|f| room_of(f).is_none_or(|r| r.1 != "sys")) {
        for (number, line) in bare_lines(file) {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(!words.any(|word| word == "unsafe"), "{}:{number}: unsafe", file.name());
        }
    }
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    for file in &Sources::read().files {
        for (number, line) in bare_lines(file) {
            let bare = line.replace(' ', "");
            let silenced = bare.contains("#[allow(") || bare.contains("#![allow(");
            assert!(!silenced, "{}:{number}: use #[expect(.., reason)]", file.name());
        }
    }
}

#[test]
fn no_file_is_larger_than_a_room() {
    for file in &Sources::read().files {
        let lines = file.lines.len();
        assert!(lines <= MOST_LINES, "{} has {lines} lines: two rooms", file.name());
    }
}

#[test]
fn the_root_holds_no_code_of_its_own() {
    let sources = Sources::read();
    let root = sources.files.iter().find(|file| file.name() == "src/lib.rs").unwrap();
    let begins =
        ["mod ", "pub mod ", "pub use ", "use ", "#", "compile_error!", "const _", "}", "struct "];
    let mut depth = 0usize;
    for (number, line) in bare_lines(root) {
        let text = line.trim();
        let allowed = text.is_empty() || depth > 0 || begins.iter().any(|b| text.starts_with(b));
        assert!(allowed, "src/lib.rs:{number}: {text}");
        depth = depth + text.matches('{').count() - text.matches('}').count();
    }
}

/// The lines of a file with comments and strings blanked, so that words in them are not taken for
/// code.
fn bare_lines(file: &Source) -> impl Iterator<Item = (usize, String)> {
    file.lines.iter().map(|(number, line)| (*number, without_comments_and_strings(line)))
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
