//! Two versions of the library, of different formats, and one directory.

use std::path::Path;

use keepwarm::{Cache, ErrorKind, Timeout};

use crate::crew::{self, arguments};
use crate::harness::Verdict;

/// Tries to open a directory of another version, while that one uses it.
pub(crate) fn be_refused(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    crew::ready();
    let error = Cache::open(Path::new(dir)).expect_err("it is of another format");
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error}");
    assert_eq!(error.path(), Some(&*Path::new(dir).join("meta")));
}

/// `meta`, said to be of another format.
fn of_format(meta: &[u8], change: impl Fn(u8) -> u8) -> Vec<u8> {
    const NAME: &[u8] = b"\xa6format";
    let (body, _check) = meta.split_last_chunk::<4>().unwrap();
    let mut body = body.to_vec();
    let at = body.windows(NAME.len()).position(|bytes| bytes == NAME).unwrap() + NAME.len();
    body[at] = change(body[at]);
    let check = crc32fast::hash(&body).to_le_bytes();
    [body, check.to_vec()].concat()
}

pub(crate) fn another_is_refused() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::open(&dir).unwrap();
    let names = || {
        let entries = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    cache.set("kept", &0u8, Timeout::Never).unwrap();
    let (path, before) = (dir.join("meta"), names());
    let ours = std::fs::read(&path).unwrap();
    // Whoever comes sees a directory that processes of an older version use, or of a newer one.
    for change in [|format| format - 1, |format| format + 1] {
        std::fs::write(&path, of_format(&ours, change)).unwrap();
        crew::together("be-refused", (0..4).map(|_| arguments![dir.display()]));
        // Those go on.
        assert_eq!(names(), before);
        assert_eq!(cache.process_stats().unwrap().len(), 1, "nobody else has attached");
        let kept = cache.get::<u8>("kept").unwrap().unwrap();
        cache.set("kept", &(kept + 1), Timeout::Never).unwrap();
        assert!(cache.check().unwrap().is_sound());
    }
    std::fs::write(&path, of_format(&ours, |format| format)).unwrap();
    crew::together("count-at", [arguments![dir.display()]]);
    assert_eq!(cache.get("kept").unwrap(), Some(2u8));
    Ok(())
}
