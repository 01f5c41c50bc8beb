//! Shared values (the hot tier): decoded once, never stale, never of another type, within their
//! byte bound, and dropped where no lock is held, so that a destructor may call the cache.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use keepwarm::{Cache, ErrorKind, Timeout};
use serde::{Deserialize, Serialize};

use crate::common::Maker;
use crate::{for_each_backend, ms, with_cache};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Page {
    title: String,
    links: Vec<u64>,
}

fn page(number: u64) -> Page {
    Page { title: format!("page {number}"), links: (0..number % 20).collect() }
}

/// Reads until the hot tier keeps the value, on backends that have one.
fn warm(cache: &Cache, key: &str) -> Arc<Page> {
    let read = || cache.get_shared::<Page>(key).unwrap().unwrap();
    (0..3).for_each(|_| drop(read()));
    read()
}

/// Runs `test` on the backends that keep decoded values. The sled backend does not.
fn for_each_backend_with_a_hot_tier(test: impl Fn(&mut Maker)) {
    for_each_backend(|make| {
        if make.name != "sled" {
            test(make);
        }
    });
}

#[test]
fn readers_share_one_value() {
    for_each_backend_with_a_hot_tier(|make| {
        let cache = make.builder().open().unwrap();
        assert_eq!(cache.get_shared::<Page>("a").unwrap(), None);
        cache.set("a", &page(7), Timeout::Default).unwrap();
        let shared = warm(&cache, "a");
        assert_eq!(*shared, page(7));
        let hits = cache.stats().hot_hits;
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let cache = cache.clone();
                thread::spawn(move || cache.get_shared::<Page>("a").unwrap().unwrap())
            })
            .collect();
        for thread in threads {
            assert!(Arc::ptr_eq(&thread.join().unwrap(), &shared));
        }
        assert_eq!(cache.stats().hot_hits, hits + 2);
        // The same key under another prefix is another entry.
        let elsewhere = cache.with_prefix("elsewhere");
        assert_eq!(elsewhere.get_shared::<Page>("a").unwrap(), None);
        elsewhere.set("a", &page(8), Timeout::Default).unwrap();
        assert_eq!(*warm(&elsewhere, "a"), page(8));
        assert!(Arc::ptr_eq(&cache.get_shared::<Page>("a").unwrap().unwrap(), &shared));
    });
}

/// The change's name, the change to the page under `a`, and the number of the page afterwards.
type Change<'a> = (&'a str, &'a dyn Fn(), Option<u64>);

#[test]
fn a_read_after_a_change_is_never_stale() {
    with_cache(|cache, clock| {
        let changes: [Change<'_>; 10] = [
            ("set", &|| cache.set("a", &page(2), Timeout::Default).unwrap(), Some(2)),
            ("delete", &|| assert!(cache.delete("a").unwrap()), None),
            ("clear", &|| cache.clear().unwrap(), None),
            (
                "delete and set",
                &|| {
                    cache.delete("a").unwrap();
                    cache.set("a", &page(3), Timeout::Default).unwrap();
                },
                Some(3),
            ),
            (
                "clear and set",
                &|| {
                    cache.clear().unwrap();
                    cache.set("a", &page(4), Timeout::Default).unwrap();
                },
                Some(4),
            ),
            (
                "compare and swap",
                &|| {
                    let token = cache.get_entry::<Page>("a").unwrap().unwrap().token;
                    cache.compare_and_swap("a", Some(token), &page(5), Timeout::Default).unwrap();
                },
                Some(5),
            ),
            (
                "move to another version",
                &|| assert_eq!(cache.incr_version("a", 1).unwrap(), 2),
                None,
            ),
            ("expiry", &|| clock.advance(ms(300_000)), None),
            (
                "touch, then the first expiry",
                &|| {
                    assert!(cache.touch("a", Timeout::Never).unwrap());
                    clock.advance(ms(300_000));
                },
                Some(1),
            ),
            ("touch to zero", &|| assert!(cache.touch("a", Duration::ZERO).unwrap()), None),
        ];
        for (name, change, left) in changes {
            cache.set("a", &page(1), Timeout::Default).unwrap();
            let before = warm(&cache, "a");
            change();
            for _ in 0..4 {
                let after = cache.get_shared::<Page>("a").unwrap();
                assert_eq!(after.as_deref(), left.map(page).as_ref(), "{name}");
            }
            assert_eq!(*before, page(1), "a value that a caller holds does not change");
        }
    });
}

