//! Iteration: `keys` and `iter` return each entry of this view once.

use std::collections::BTreeMap;

use keepwarm::{ErrorKind, Timeout};

use crate::{for_each_backend, secs, with_cache};

fn sorted(keys: impl Iterator<Item = keepwarm::Result<String>>) -> Vec<String> {
    let mut keys: Vec<String> = keys.map(Result::unwrap).collect();
    keys.sort();
    keys
}

#[test]
fn each_entry_is_returned_once() {
    with_cache(|cache, _| {
        let all: BTreeMap<String, u32> = (0..3000).map(|n| (format!("key {n}"), n)).collect();
        assert!(cache.set_many(&all, Timeout::Default).is_empty());
        let seen: Vec<(String, u32)> = cache.iter().map(Result::unwrap).collect();
        assert_eq!(seen.len(), all.len());
        assert_eq!(seen.into_iter().collect::<BTreeMap<_, _>>(), all);
        assert_eq!(sorted(cache.keys()), all.into_keys().collect::<Vec<_>>());
    });
}

#[test]
fn entries_of_other_views_are_left_out() {
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Default).unwrap();
        cache.set("", &1, Timeout::Default).unwrap();
        cache.with_version(11).set("b", &2, Timeout::Default).unwrap();
        cache.with_prefix("p").set("c", &3, Timeout::Default).unwrap();
        cache.with_prefix("p2").set("d", &4, Timeout::Default).unwrap();
        assert_eq!(sorted(cache.keys()), ["", "a"]);
        assert_eq!(sorted(cache.with_version(11).keys()), ["b"]);
        assert_eq!(sorted(cache.with_prefix("p").keys()), ["c"]);
        assert_eq!(sorted(cache.with_prefix("q").keys()), [""; 0]);
    });
}

#[test]
fn with_a_key_function_the_stored_keys_are_returned() {
    for_each_backend(|make| {
        let cache = make
            .builder()
            .key_function(|prefix, version, key| format!("{key}@{version}{prefix}"))
            .open()
            .unwrap();
        cache.set("a", &1, Timeout::Default).unwrap();
        cache.with_version(2).set("b", &2, Timeout::Default).unwrap();
        assert_eq!(sorted(cache.keys()), ["a@1", "b@2"]);
    });
}

#[test]
fn expired_entries_are_left_out() {
    with_cache(|cache, clock| {
        cache.set("a", &1, secs(1)).unwrap();
        cache.set("b", &2, secs(2)).unwrap();
        clock.advance(secs(1));
        assert_eq!(sorted(cache.keys()), ["b"]);
    });
}

#[test]
fn a_value_of_another_type_is_one_error_only() {
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Default).unwrap();
        cache.set("b", "text", Timeout::Default).unwrap();
        cache.set("c", &3, Timeout::Default).unwrap();
        let (values, errors): (Vec<_>, Vec<_>) = cache.iter::<u8>().partition(Result::is_ok);
        assert_eq!(values.len(), 2);
        let errors: Vec<_> = errors.into_iter().map(Result::unwrap_err).collect();
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].kind(), errors[0].key()), (ErrorKind::Decode, Some("b")));
    });
}

#[test]
fn changes_during_iteration_neither_skip_nor_repeat() {
    with_cache(|cache, _| {
        for n in 0..1000 {
            cache.set(&format!("stays {n}"), &n, Timeout::Default).unwrap();
        }
        let mut seen = BTreeMap::new();
        for (n, key) in cache.keys().enumerate() {
            *seen.entry(key.unwrap()).or_insert(0) += 1;
            cache.set(&format!("comes {}", n % 100), &n, Timeout::Default).unwrap();
            cache.set(&format!("stays {}", n % 1000), &0, Timeout::Default).unwrap();
        }
        for n in 0..1000 {
            assert_eq!(seen.get(&format!("stays {n}")), Some(&1), "{n}");
        }
    });
}
