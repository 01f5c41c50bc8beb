//! ReadOnlyAttachment on: what becomes of it when the index that it sees is made anew.
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

fn look(dir: &Path, options: &Options) -> Arc<Attached> {
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

/// Whether making the index for this many entries removes the file that is there.
fn removes_index(dir: &Path, max_entries: u64) -> bool {
    let before = std::fs::File::open(index_of(dir)).unwrap();
    resize(dir, max_entries);
    before.metadata().unwrap().nlink() == 0
}

/// Makes the index anew.
fn resize(dir: &Path, max_entries: u64) {
    drop(open(dir, &Options { max_entries, ..options() }));
}

#[test]
fn an_index_that_nobody_looks_at_is_made_anew_where_it_is() {
    let dir = closed(10, &options());
    drop(look(dir.path(), &options()));
    assert!(!removes_index(dir.path(), 100_000));
    let onlooker = look(dir.path(), &options());
    assert!(removes_index(dir.path(), 1000));
    assert!(!onlooker.is_usable());
}

#[test]
fn an_onlooker_that_is_not_called_lets_go_of_an_index_that_was_given_up() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let dir = closed(10, &options());
    let places = [Arc::new(AttachmentCell::empty()), Arc::new(AttachmentCell::empty())];
    for place in &places {
        let onlooker = look(dir.path(), &options());
        onlooker.note_holder(place);
        place.store(Some(onlooker));
    }
    assert_eq!(get(places[1].load().as_ref().unwrap(), "7").unwrap(), b"v");
    let index = index_of(dir.path());
    let is_mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(&*index.to_string_lossy())
    };
    assert!(is_mapped());
    resize(dir.path(), 100_000);
    let started = Instant::now();
    while is_mapped() || places.iter().any(|place| place.load().is_some()) {
        assert!(started.elapsed() < PATIENCE, "an index that was given up stays mapped");
        std::thread::yield_now();
    }
    // The next life finds nobody who watches.
    assert!(!removes_index(dir.path(), 1000));
}

#[test]
fn who_looks_on_while_there_is_no_index_is_told_who_makes_it() {
    let dir = closed(10, &options());
    let index = index_of(dir.path());
    let never_filled = || std::fs::write(&index, b"").unwrap();
    let removed = || std::fs::remove_file(&index).unwrap();
    for spoil in [&never_filled as &dyn Fn(), &removed] {
        spoil();
        let Err(error) = Attached::open_read_only(SYSTEM, dir.path(), &options()) else {
            panic!("there is nothing to see")
        };
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("opens the directory to write") && !text.contains("remove"),
            "{text}"
        );
        drop(open(dir.path(), &options()));
        assert_eq!(look(dir.path(), &options()).len(), 10);
    }
    // One that others use is damaged.
    let locks = SYSTEM.open(&dir.path().join("locks")).unwrap();
    assert!(lock::try_lock(&locks, 5).unwrap());
    never_filled();
    let seen = Attached::open_read_only(SYSTEM, dir.path(), &options());
    assert_eq!(seen.err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
}

#[test]
fn a_place_keeps_what_is_not_meant() {
    let dir = closed(1, &options());
    let place = AttachmentCell::from(Some(look(dir.path(), &options())));
    empty(&place, |onlooker| !onlooker.is_usable());
    assert!(place.load().is_some());
    empty(&place, Attached::is_ours);
    assert!(place.load().is_none());
}

#[test]
fn who_salvages_what_was_closed_sees_what_is_written_later() {
    let dir = closed(10, &options());
    let onlooker = look(dir.path(), &Options { salvage: true, ..options() });
    let writer = open(dir.path(), &options());
    for value in [b"1", b"2"] {
        set(&writer, "7", value);
        assert!(onlooker.is_usable());
        assert_eq!(get(&onlooker, "7").unwrap(), value);
    }
}

/// Goes through half of the keys in an index for `before` entries, and through the rest in one for `after`.
fn each_key_comes_once(before: u64, after: u64) {
    const KEYS: u32 = 900;
    let dir = closed(KEYS, &Options { max_entries: before, ..options() });
    let mut seen = BTreeMap::new();
    let mut onlooker = look(dir.path(), &options());
    let (mut cursor, mut half) = (Some(0), None);
    while let Some(at) = cursor {
        let mut note = |key: &[u8], _: Item<'_>| *seen.entry(key.to_vec()).or_insert(0) += 1;
        cursor = onlooker.scan(at, false, &mut note).unwrap();
        if half.is_none() && seen.len() as u32 > KEYS / 3 {
            half = Some(seen.len() as u32);
            resize(dir.path(), after);
            assert!(!onlooker.is_usable());
            onlooker = look(dir.path(), &options());
        }
    }
    assert!(half.is_some_and(|seen| seen < KEYS), "nothing was left to come");
    assert_eq!((seen.len() as u32, seen.values().max()), (KEYS, Some(&1)), "{before} to {after}");
}

#[test]
fn an_iteration_over_a_change_of_size_gives_each_entry_once() {
    each_key_comes_once(1000, 20_000);
    each_key_comes_once(20_000, 1000);
    each_key_comes_once(20_000, 3000);
}
