//! The named points of the source, at which tests can stop, kill or fail a process.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all `step!`s and `fault!`s.
pub(crate) fn all() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert!(names.len() > 20, "{names:?}");
    names
}

fn collect(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else {
            let text = std::fs::read_to_string(&path).unwrap();
            for call in ["step!(\"", "fault!(\""] {
                let named = text.split(call).skip(1).filter_map(|rest| rest.split_once('"'));
                names.extend(named.map(|(name, _)| name.to_owned()));
            }
        }
    }
}
