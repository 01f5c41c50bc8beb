//! Read-only caches: the directory is never changed.

use std::path::Path;

use keepwarm::{Builder, Cache, ErrorKind, NewLimits, Result, Timeout};

use crate::secs;

fn reader(dir: &Path) -> Cache {
    // Lower limits than those of the directory.
    Cache::builder(dir).max_entries(2).max_bytes(1 << 20).read_only(true).open().unwrap()
}

/// A directory with ten small entries and a large one.
fn filled(dir: &Path) -> Cache {
    let cache = Cache::builder(dir).max_entries(1000).max_bytes(32 << 20).open().unwrap();
    for n in 0..10 {
        cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
    }
    cache.set_bytes("large", &vec![7; 3 << 20], Timeout::Never).unwrap();
    cache
}

#[track_caller]
fn refused<T>(result: Result<T>) {
    let error = result.err().expect("the write is refused");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
}

fn every_write_is_refused(cache: &Cache) {
    refused(cache.set("0", &7, Timeout::Never));
    refused(cache.set_bytes("0", b"x", Timeout::Never));
    refused(cache.set_bytes("0", &vec![1; 4 << 20], Timeout::Never));
    refused(cache.add("new", &7, Timeout::Never));
    refused(cache.delete("0"));
    refused(cache.touch("0", Timeout::Never));
    refused(cache.persist("0"));
    refused(cache.incr("0", 1));
    refused(cache.incr_or_init("new", 1, 0, Timeout::Never));
    refused(cache.incr_version("0", 1));
    refused(cache.clear());
    refused(cache.lease("new", secs(1)));
    refused(cache.configure(&NewLimits::new().max_entries(1)));
    refused(cache.writer("new", Timeout::Never).and_then(|writer| writer.commit()));
    let token = Some(cache.get_entry::<i32>("0").unwrap().unwrap().token);
    refused(cache.compare_and_swap("0", token, &7, Timeout::Never));
    let failed = cache.set_many([("0", &7)], Timeout::Never);
    assert_eq!(
        failed.iter().map(|(key, error)| (*key, error.kind())).collect::<Vec<_>>(),
        [("0", ErrorKind::ReadOnly)]
    );
}

fn every_entry_is_readable(cache: &Cache) {
    assert_eq!(cache.len(), 11);
    for n in 0..10 {
        assert_eq!(cache.get::<i32>(&n.to_string()).unwrap(), Some(n));
    }
    assert_eq!(cache.get_bytes("large").unwrap().unwrap().len(), 3 << 20);
    assert_eq!(cache.limits().max_entries, 1000, "the limit of the directory");
    assert!(cache.check().unwrap().is_sound());
}

#[test]
fn a_directory_that_is_not_open() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    drop(filled(&dir));
    let cache = reader(&dir);
    every_entry_is_readable(&cache);
    every_write_is_refused(&cache);
    assert_eq!(cache.get_or_set("computed", Timeout::Never, || 5).unwrap(), 5);
    assert!(!cache.contains_key("computed").unwrap());
    assert_eq!(cache.stats().store_failures, 1);
    cache.maintain().unwrap();
    cache.flush().unwrap();
    cache.close().unwrap();
    every_entry_is_readable(&cache);
    every_write_is_refused(&cache);
}

#[test]
fn a_directory_that_is_open_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let writer = filled(&dir);
    let cache = reader(&dir);
    every_entry_is_readable(&cache);
    every_write_is_refused(&cache);
    writer.set("0", &100, Timeout::Never).unwrap();
    assert_eq!(cache.get::<i32>("0").unwrap(), Some(100));
    drop(writer);
    assert_eq!(cache.get::<i32>("0").unwrap(), Some(100));
    every_write_is_refused(&cache);
}

#[test]
fn a_missing_directory_is_not_created() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let open = || Cache::builder(&dir).read_only(true).open();
    assert_eq!(open().unwrap_err().path(), Some(&*dir));
    assert!(!dir.exists());
    std::fs::create_dir(&dir).unwrap();
    open().unwrap_err();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    let cache = filled(&dir);
    let left = reader(&dir);
    drop(cache);
    left.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    left.get::<i32>("0").unwrap_err();
    assert!(!dir.exists(), "it is not created again");
}

#[test]
fn a_backend_without_a_directory_refuses_read_only() {
    for builder in [Builder::in_memory(), Builder::dummy()] {
        let error = builder.read_only(true).open().unwrap_err();
        assert_eq!((error.kind(), error.option()), (ErrorKind::InvalidOption, Some("read_only")));
    }
}
