//! Keys: prefixes, versions, key functions, the maximum length, and the portable-key check.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use keepwarm::{ErrorKind, Timeout, hash_long_keys};

use crate::{for_each_backend, with_cache};

#[test]
fn prefixes_and_versions_keep_keys_apart() {
    with_cache(|cache, _| {
        let views = [
            cache.clone(),
            cache.with_version(2),
            cache.with_version(-1),
            cache.with_prefix("p"),
            cache.with_prefix("p").with_version(2),
        ];
        for (n, view) in views.iter().enumerate() {
            view.set("a", &n, Timeout::Default).unwrap();
        }
        for (n, view) in views.iter().enumerate() {
            assert_eq!(view.get::<usize>("a").unwrap(), Some(n));
        }
        assert_eq!(cache.len(), 5);
        // A view replaces the prefix; it does not add to it.
        assert_eq!(cache.with_prefix("x").with_prefix("p").get::<usize>("a").unwrap(), Some(3));
        assert_eq!((views[4].prefix(), views[4].version()), ("p", 2));
    });
}

#[test]
fn the_builder_sets_prefix_and_version() {
    for_each_backend(|make| {
        let cache = make.builder().key_prefix("p").version(7).open().unwrap();
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(cache.with_prefix("p").with_version(7).get::<u8>("a").unwrap(), Some(1));
        assert_eq!(cache.with_prefix("").get::<u8>("a").unwrap(), None);
    });
}

#[test]
fn prefixes_with_colons_collide_as_in_django() {
    with_cache(|cache, _| {
        cache.with_prefix("a:1").set("x", &1, Timeout::Default).unwrap();
        assert_eq!(cache.with_prefix("a").get::<u8>("1:x").unwrap(), Some(1));
    });
}

#[test]
fn any_string_is_a_valid_key() {
    with_cache(|cache, _| {
        let keys = ["", " ", "\0", "\n", "ключ", "🗝", ":", "a:b", "%s", "../../etc/passwd"];
        for (n, key) in keys.iter().enumerate() {
            cache.set(key, &n, Timeout::Default).unwrap();
        }
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(cache.get::<usize>(key).unwrap(), Some(n), "{key:?}");
        }
    });
}

#[test]
fn a_stored_key_has_at_most_64_kib() {
    with_cache(|cache, _| {
        let longest = "k".repeat(65_536 - ":1:".len());
        cache.set(&longest, &1, Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>(&longest).unwrap(), Some(1));
        let longer = longest + "k";
        let error = cache.set(&longer, &1, Timeout::Default).unwrap_err();
        assert_eq!(
            (error.kind(), error.operation(), error.key()),
            (ErrorKind::InvalidKey, "set", Some(&*longer))
        );
        assert_eq!(cache.get::<u8>(&longer).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(
            cache.get_or_set(&longer, Timeout::Default, || 1).unwrap_err().kind(),
            ErrorKind::InvalidKey
        );
        assert_eq!(cache.len(), 1);
    });
}

#[test]
fn a_key_function_is_called_on_every_call() {
    for_each_backend(|make| {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let function = move |prefix: &str, version: i64, key: &str| {
            counted.fetch_add(1, SeqCst);
            format!("{key}|{version}|{prefix}")
        };
        let cache = make.builder().key_prefix("p").key_function(function).open().unwrap();
        cache.set("a", &1, Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        assert_eq!(cache.with_version(2).get::<u8>("a").unwrap(), None);
        assert_eq!(calls.load(SeqCst), 3);
        assert_eq!(cache.keys().next().unwrap().unwrap(), "a|1|p");
    });
}

#[test]
fn long_keys_can_be_hashed() {
    for_each_backend(|make| {
        let cache = make.builder().key_function(hash_long_keys).portable_keys(true).open().unwrap();
        let long = |last: &str| "k".repeat(1_000_000) + last;
        cache.set(&long("a"), "a", Timeout::Default).unwrap();
        cache.set(&long("b"), "b", Timeout::Default).unwrap();
        assert_eq!(cache.get::<String>(&long("a")).unwrap().as_deref(), Some("a"));
        assert_eq!(cache.get::<String>(&long("b")).unwrap().as_deref(), Some("b"));
        cache.set("short", "s", Timeout::Default).unwrap();
        assert!(cache.keys().any(|key| key.unwrap() == ":1:short"));
    });
}

#[test]
fn portable_keys_refuses_keys_that_memcached_refuses() {
    for_each_backend(|make| {
        let cache = make.builder().portable_keys(true).open().unwrap();
        cache.set(&"ü".repeat(247), &1, Timeout::Default).unwrap();
        for bad in ["ü".repeat(248), "a b".into(), "a\tb".into(), "a\u{7f}".into(), "\0".into()] {
            let error = cache.set(&bad, &1, Timeout::Default).unwrap_err();
            assert_eq!(
                (error.kind(), error.key()),
                (ErrorKind::InvalidKey, Some(&*bad)),
                "{bad:?}"
            );
            assert_eq!(cache.get::<u8>(&bad).unwrap_err().kind(), ErrorKind::InvalidKey, "{bad:?}");
        }
        assert_eq!(cache.len(), 1);
    });
}
