//! Shared helpers for the tests of the public API: run each test on every backend.

use std::path::PathBuf;

use keepwarm::{Builder, Cache};
use tempfile::TempDir;

/// Makes caches on one backend.
pub(crate) struct Maker {
    /// The name of the backend, printed before the test runs.
    pub(crate) name: &'static str,
    new: fn(&mut Vec<TempDir>) -> Builder,
    dirs: Vec<TempDir>,
}

/// Every backend that stores entries (all but the dummy).
fn backends() -> Vec<Maker> {
    let maker = |name, new| Maker { name, new, dirs: Vec::new() };
    vec![
        maker("memory", |_| Builder::in_memory()),
        maker("file", |dirs| Cache::builder(new_directory(dirs))),
        #[cfg(feature = "sled")]
        maker("sled", |dirs| Builder::sled(new_directory(dirs))),
    ]
}

fn new_directory(dirs: &mut Vec<TempDir>) -> PathBuf {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_owned();
    dirs.push(dir);
    path
}

/// Runs `test` on every backend. Its argument makes as many caches as the test needs.
pub(crate) fn for_each_backend(test: impl Fn(&mut Maker)) {
    for mut maker in backends() {
        println!("on the {} backend", maker.name);
        test(&mut maker);
        maker.clean();
    }
}

impl Maker {
    /// The builder of a new cache on this backend.
    pub(crate) fn builder(&mut self) -> Builder {
        (self.new)(&mut self.dirs)
    }

    /// Deletes the directories of the caches made so far. The end of a test does this too.
    pub(crate) fn clean(&mut self) {
        self.dirs.clear();
    }
}
