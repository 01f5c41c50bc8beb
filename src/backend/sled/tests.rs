use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::backend::{Codec, Expiry};
use crate::error::ErrorKind;
use crate::options::Durability;
use crate::time::{Clock, ManualClock};

struct Place {
    dir: TempDir,
    clock: ManualClock,
    options: Options,
}

impl Place {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let clock = ManualClock::new();
        let mut options = Options { clock: Arc::new(clock.clone()), ..Options::default() };
        change(&mut options);
        Self { dir: tempfile::tempdir().unwrap(), clock, options }
    }

    fn open(&self) -> SledBackend {
        SledBackend::open(self.dir.path(), &self.options).unwrap()
    }

    fn soon(&self) -> Expiry {
        self.clock.now().checked_add(Duration::from_secs(1))
    }
}

fn store(value: &[u8], expires_at: Expiry) -> Change<'_> {
    Change::store(value, Codec::Raw, expires_at)
}

fn put(backend: &SledBackend, key: &str, value: &[u8]) -> u64 {
    match backend.commit(key, Condition::Always, store(value, None)).unwrap() {
        Outcome::Done { token: Some(token), .. } => token,
        other => panic!("{other:?}"),
    }
}

fn value(backend: &SledBackend, key: &str) -> Option<Vec<u8>> {
    backend.get(key).unwrap().map(|stored| stored.value.to_vec())
}

fn keys(backend: &SledBackend) -> BTreeSet<String> {
    let (mut keys, mut cursor) = (BTreeSet::new(), Some(0));
    while let Some(at) = cursor {
        cursor = backend.scan(at, &mut |key, _| assert!(keys.insert(key.to_owned()))).unwrap();
    }
    keys
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn assert_sound(backend: &SledBackend) {
    let report = backend.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

/// The number of records in the tree, whatever the accounting says.
fn records(backend: &SledBackend) -> usize {
    backend.with(|store| Ok(store.directory.entries.len())).unwrap()
}

#[test]
fn everything_is_there_after_opening_again() {
    let place = Place::new(|_| ());
    let backend = place.open();
    backend.commit("a", Condition::Always, store(b"1", place.soon())).unwrap();
    let token = put(&backend, "b", &[7; 100_000]);
    put(&backend, "c", b"");
    backend.commit("c", Condition::Always, Change::Delete).unwrap();
    let expires_at = backend.get("a").unwrap().unwrap().expires_at;
    drop(backend);
    let backend = place.open();
    assert_eq!((backend.len().unwrap(), keys(&backend)), (2, set(&["a", "b"])));
    assert_eq!(backend.get("a").unwrap().unwrap().expires_at, expires_at);
    let b = backend.get("b").unwrap().unwrap();
    assert_eq!((b.token, &b.value[..]), (token, &[7; 100_000][..]));
    assert_sound(&backend);
}

#[test]
fn close_releases_the_directory_and_the_next_call_reopens_it() {
    let place = Place::new(|_| ());
    let backend = place.open();
    put(&backend, "a", b"1");
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    backend.close().unwrap();
    let other = place.open();
    assert_eq!(value(&other, "a").unwrap(), b"1");
    assert_eq!(backend.get("a").unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(backend.len().unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(backend.stats().entries, 0);
    drop(other);
    assert_eq!(value(&backend, "a").unwrap(), b"1");
}

#[test]
fn a_foreign_directory_is_left_unchanged() {
    let place = Place::new(|_| ());
    fs::write(place.dir.path().join("precious"), b"1").unwrap();
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::NotACache);
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 1);

    let place = Place::new(|_| ());
    drop(crate::backend::FileBackend::open(place.dir.path(), &place.options).unwrap());
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::NotACache);

    let place = Place::new(|_| ());
    drop(place.open());
    let refused =
        crate::backend::FileBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::NotACache);
}

