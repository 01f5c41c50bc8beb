//! Copies of directories, as a killed process leaves them.

use std::io;
use std::path::{Path, PathBuf};

/// Copies the directory of an open cache in the state in which a kill would leave it now: nothing
/// is closed, and all stores into a mapping are in the file. No thread may write meanwhile; the
/// background may work.
pub(crate) fn copy_as_killed(from: &Path, to: &Path) {
    // A checkpoint first writes its state and then removes segments. A copy that has the one
    // without the other is inconsistent, so the copy is repeated if either changed meanwhile.
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
    // Newest first: the background removes the oldest segments first, so a segment that is missing
    // here was removed before all that are still to be copied.
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
