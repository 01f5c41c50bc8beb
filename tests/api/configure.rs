//! `configure`: changes limits while the cache is open.

use keepwarm::{Cache, ErrorKind, NewLimits, Timeout};

use crate::for_each_backend;

fn fill(cache: &Cache, count: u64) {
    for n in 0..count {
        cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
    }
}

#[test]
fn limits_that_are_not_named_are_kept() {
    for_each_backend(|make| {
        let cache =
            make.builder().max_entries(1000).cull_frequency(3).max_bytes(8 << 20).open().unwrap();
        let before = cache.limits();
        assert_eq!(
            (before.max_entries, before.cull_frequency, before.max_bytes),
            (1000, 3, 8 << 20)
        );
        assert_eq!(cache.configure(&NewLimits::new()).unwrap(), before);
        let now = cache.configure(&NewLimits::new().cull_frequency(5)).unwrap();
        assert_eq!((now.max_entries, now.cull_frequency, now.max_bytes), (1000, 5, 8 << 20));
        let now = cache.clone().configure(&NewLimits::new().max_entries(10)).unwrap();
        assert_eq!((now.max_entries, now.cull_frequency, now.max_bytes), (10, 5, 8 << 20));
        assert_eq!(cache.limits(), now);
    });
}

#[test]
fn lower_limits_evict_the_least_recently_used_and_hold() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(1000).cull_frequency(4).open().unwrap();
        fill(&cache, 1000);
        cache.configure(&NewLimits::new().max_entries(100)).unwrap();
        assert_eq!(cache.len(), 100);
        assert!(cache.contains_key("999").unwrap() && !cache.contains_key("0").unwrap());
        assert_eq!(cache.stats().evicted, 900);
        for n in 0..500 {
            cache.set(&format!("more {n}"), &n, Timeout::Never).unwrap();
            assert!(cache.len() <= 100);
        }
        cache.configure(&NewLimits::new().cull_frequency(0)).unwrap();
        while cache.len() < 100 {
            cache.set(&format!("again {}", cache.len()), &1, Timeout::Never).unwrap();
        }
        cache.set("one too many", &1, Timeout::Never).unwrap();
        assert_eq!(cache.len(), 1, "a cull frequency of 0 evicts all");
    });
}

#[test]
fn a_lower_byte_limit_holds_at_once() {
    for_each_backend(|make| {
        const LESS: u64 = 4 << 20;
        let cache = make.builder().max_entries(1000).max_bytes(64 << 20).open().unwrap();
        let value = vec![7; 50_000];
        for n in 0..600 {
            cache.set_bytes(&n.to_string(), &value, Timeout::Never).unwrap();
        }
        assert!(cache.stats().bytes > 4 * LESS);
        let now = cache.configure(&NewLimits::new().max_bytes(LESS)).unwrap();
        assert_eq!(now.max_bytes, LESS);
        assert!(cache.stats().bytes <= LESS, "{:?}", cache.stats());
        assert!(cache.len() < 100);
        for n in 0..300 {
            cache.set_bytes(&n.to_string(), &value, Timeout::Never).unwrap();
            assert!(cache.stats().bytes <= LESS, "{:?}", cache.stats());
        }
        let error = cache.set_bytes("large", &vec![0; LESS as usize], Timeout::Never).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueTooLarge);
        cache.configure(&NewLimits::new().max_bytes(64 << 20)).unwrap();
        cache.set_bytes("large", &vec![0; LESS as usize], Timeout::Never).unwrap();
    });
}

#[test]
fn an_invalid_limit_is_named_and_changes_nothing() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(50).open().unwrap();
        fill(&cache, 50);
        let before = cache.limits();
        let bad = [
            ("max_entries", NewLimits::new().max_entries(0).max_bytes(8 << 20)),
            ("max_entries", NewLimits::new().max_entries(u64::MAX)),
            ("max_bytes", NewLimits::new().max_entries(1).max_bytes((1 << 20) - 1)),
            ("max_bytes", NewLimits::new().cull_frequency(0).max_bytes(u64::MAX)),
        ];
        for (name, new) in bad {
            let error = cache.configure(&new).unwrap_err();
            assert_eq!(
                (error.kind(), error.option()),
                (ErrorKind::InvalidOption, Some(name)),
                "{error}"
            );
            assert_eq!(error.operation(), "configure");
            assert_eq!((cache.limits(), cache.len()), (before, 50));
        }
    });
}

#[test]
fn a_closed_cache_keeps_its_configured_limits() {
    for_each_backend(|make| {
        let cache = make.builder().max_entries(1000).open().unwrap();
        fill(&cache, 60);
        let limits = cache.configure(&NewLimits::new().max_entries(50)).unwrap();
        cache.close().unwrap();
        assert_eq!(cache.limits(), limits);
        fill(&cache, 60);
        assert!(cache.len() <= 50);
    });
}

/// The index is sized when the directory is opened: a higher `max_entries` is capped to its room
/// until the directory is opened again.
#[test]
fn a_reopened_directory_grows_to_its_configured_limits() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let open = |keep| {
        Cache::builder(&dir).max_entries(1000).max_bytes(8 << 20).keep_limits(keep).open().unwrap()
    };
    let cache = open(false);
    let counts = cache.configure(&NewLimits::new().max_entries(8000).max_bytes(64 << 20)).unwrap();
    assert!((1000..4000).contains(&counts.max_entries), "{counts:?}");
    assert_eq!(counts.max_bytes, 64 << 20, "the segment table has room for that");
    fill(&cache, 5000);
    assert!(cache.len() <= counts.max_entries);
    drop(cache);
    let cache = open(true);
    assert_eq!((cache.limits().max_entries, cache.limits().max_bytes), (8000, 64 << 20));
    fill(&cache, 5000);
    assert_eq!(cache.len(), 5000);
    assert!(cache.check().unwrap().is_sound());
    // Less than the index itself takes.
    let counts = cache.configure(&NewLimits::new().max_entries(10).max_bytes(1 << 20)).unwrap();
    assert!(counts.max_entries == 10 && counts.max_bytes >= 1 << 20, "{counts:?}");
    assert!(cache.len() <= 10 && cache.stats().bytes <= counts.max_bytes, "{:?}", cache.stats());
    drop(cache);
    let cache = open(true);
    assert_eq!((cache.limits().max_entries, cache.limits().max_bytes), (10, 1 << 20));
    assert!(cache.stats().bytes <= 1 << 20, "{:?}", cache.stats());
    drop(cache);
    assert_eq!(open(false).limits().max_entries, 1000, "the first to open it sets the limits");
}