#[test]
fn a_shared_value_expires_to_the_millisecond() {
    with_cache(|cache, clock| {
        cache.set("a", &page(1), ms(1500)).unwrap();
        warm(&cache, "a");
        clock.advance(ms(1499));
        assert!(cache.get_shared::<Page>("a").unwrap().is_some());
        clock.advance(ms(1));
        assert!(cache.get_shared::<Page>("a").unwrap().is_none());
    });
}

#[test]
fn a_counter_is_never_read_stale() {
    with_cache(|cache, _| {
        cache.set("n", &0, Timeout::Never).unwrap();
        for n in 1..50u64 {
            cache.incr("n", 1).unwrap();
            for _ in 0..n % 4 {
                assert_eq!(cache.get_shared::<u64>("n").unwrap().as_deref(), Some(&n));
            }
        }
    });
}

#[test]
fn each_type_is_decoded_separately() {
    for_each_backend_with_a_hot_tier(|make| {
        let cache = make.builder().open().unwrap();
        cache.set("n", &7, Timeout::Never).unwrap();
        for _ in 0..5 {
            assert_eq!(cache.get_shared::<u8>("n").unwrap().as_deref(), Some(&7u8));
            assert_eq!(cache.get_shared::<i64>("n").unwrap().as_deref(), Some(&7i64));
            assert_eq!(cache.get_shared::<Option<u16>>("n").unwrap().as_deref(), Some(&Some(7u16)));
            let error = cache.get_shared::<Page>("n").unwrap_err();
            assert_eq!((error.kind(), error.key()), (ErrorKind::Decode, Some("n")));
        }
        // A failed decode does not evict a decoded value of another type.
        let read = || cache.get_shared::<u8>("n").unwrap().unwrap();
        let (_, shared) = (read(), read());
        cache.get_shared::<Page>("n").unwrap_err();
        assert!(Arc::ptr_eq(&shared, &cache.get_shared("n").unwrap().unwrap()));
        // The same entry, read alternately as a value and as bytes.
        cache.set_bytes("b", b"bytes", Timeout::Never).unwrap();
        for _ in 0..5 {
            assert_eq!(cache.get_shared::<Vec<u8>>("b").unwrap().unwrap().as_slice(), b"bytes");
            assert_eq!(cache.get_bytes("b").unwrap().as_deref(), Some(&b"bytes"[..]));
        }
    });
}

#[test]
fn shared_values_stay_within_hot_bytes() {
    for_each_backend_with_a_hot_tier(|make| {
        const HOT_BYTES: u64 = 256 << 10;
        const ENTRIES: u64 = 2000;
        let cache = make.builder().hot_bytes(HOT_BYTES).open().unwrap();
        for n in 0..ENTRIES {
            cache.set(&n.to_string(), &page(n), Timeout::Never).unwrap();
        }
        cache
            .set(
                "large",
                &Page { title: "x".repeat(HOT_BYTES as usize), links: vec![] },
                Timeout::Never,
            )
            .unwrap();
        let mut decoded = 0;
        for n in 0..ENTRIES {
            let key = n.to_string();
            let shared = warm(&cache, &key);
            assert_eq!(*shared, page(n));
            assert!(cache.stats().hot_bytes <= HOT_BYTES);
            if n % 100 == 0 {
                assert_eq!(
                    cache.get_shared::<Page>("large").unwrap().unwrap().title.len() as u64,
                    HOT_BYTES
                );
            }
            // A value that is in use is not evicted by new ones.
            let first = cache.get_shared::<Page>("0").unwrap().unwrap();
            decoded += u64::from(!Arc::ptr_eq(&first, &cache.get_shared("0").unwrap().unwrap()));
        }
        // Except when another key takes its cell in the doorkeeper's table: one in 65,536.
        assert!(decoded <= 8, "decoded {decoded} times");
        assert!(cache.stats().hot_bytes > HOT_BYTES / 2);
        cache.clear().unwrap();
        assert_eq!(cache.stats().hot_bytes, 0);
    });
}

