//! The patterns, and the case that each is tested with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::Verdict;
use crate::worker::{Worker, builder, expected};

/// A busy machine may need far longer than the second that is promised; the time is printed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The files that processes hold open.
const FILES: &[&str] =
    &["locks", "index", "hints", "state", "snapshot.a", "snapshot.b", "stats", SEGMENT];
/// Stands for the newest segment.
const SEGMENT: &str = "a segment";

/// What must be true afterwards.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// The processes report an error; nothing is lost.
    Noticed,
    /// The same, and entries whose records are gone are misses.
    MayLose,
    /// The damage is repaired, without an error.
    Mended,
}

/// Changes a directory, of which there is an older copy.
type Apply = dyn Fn(&Path, &Path);

/// A change of a directory: its name, what does it, and what is expected.
struct Pattern {
    name: String,
    apply: Box<Apply>,
    expected: Expected,
}

fn file(dir: &Path, name: &str) -> PathBuf {
    if name != SEGMENT {
        return dir.join(name);
    }
    let segments = fs::read_dir(dir.join("segments")).unwrap();
    segments.map(|entry| entry.unwrap().path()).max().unwrap()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// Runs a case. The error says what was found.
fn run(pattern: &Pattern, how: &str, patience: Duration) -> Result<(), String> {
    let home = tempfile::tempdir().unwrap();
    let (dir, older) = (home.path().join("cache"), home.path().join("older"));
    let mut old = ["a", "b"].map(|id| Worker::start(&dir, id, how));
    for worker in &mut old {
        worker.progress(PATIENCE)?;
    }
    copy(&dir, &older);
    for worker in &mut old {
        worker.progress(PATIENCE)?;
    }
    (pattern.apply)(&dir, &older);
    let mut newcomer = Worker::start(&dir, "c", how);
    for worker in &mut old {
        if pattern.expected != Expected::Mended {
            let noticed = |worker: &Worker| worker.errors.contains_key(&expected());
            let took = worker.wait(patience, "no error is reported", noticed)?;
            println!("{}: noticed after {took:?}", pattern.name);
        }
        worker.progress(patience)?;
    }
    newcomer.wait(patience, "the newcomer cannot open it", Worker::is_open)?;
    newcomer.progress(patience)?;
    let mut found = String::new();
    for worker in old.into_iter().chain([newcomer]) {
        let errors = worker.errors.clone();
        let tally = worker.finish(patience)?;
        let others = errors.keys().any(|kind| *kind != expected());
        let is_lost = tally.lost > 0 && pattern.expected != Expected::MayLose;
        let is_mended = pattern.expected == Expected::Mended;
        if others || is_lost || tally.silent + tally.older + tally.wrong > 0 {
            found += &format!("{tally:?}, errors: {errors:?}\n");
        } else if is_mended && !errors.is_empty() {
            found += &format!("errors: {errors:?}\n");
        }
    }
    let cache = builder(&dir).open().map_err(|e| e.to_string())?;
    let report = cache.check().map_err(|e| e.to_string())?;
    if !report.is_sound() {
        found += &format!("{:?}\n", report.problems);
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn all(patterns: impl IntoIterator<Item = Pattern>) -> Verdict {
    let failed: Vec<_> = patterns
        .into_iter()
        .filter_map(|pattern| {
            let found = run(&pattern, "watching", PATIENCE).err()?;
            Some(format!("{}: {found}", pattern.name))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// The pattern that changes `name` in this way.
fn of_file(verb: &str, name: &'static str, apply: impl Fn(&Path, &Path) + 'static) -> Pattern {
    let expected = match name {
        SEGMENT => Expected::MayLose,
        "meta" => Expected::Mended,
        _ => Expected::Noticed,
    };
    let change = move |dir: &Path, older: &Path| apply(&file(dir, name), &file(older, name));
    Pattern { name: format!("{verb} {name}"), apply: Box::new(change), expected }
}

fn with_meta() -> impl Iterator<Item = &'static str> {
    FILES.iter().copied().chain(["meta"])
}

pub(crate) fn removed() -> Verdict {
    all(with_meta().map(|name| of_file("removed", name, |path, _| fs::remove_file(path).unwrap())))
}

pub(crate) fn replaced() -> Verdict {
    all(with_meta().map(|name| {
        of_file("replaced", name, |path, _| {
            let beside = path.with_extension("copy");
            copy(path, &beside);
            fs::rename(beside, path).unwrap();
        })
    }))
}

pub(crate) fn restored() -> Verdict {
    all(with_meta().map(|name| {
        of_file("restored", name, |path, older| {
            let beside = path.with_extension("copy");
            copy(older, &beside);
            fs::rename(beside, path).unwrap();
        })
    }))
}

pub(crate) fn written_over() -> Verdict {
    all([of_file("wrote over", "index", |path, older| {
        use std::os::unix::fs::FileExt;
        assert!(fs::metadata(older).unwrap().len() > 64 << 10);
        let file = fs::File::options().write(true).open(path).unwrap();
        // From its attach table on: the first part that tells.
        file.write_all_at(&vec![0; 32 << 10], 4096).unwrap();
    })])
}

pub(crate) fn directory() -> Verdict {
    let pattern = |name: &str, apply: fn(&Path, &Path)| Pattern {
        name: name.to_owned(),
        apply: Box::new(apply),
        expected: Expected::MayLose,
    };
    all([
        pattern("removed the directory", |dir, _| fs::remove_dir_all(dir).unwrap_or_default()),
        pattern("moved the directory", |dir, _| {
            fs::rename(dir, dir.with_extension("moved")).unwrap();
        }),
        pattern("moved `segments`", |dir, _| {
            fs::rename(dir.join("segments"), dir.with_extension("segments")).unwrap();
        }),
        pattern("moved `blobs`", |dir, _| {
            fs::rename(dir.join("blobs"), dir.with_extension("blobs")).unwrap();
        }),
    ])
}

/// A pattern and a fault for which the checker must find something.
#[cfg(feature = "failpoints")]
fn must_be_found(how: &str, is_it: impl Fn(&str) -> bool) -> Verdict {
    let pattern = of_file("removed", "locks", |path, _| fs::remove_file(path).unwrap());
    let found = run(&pattern, how, Duration::from_secs(15)).expect_err("the checker is broken");
    println!("found: {found}");
    assert!(is_it(&found), "{found}");
    Ok(())
}

#[cfg(feature = "failpoints")]
pub(crate) fn unnoticed() -> Verdict {
    must_be_found("unwatched", |found| found.contains("no error is reported"))
}

/// Without the detection and without the look at who uses the directory: the newcomer recovers the
/// index under the processes that use it.
#[cfg(feature = "failpoints")]
pub(crate) fn careless() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let mut old = Worker::start(&dir, "a", "careless");
    old.progress(PATIENCE).unwrap();
    fs::remove_file(dir.join("locks")).unwrap();
    let mut newcomer = Worker::start(&dir, "c", "careless");
    newcomer.progress(PATIENCE).unwrap();
    old.progress(PATIENCE).unwrap();
    newcomer.progress(PATIENCE).unwrap();
    let mut bad = 0;
    for worker in [old, newcomer] {
        let tally = worker.finish(PATIENCE).unwrap();
        println!("{tally:?}");
        bad += tally.silent + tally.older + tally.wrong;
    }
    assert!(bad > 0, "the checker is broken");
    Ok(())
}
