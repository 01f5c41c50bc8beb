//! A directory that another version of the library, with another format, has open.
//!
//! Shows invariant I9.

use std::path::Path;

use keepwarm::{Cache, ErrorKind, Timeout};

use crate::child_processes::{self, arguments};
use crate::harness::Verdict;

/// Role: tries to open a directory of another format while a process uses it. Argument: the
/// directory.
pub(crate) fn be_refused(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    child_processes::wait_for_start();
    let error = Cache::open(Path::new(dir)).expect_err("the directory has another format");
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error}");
    assert_eq!(error.path(), Some(&*Path::new(dir).join("meta")));
}

/// The bytes of `meta` with the format number changed, and a valid checksum.
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
    // The new processes see a directory that an older version uses, then one of a newer version.
    for change in [|format| format - 1, |format| format + 1] {
        std::fs::write(&path, of_format(&ours, change)).unwrap();
        child_processes::run_together("be-refused", (0..4).map(|_| arguments![dir.display()]));
        // The process that has the directory open continues undisturbed.
        assert_eq!(names(), before);
        assert_eq!(cache.process_stats().unwrap().len(), 1, "no other process has attached");
        let kept = cache.get::<u8>("kept").unwrap().unwrap();
        cache.set("kept", &(kept + 1), Timeout::Never).unwrap();
        assert!(cache.check().unwrap().is_sound());
    }
    std::fs::write(&path, of_format(&ours, |format| format)).unwrap();
    child_processes::run_together("count-at", [arguments![dir.display()]]);
    assert_eq!(cache.get("kept").unwrap(), Some(2u8));
    Ok(())
}