#[test]
fn with_hot_bytes_of_zero_every_read_decodes() {
    for_each_backend(|make| {
        let cache = make.builder().hot_bytes(0).open().unwrap();
        cache.set("a", &page(1), Timeout::Never).unwrap();
        let read: Vec<Arc<Page>> =
            (0..5).map(|_| cache.get_shared("a").unwrap().unwrap()).collect();
        assert!(
            read.iter().all(|p| **p == page(1))
                && read.windows(2).all(|p| !Arc::ptr_eq(&p[0], &p[1]))
        );
    });
}

#[test]
fn evicting_an_entry_drops_its_shared_value() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(10).cull_frequency(2).open().unwrap();
        for round in 0..20u64 {
            for n in 0..30u64 {
                let key = n.to_string();
                match cache.get_shared::<Page>(&key).unwrap() {
                    Some(found) => assert!(cache.contains_key(&key).unwrap() && *found == page(n)),
                    None => cache.set(&key, &page(n), Timeout::Never).unwrap(),
                }
                if (n + round) % 7 == 0 {
                    cache.get_shared::<Page>(&key).unwrap();
                    cache.get_shared::<Page>(&key).unwrap();
                }
            }
        }
        for n in 0..30u64 {
            let key = n.to_string();
            assert_eq!(
                cache.contains_key(&key).unwrap(),
                cache.get_shared::<Page>(&key).unwrap().is_some()
            );
        }
    });
}

/// Stops the readers when a writer ends, also when it panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn writers_read_their_writes_and_readers_never_go_back() {
    for_each_backend_with_a_hot_tier(|make| {
        const ROUNDS: u64 = 4000;
        // Small, so that values are evicted all the time as well.
        let cache = make.builder().hot_bytes(64 << 10).open().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for me in 0..2u64 {
                let (cache, done) = (&cache, &done);
                scope.spawn(move || {
                    let _done = SetOnDrop(done);
                    for round in 1..=ROUNDS {
                        let key = format!("{me} {}", round % 3);
                        match round % 17 {
                            0 => drop(cache.delete(&key).unwrap()),
                            1 if me == 0 && round % 5 == 0 => cache.clear().unwrap(),
                            2 => drop(cache.touch(&key, Timeout::Default).unwrap()),
                            _ => {
                                cache.set(&key, &(me, round), Timeout::Default).unwrap();
                                // No other thread writes it; a clear may have removed it.
                                if let Some(found) = cache.get_shared::<(u64, u64)>(&key).unwrap() {
                                    assert_eq!(*found, (me, round));
                                }
                                continue;
                            }
                        }
                        if round % 17 == 0 {
                            assert_eq!(cache.get_shared::<(u64, u64)>(&key).unwrap(), None);
                        }
                    }
                });
                scope.spawn(move || {
                    let mut newest = [0; 6];
                    while !done.load(Ordering::Acquire) {
                        for (n, newest) in newest.iter_mut().enumerate() {
                            let key = format!("{} {}", n / 3, n % 3);
                            let found = cache.get_shared::<(u64, u64)>(&key).unwrap();
                            let Some((writer, round)) = found.as_deref().copied() else { continue };
                            assert!(
                                writer == n as u64 / 3 && *newest <= round,
                                "{key}: {round} after {newest}"
                            );
                            *newest = round;
                        }
                    }
                });
            }
        });
        assert!(cache.stats().hits > 1000 && cache.stats().hot_hits > 0, "{:?}", cache.stats());
    });
}

