//! The dummy backend: keeps nothing, and every write succeeds, as with Django's.

use keepwarm::{Cache, ErrorKind, Timeout};

#[test]
fn it_keeps_nothing() {
    let cache = Cache::dummy();
    cache.set("a", &1, Timeout::Never).unwrap();
    cache.set_bytes("b", b"b", Timeout::Never).unwrap();
    assert_eq!(cache.get::<u8>("a").unwrap(), None);
    assert_eq!(cache.get_bytes("b").unwrap(), None);
    assert!(cache.add("a", &1, Timeout::Never).unwrap());
    assert!(!cache.touch("a", Timeout::Never).unwrap());
    assert!(!cache.delete("a").unwrap());
    assert!(!cache.contains_key("a").unwrap());
    assert_eq!(cache.ttl("a").unwrap(), None);
    assert_eq!(cache.incr("a", 1).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(cache.incr_or_init("a", 1, 1, Timeout::Never).unwrap(), 2);
    assert_eq!(cache.incr_version("a", 1).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(cache.keys().count(), 0);
    cache.clear().unwrap();
    assert!(cache.is_empty());
}

#[test]
fn get_or_set_computes_every_time() {
    let cache = Cache::dummy();
    for n in 0..3 {
        assert_eq!(cache.get_or_set("a", Timeout::Never, || n).unwrap(), n);
    }
}

#[test]
fn it_checks_keys_like_the_other_backends() {
    let cache = Cache::dummy();
    assert_eq!(
        cache.set(&"k".repeat(70_000), &1, Timeout::Never).unwrap_err().kind(),
        ErrorKind::InvalidKey
    );
}
