//! What the tests of the public API share: each promise is tested on every backend.

use std::path::PathBuf;

use keepwarm::{Builder, Cache};
use tempfile::TempDir;

/// Makes caches on one backend.
pub(crate) struct Maker {
    /// What to call the backend where a test fails.
    pub(crate) name: &'static str,
    new: fn(&mut Vec<TempDir>) -> Builder,
    dirs: Vec<TempDir>,
}

/// Every backend that keeps what it is given.
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

/// Runs `test` on every backend. It is given a maker for as many caches as it wants.
pub(crate) fn for_each_backend(test: impl Fn(&mut Maker)) {
    for mut maker in backends() {
        println!("on the {} backend", maker.name);
        test(&mut maker);
        maker.clean();
    }
}

impl Maker {
    /// The options of a new cache on this backend.
    pub(crate) fn builder(&mut self) -> Builder {
        (self.new)(&mut self.dirs)
    }

    /// Deletes what the caches made until now have on disk. Happens at the end of a test anyway.
    pub(crate) fn clean(&mut self) {
        self.dirs.clear();
    }
}