/// The number of integer entries that a `CallsCacheOnDrop` reads when it is dropped.
const READ_WHEN_DROPPED: u64 = 100;

thread_local! {
    /// The cache that a `CallsCacheOnDrop` dropped on this thread calls, and the count of drops.
    static CACHE_AND_DROPS: RefCell<Option<(Cache, u64)>> = const { RefCell::new(None) };
}

/// A value that calls the cache when it is dropped: it reads keys of all shards and writes one.
#[derive(Serialize, Deserialize)]
struct CallsCacheOnDrop {
    number: u64,
}

impl Drop for CallsCacheOnDrop {
    fn drop(&mut self) {
        // A value that is dropped by the calls below makes no calls itself.
        let Ok(Some((cache, drops))) = CACHE_AND_DROPS.try_with(RefCell::take) else { return };
        for n in 0..READ_WHEN_DROPPED {
            let read = cache.get_shared::<u64>(&format!("n{n}")).unwrap();
            assert!(read.is_none_or(|read| *read == n));
        }
        cache.set("dropped", &self.number, Timeout::Default).unwrap();
        CACHE_AND_DROPS.set(Some((cache, drops + 1)));
    }
}

/// Makes the cache drop values in every way that exists.
fn drop_in_every_way(cache: &Cache) {
    let with = |change: &dyn Fn(&str), entries: u64| {
        for n in 0..READ_WHEN_DROPPED {
            cache.set(&format!("n{n}"), &n, Timeout::Default).unwrap();
            (0..3).for_each(|_| drop(cache.get_shared::<u64>(&format!("n{n}")).unwrap()));
        }
        for number in 0..entries {
            let key = number.to_string();
            cache.set(&key, &CallsCacheOnDrop { number }, Timeout::Default).unwrap();
            (0..4).for_each(|_| drop(cache.get_shared::<CallsCacheOnDrop>(&key)));
            change(&key);
        }
    };
    with(&|_| (), 500);
    with(&|key| drop(cache.get_shared::<BTreeMap<String, u64>>(key).unwrap()), 50);
    with(&|key| cache.set(key, &CallsCacheOnDrop { number: 0 }, Timeout::Default).unwrap(), 50);
    with(&|key| assert!(cache.delete(key).unwrap()), 50);
    with(&|key| assert!(cache.touch(key, Duration::ZERO).unwrap()), 50);
    with(&|_| cache.clear().unwrap(), 20);
    with(&|_| cache.maintain().unwrap(), 20);
    with(&|_| cache.close().unwrap(), 5);
    let dropped = CACHE_AND_DROPS.with_borrow(|m| m.as_ref().map_or(0, |m| m.1));
    assert!(dropped > 1000, "{dropped} dropped");
}

#[test]
fn a_destructor_that_calls_the_cache_does_not_deadlock() {
    for_each_backend(|make| {
        let name = make.name;
        let cache =
            make.builder().hot_bytes(256 << 10).max_entries(300).cull_frequency(4).open().unwrap();
        let (finished, wait) = mpsc::channel();
        // On its own thread, so that a deadlock fails the test instead of hanging it.
        let thread = thread::spawn(move || {
            CACHE_AND_DROPS.set(Some((cache.clone(), 0)));
            drop_in_every_way(&cache);
            CACHE_AND_DROPS.set(None);
            finished.send(()).unwrap();
        });
        let ended = wait.recv_timeout(Duration::from_secs(600));
        assert_ne!(ended, Err(mpsc::RecvTimeoutError::Timeout), "a deadlock on the {name} backend");
        thread.join().unwrap();
    });
}