#[test]
fn tokens_grow_from_life_to_life_and_none_is_used_twice() {
    let place = Place::new(|_| ());
    let mut last = 0;
    for _ in 0..3 {
        let backend = place.open();
        for _ in 0..3 {
            let token = put(&backend, "a", b"");
            assert!(token > last, "{token} after {last}");
            last = token;
        }
        // What a life that forgets all it wrote since it began would give out is reserved on the
        // disk.
        let reserved = backend.with(|store| store.directory.next_sequence()).unwrap();
        drop(backend);
        let next = place.open().with(|store| store.directory.next_sequence()).unwrap();
        assert!(next >= reserved + (1 << 31));
        last = next;
    }
}

#[test]
fn recency_begins_in_the_order_of_the_last_writes() {
    let place = Place::new(|o| (o.max_entries, o.cull_frequency) = (4, 2));
    let backend = place.open();
    for key in ["c", "a", "d", "b"] {
        put(&backend, key, b"");
    }
    put(&backend, "c", b"again");
    drop(backend);
    let backend = place.open();
    backend.get("a").unwrap();
    put(&backend, "e", b"");
    assert_eq!(keys(&backend), set(&["a", "c", "e"]));
    assert_eq!(backend.stats().evicted, 2);
    assert_sound(&backend);
}

#[test]
fn lower_bounds_evict_when_the_directory_is_opened() {
    let mut place = Place::new(|_| ());
    let backend = place.open();
    for key in ["a", "b", "c", "d"] {
        put(&backend, key, &[1; 400_000]);
    }
    drop(backend);
    (place.options.max_entries, place.options.max_bytes) = (3, 1 << 20);
    let backend = place.open();
    assert_eq!(keys(&backend), set(&["c", "d"]));
    assert!(backend.stats().bytes <= 1 << 20);
    assert_eq!(records(&backend), 2);
    assert_sound(&backend);
}

#[test]
fn expired_entries_are_evicted_first_without_a_read() {
    let place = Place::new(|o| (o.max_entries, o.cull_frequency) = (4, 2));
    let backend = place.open();
    for (key, expires_at) in [("a", None), ("b", None), ("c", place.soon()), ("d", place.soon())] {
        backend.commit(key, Condition::Always, store(b"", expires_at)).unwrap();
    }
    place.clock.advance(Duration::from_secs(1));
    put(&backend, "e", b"");
    assert_eq!(keys(&backend), set(&["a", "b", "e"]));
    assert_eq!((backend.stats().expired, backend.stats().evicted), (2, 0));
    assert_eq!(records(&backend), 3);
    backend.commit("f", Condition::Always, store(b"", place.soon())).unwrap();
    place.clock.advance(Duration::from_secs(1));
    backend.maintain().unwrap();
    assert_eq!((backend.len().unwrap(), records(&backend)), (3, 3));
}

#[test]
fn a_clear_is_immediate_and_later_stores_remove_its_records() {
    let place = Place::new(|_| ());
    let backend = place.open();
    for n in 0..100 {
        put(&backend, &format!("old {n}"), b"");
    }
    backend.clear().unwrap();
    assert_eq!((backend.len().unwrap(), backend.stats().bytes, keys(&backend).len()), (0, 0, 0));
    assert_eq!((value(&backend, "old 1"), records(&backend)), (None, 100));
    let outcome = backend.commit("old 1", Condition::Present, store(b"", None)).unwrap();
    assert_eq!(outcome, Outcome::Refused { current: None });
    put(&backend, "old 1", b"new");
    for n in 0..20 {
        put(&backend, &format!("new {n}"), b"");
    }
    assert_eq!((backend.len().unwrap(), records(&backend)), (21, 21));
    assert_eq!(value(&backend, "old 1").unwrap(), b"new");
    assert_sound(&backend);
    // What a life did not get to is removed when the next one begins.
    backend.clear().unwrap();
    drop(backend);
    let backend = place.open();
    assert_eq!((backend.len().unwrap(), records(&backend)), (0, 0));
}

