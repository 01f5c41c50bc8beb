use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::backend::{Codec, Soft};
use crate::entry::Expiry;
use crate::options::INLINE_CULL_ENTRIES;
use crate::time::ManualClock;

fn backend(change: impl FnOnce(&mut Options)) -> (MemoryBackend, ManualClock) {
    let clock = ManualClock::new();
    let mut options = Options { clock: Arc::new(clock.clone()), ..Options::default() };
    change(&mut options);
    (MemoryBackend::new(&options), clock)
}

fn store(value: &[u8], expires_at: Expiry) -> Change<'_> {
    Change::Store { value, codec: Codec::Raw, expires_at, soft: Soft::default() }
}

fn put(backend: &MemoryBackend, key: &str, value: &[u8]) -> u64 {
    match backend.commit(key, Condition::Always, store(value, None)).unwrap() {
        Outcome::Done { token: Some(token), .. } => token,
        other => panic!("{other:?}"),
    }
}

fn keys(backend: &MemoryBackend) -> Vec<String> {
    let (mut keys, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        cursor = backend.scan(at, &mut |key, _| keys.push(key.to_owned())).unwrap();
    }
    keys.sort();
    keys
}

#[test]
fn the_least_recently_used_are_culled() {
    let (backend, _) = backend(|o| (o.max_entries, o.cull_frequency) = (4, 2));
    for key in ["a", "b", "c", "d"] {
        put(&backend, key, b"");
    }
    backend.get("a").unwrap();
    put(&backend, "b", b"again");
    put(&backend, "e", b"");
    assert_eq!(keys(&backend), ["a", "b", "e"]);
    assert_eq!(backend.stats().evicted, 2);
}

#[test]
fn overwriting_culls_nothing() {
    let (backend, _) = backend(|o| (o.max_entries, o.cull_frequency) = (2, 1));
    put(&backend, "a", b"");
    put(&backend, "b", b"");
    put(&backend, "a", b"again");
    assert_eq!(keys(&backend), ["a", "b"]);
}

#[test]
fn a_cull_frequency_of_zero_clears() {
    let (backend, _) = backend(|o| (o.max_entries, o.cull_frequency) = (3, 0));
    for key in ["a", "b", "c", "d"] {
        put(&backend, key, b"");
    }
    assert_eq!(keys(&backend), ["d"]);
    assert_eq!((backend.stats().evicted, backend.stats().bytes), (3, entry_bytes("d", 0)));
}

#[test]
fn large_caches_make_room_for_one() {
    let (backend, _) =
        backend(|o| (o.max_entries, o.cull_frequency) = (INLINE_CULL_ENTRIES + 1, 2));
    for n in 0..INLINE_CULL_ENTRIES + 5 {
        put(&backend, &n.to_string(), b"");
    }
    assert_eq!((backend.entries(), backend.stats().evicted), (INLINE_CULL_ENTRIES + 1, 4));
}

#[test]
fn bytes_are_bounded_and_counted_back() {
    let (backend, _) = backend(|o| o.max_bytes = 1 << 20);
    let value = vec![0; 100_000];
    for n in 0..50 {
        put(&backend, &format!("key {n}"), &value);
        assert!(backend.stats().bytes <= 1 << 20);
    }
    assert_eq!(backend.entries(), 10);
    let refused =
        backend.commit("large", Condition::Always, store(&vec![0; 1 << 20], None)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ValueTooLarge);
    assert_eq!(backend.entries(), 10);
    // An overwrite that grows evicts others, never itself.
    put(&backend, "key 40", &vec![0; 900_000]);
    assert!(backend.get("key 40").unwrap().is_some());
    for key in keys(&backend) {
        backend.commit(&key, Condition::Always, Change::Delete).unwrap();
    }
    assert_eq!((backend.entries(), backend.stats().bytes), (0, 0));
}

#[test]
fn an_expired_entry_counts_as_absent() {
    let (backend, clock) = backend(|_| ());
    let soon = clock.now().checked_add(Duration::from_secs(1));
    backend.commit("a", Condition::Always, store(b"old", soon)).unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(backend.entries(), 1);
    assert!(!backend.visit("a", &mut |_| panic!("it has expired")).unwrap());
    backend.commit("a", Condition::Always, store(b"old", soon)).unwrap();
    let added = backend.commit("a", Condition::Absent, store(b"new", None)).unwrap();
    assert!(matches!(added, Outcome::Done { existed: false, token: Some(_) }));
}

