//! Bounds: no limit is ever exceeded, and the least recently used entries are evicted first.

use std::thread;

use keepwarm::Timeout;

use crate::for_each_backend;

#[test]
fn the_least_recently_used_are_evicted_first() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(4).cull_frequency(2).open().unwrap();
        for key in ["a", "b", "c", "d"] {
            cache.set(key, key, Timeout::Never).unwrap();
        }
        cache.get::<String>("a").unwrap();
        cache.set("b", "again", Timeout::Never).unwrap();
        cache.set("e", "e", Timeout::Never).unwrap();
        for (key, there) in [("a", true), ("b", true), ("c", false), ("d", false), ("e", true)] {
            assert_eq!(cache.contains_key(key).unwrap(), there, "{key}");
        }
        assert_eq!(cache.stats().evicted, 2);
    });
}

#[test]
fn a_cull_evicts_at_least_one_entry() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(3).cull_frequency(32).open().unwrap();
        for n in 0..20u64 {
            cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
            assert_eq!(cache.len(), (n + 1).min(3));
        }
    });
}

#[test]
fn overwriting_and_touching_evict_nothing() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(2).cull_frequency(1).open().unwrap();
        cache.set("a", &1, Timeout::Never).unwrap();
        cache.set("b", &1, Timeout::Never).unwrap();
        cache.set("a", &2, Timeout::Never).unwrap();
        cache.incr("b", 1).unwrap();
        assert!(cache.touch("a", Timeout::Default).unwrap());
        assert!(!cache.add("a", &3, Timeout::Never).unwrap());
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.stats().evicted, 0);
    });
}

#[test]
fn concurrent_writers_do_not_exceed_the_bounds() {
    for_each_backend(|make| {
        const MAX_BYTES: u64 = 8 << 20;
        let cache =
            make.builder().max_entries(50).cull_frequency(3).max_bytes(MAX_BYTES).open().unwrap();
        thread::scope(|scope| {
            for me in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for n in 0..500 {
                        let value = vec![me as u8; n % 7 * 50_000];
                        cache.set_bytes(&format!("{me} {n}"), &value, Timeout::Never).unwrap();
                        let stats = cache.stats();
                        assert!(stats.entries <= 50 && stats.bytes <= MAX_BYTES, "{stats:?}");
                    }
                });
            }
        });
        assert!(cache.stats().evicted > 0);
    });
}