#[test]
fn a_damaged_record_is_a_miss_and_is_counted_once() {
    let place = Place::new(|_| ());
    let backend = place.open();
    let damage = |key: &str, at: usize| {
        backend
            .with(|store| {
                let mut bytes = store.directory.entries.get(key).unwrap().unwrap().to_vec();
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1;
                store.directory.entries.insert(key, bytes).unwrap();
                Ok(())
            })
            .unwrap();
    };
    let whole = put(&backend, "a", b"8 bytes.");
    let len =
        backend.with(|store| Ok(store.directory.entries.get("a").unwrap().unwrap().len())).unwrap();
    assert!(whole > 0 && len == 56);
    for (n, at) in (0..len).enumerate() {
        put(&backend, "a", b"8 bytes.");
        damage("a", at);
        // The zeros at the end are no part of the record.
        if at >= 49 {
            assert!(value(&backend, "a").is_some());
            continue;
        }
        assert!(!backend.check().unwrap().is_sound());
        assert_eq!(value(&backend, "a"), None, "byte {at}");
        assert_eq!(value(&backend, "a"), None);
        assert_eq!(backend.stats().corrupt, n as u64 + 1);
        assert_eq!((backend.len().unwrap(), records(&backend)), (0, 0));
    }
    // A record under another key than its own is damage too, and so is one that is found at the
    // opening.
    let before = backend.stats().corrupt;
    backend.commit("a", Condition::Always, Change::Delete).unwrap();
    put(&backend, "b", b"");
    backend
        .with(|store| {
            let bytes = store.directory.entries.get("b").unwrap().unwrap();
            store.directory.entries.insert("c", bytes).unwrap();
            Ok(())
        })
        .unwrap();
    assert_eq!(value(&backend, "c"), None);
    assert_eq!(backend.stats().corrupt, before + 1);
    damage("b", 20);
    drop(backend);
    let backend = place.open();
    assert_eq!((backend.stats().corrupt, backend.len().unwrap(), records(&backend)), (1, 0, 0));
}

#[test]
fn the_facts_needed_to_read_records_are_checked() {
    let place = Place::new(|_| ());
    let backend = place.open();
    put(&backend, "a", b"");
    drop(backend);
    let change = |change: &dyn Fn(&::sled::Tree)| {
        // sled unlocks its file a moment after it is dropped.
        let db = directory::open_sled(&place.dir.path().join("sled"), &place.options).unwrap();
        change(&db.open_tree("facts").unwrap());
    };
    let mut facts = Vec::new();
    change(&|tree| drop(tree.insert("facts", &[1, 2, 3]).unwrap()));
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    change(&|tree| drop(tree.remove("facts").unwrap()));
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    facts.extend(crate::engine::format::meta::seal(&("newer", 1)).unwrap());
    change(&|tree| drop(tree.insert("facts", &facts[..]).unwrap()));
    let refused = SledBackend::open(place.dir.path(), &place.options).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
}

/// Whatever is done to sled's own files: an error with a kind, or what was stored, or a miss.
#[test]
fn damaged_files_of_sled_give_no_wrong_value() {
    let place = Place::new(|o| o.durability = Durability::Sync);
    let backend = place.open();
    for n in 0..40u8 {
        put(&backend, &n.to_string(), &[n; 300]);
    }
    drop(backend);
    let file = place.dir.path().join("sled/db");
    let whole = fs::read(&file).unwrap();
    let (mut refused, mut missing, mut found) = (0, 0, 0);
    let last = whole.iter().rposition(|b| *b != 0).unwrap();
    for at in (0..last).step_by(last / 40) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&file, &damaged).unwrap();
        match SledBackend::open(place.dir.path(), &place.options) {
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io), "{e}");
                refused += 1;
            }
            Ok(backend) => {
                for n in 0..40u8 {
                    match backend.get(&n.to_string()) {
                        Ok(Some(stored)) => {
                            assert_eq!(stored.value, &[n; 300][..]);
                            found += 1;
                        }
                        _ => missing += 1,
                    }
                }
            }
        }
        fs::remove_dir_all(place.dir.path().join("sled")).unwrap();
        fs::create_dir(place.dir.path().join("sled")).unwrap();
    }
    println!(
        "41 damaged files: {refused} refused; of the others' values {found} found, \
         {missing} missing"
    );
    assert!(found > 0);
}