#[test]
fn inserts_reap_what_has_expired() {
    let (backend, clock) = backend(|_| ());
    let soon = clock.now().checked_add(Duration::from_secs(1));
    for n in 0..100 {
        backend.commit(&format!("old {n}"), Condition::Always, store(b"", soon)).unwrap();
    }
    clock.advance(Duration::from_secs(1));
    for n in 0..100 {
        put(&backend, &format!("new {n}"), b"");
    }
    assert_eq!((backend.entries(), backend.stats().expired), (100, 100));
}

#[test]
fn maintenance_reaps_everything_that_has_expired() {
    let (backend, clock) = backend(|_| ());
    let half: u64 = if cfg!(miri) { 50 } else { 500 };
    for n in 0..2 * half {
        let expires_at =
            (n % 2 == 0).then(|| clock.now().checked_add(Duration::from_secs(1))).flatten();
        backend.commit(&n.to_string(), Condition::Always, store(b"", expires_at)).unwrap();
    }
    clock.advance(Duration::from_secs(1));
    backend.maintain().unwrap();
    assert_eq!((backend.entries(), backend.stats().expired), (half, half));
}

#[test]
fn conditions_are_checked_and_tokens_grow() {
    let (backend, _) = backend(|_| ());
    let refused = |condition, change| backend.commit("a", condition, change).unwrap();
    assert_eq!(refused(Condition::Present, store(b"", None)), Outcome::Refused { current: None });
    assert_eq!(refused(Condition::Always, Change::Delete), Outcome::Refused { current: None });
    assert_eq!(
        refused(Condition::Always, Change::Touch { expires_at: None }),
        Outcome::Refused { current: None }
    );
    let first = put(&backend, "a", b"1");
    assert_eq!(
        refused(Condition::Absent, store(b"", None)),
        Outcome::Refused { current: Some(first) }
    );
    let second = put(&backend, "a", b"2");
    assert!(second > first);
    assert_eq!(
        refused(Condition::Token(first), Change::Delete),
        Outcome::Refused { current: Some(second) }
    );
    let touched = refused(Condition::Token(second), Change::Touch { expires_at: None });
    assert!(
        matches!(touched, Outcome::Done { token: Some(token), existed: true } if token > second)
    );
    let gone = refused(Condition::Present, store(b"", Some(Timestamp::default())));
    assert_eq!(gone, Outcome::Done { token: None, existed: true });
    assert_eq!(backend.entries(), 0);
}

#[test]
fn a_scan_gives_what_stays_exactly_once() {
    let (backend, _) = backend(|o| o.max_entries = 5000);
    let count = if cfg!(miri) { 40 } else { 2000 };
    for n in 0..count {
        put(&backend, &format!("stays {n}"), b"");
        put(&backend, &format!("goes {n}"), b"");
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let (mut cursor, mut step) = (Some(0), 0);
    while let Some(at) = cursor {
        cursor = backend
            .scan(at, &mut |key, _| {
                *seen.entry(key.to_owned()).or_default() += 1;
                // What is read, overwritten, removed or inserted meanwhile must not matter.
                backend.get(key).unwrap();
                put(&backend, &format!("stays {}", step * 7 % count), b"again");
                backend.commit(&format!("goes {step}"), Condition::Always, Change::Delete).unwrap();
                put(&backend, &format!("comes {}", step % (count / 4)), b"");
                step += 1;
            })
            .unwrap();
    }
    for n in 0..count {
        assert_eq!(seen.get(&format!("stays {n}")), Some(&1), "{n}");
    }
    assert!(seen.values().all(|&times| times == 1));
}

#[test]
fn clearing_removes_everything() {
    let (backend, _) = backend(|_| ());
    let before = put(&backend, "a", b"");
    backend.clear().unwrap();
    assert_eq!((backend.entries(), backend.stats().bytes, keys(&backend).len()), (0, 0, 0));
    assert!(put(&backend, "a", b"") > before);
}
