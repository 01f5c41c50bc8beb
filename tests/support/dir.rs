//! Directories as a killed process leaves them.

use std::io;
use std::path::{Path, PathBuf};

/// Copies the directory of an open cache as its process would leave it if it were killed now: nothing is
/// closed, and what was stored into a map is in the file. Nobody may be writing; the background may be working.
pub(crate) fn copy_as_killed(from: &Path, to: &Path) {
    // What a checkpoint removes follows what it wrote, and a copy takes a while: one that saw the one and not the
    // other is of no moment.
    let moment = || {
        let segments = std::fs::read_dir(from.join("segments")).into_iter().flatten();
        let mut names: Vec<_> = segments.map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        (std::fs::read(from.join("state")).ok(), names)
    };
    loop {
        let before = moment();
        copy(from, to);
        if moment() == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
        std::fs::create_dir(to).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Newest first: the background removes segments from the oldest on, so what is found missing here went before
    // anything that is still to be copied.
    names.sort_unstable_by(|a, b| b.cmp(a));
    for path in names {
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&path, &to);
        } else {
            match std::fs::copy(&path, to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap_or_else(|e| panic!("copy {}: {e}", path.display()))),
            }
        }
    }
}
