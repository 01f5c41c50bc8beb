//! Observers: what they see and unmap when the index is replaced.
//!
//! Shows invariant I29.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::{AttachmentCell, empty};
use crate::entry::Item;
use crate::sys::lock;

fn observe(dir: &Path, options: &Options) -> Arc<Attached> {
    Attached::open_read_only(SYSTEM, dir, options).unwrap()
}

/// A directory that was closed with this many keys in it.
fn closed(keys: u32, options: &Options) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), options);
    (0..keys).for_each(|i| set(&engine, &i.to_string(), b"v"));
    dir
}

fn index_of(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap().join("index")
}

/// Whether a new index for this many entries gets a new file, so that the old one is removed.
fn removes_index(dir: &Path, max_entries: u64) -> bool {
    let before = std::fs::File::open(index_of(dir)).unwrap();
    resize(dir, max_entries);
    before.metadata().unwrap().nlink() == 0
}

/// Replaces the index by one for this many entries.
fn resize(dir: &Path, max_entries: u64) {
    drop(open(dir, &Options { max_entries, ..options() }));
}

#[test]
fn an_index_without_observers_is_rewritten_in_its_file() {
    let dir = closed(10, &options());
    drop(observe(dir.path(), &options()));
    assert!(!removes_index(dir.path(), 100_000));
    let observer = observe(dir.path(), &options());
    assert!(removes_index(dir.path(), 1000));
    assert!(!observer.is_usable());
}

#[test]
fn an_idle_observer_unmaps_a_retired_index() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let dir = closed(10, &options());
    let cells = [Arc::new(AttachmentCell::empty()), Arc::new(AttachmentCell::empty())];
    for cell in &cells {
        let observer = observe(dir.path(), &options());
        observer.note_holder(cell);
        cell.store(Some(observer));
    }
    assert_eq!(get(cells[1].load().as_ref().unwrap(), "7").unwrap(), b"v");
    let index = index_of(dir.path());
    let is_mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(&*index.to_string_lossy())
    };
    assert!(is_mapped());
    resize(dir.path(), 100_000);
    let started = Instant::now();
    while is_mapped() || cells.iter().any(|cell| cell.load().is_some()) {
        assert!(started.elapsed() < PATIENCE, "a retired index stays mapped");
        std::thread::yield_now();
    }
    // No observer watches the new index.
    assert!(!removes_index(dir.path(), 1000));
}

#[test]
fn an_observer_without_an_index_is_told_how_to_rebuild_it() {
    let dir = closed(10, &options());
    let index = index_of(dir.path());
    let never_filled = || std::fs::write(&index, b"").unwrap();
    let removed = || std::fs::remove_file(&index).unwrap();
    for spoil in [&never_filled as &dyn Fn(), &removed] {
        spoil();
        let Err(error) = Attached::open_read_only(SYSTEM, dir.path(), &options()) else {
            panic!("there is no index")
        };
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("opens the directory to write") && !text.contains("remove"),
            "{text}"
        );
        drop(open(dir.path(), &options()));
        assert_eq!(observe(dir.path(), &options()).len(), 10);
    }
    // While another process has the directory open, a missing index is damage.
    let locks = SYSTEM.open(&dir.path().join("locks")).unwrap();
    assert!(lock::try_lock(&locks, 5).unwrap());
    never_filled();
    let seen = Attached::open_read_only(SYSTEM, dir.path(), &options());
    assert_eq!(seen.err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
}

#[test]
fn a_cell_is_emptied_only_if_the_condition_holds() {
    let dir = closed(1, &options());
    let cell = AttachmentCell::from(Some(observe(dir.path(), &options())));
    empty(&cell, |observer| !observer.is_usable());
    assert!(cell.load().is_some());
    empty(&cell, Attached::is_ours);
    assert!(cell.load().is_none());
}

#[test]
fn a_salvaging_observer_of_a_closed_cache_sees_later_writes() {
    let dir = closed(10, &options());
    let observer = observe(dir.path(), &Options { salvage: true, ..options() });
    let writer = open(dir.path(), &options());
    for value in [b"1", b"2"] {
        set(&writer, "7", value);
        assert!(observer.is_usable());
        assert_eq!(get(&observer, "7").unwrap(), value);
    }
}

/// Scans a part of the keys in an index for `before` entries, and the rest in one for `after`.
fn each_key_comes_once(before: u64, after: u64) {
    const KEYS: u32 = 900;
    let dir = closed(KEYS, &Options { max_entries: before, ..options() });
    let mut seen = BTreeMap::new();
    let mut observer = observe(dir.path(), &options());
    let (mut cursor, mut half) = (Some(0), None);
    while let Some(at) = cursor {
        let mut note = |key: &[u8], _: Item<'_>| *seen.entry(key.to_vec()).or_insert(0) += 1;
        cursor = observer.scan(at, false, &mut note).unwrap();
        if half.is_none() && seen.len() as u32 > KEYS / 3 {
            half = Some(seen.len() as u32);
            resize(dir.path(), after);
            assert!(!observer.is_usable());
            observer = observe(dir.path(), &options());
        }
    }
    assert!(half.is_some_and(|seen| seen < KEYS), "no key was left for the second index");
    assert_eq!((seen.len() as u32, seen.values().max()), (KEYS, Some(&1)), "{before} to {after}");
}

#[test]
fn an_iteration_over_a_change_of_size_gives_each_entry_once() {
    each_key_comes_once(1000, 20_000);
    each_key_comes_once(20_000, 1000);
    each_key_comes_once(20_000, 3000);
}
