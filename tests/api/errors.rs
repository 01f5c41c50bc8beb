//! Errors: each names the operation, the key, and the cause.

use std::error::Error as _;

use keepwarm::{ErrorKind, Timeout};

use crate::with_cache;

#[test]
fn errors_name_the_call_and_the_key_of_the_caller() {
    with_cache(|cache, _| {
        let cache = cache.with_prefix("prefix");
        cache.set("a", "text", Timeout::Default).unwrap();
        let error = cache.get::<u8>("a").unwrap_err();
        assert_eq!(
            (error.kind(), error.operation(), error.key()),
            (ErrorKind::Decode, "get", Some("a"))
        );
        assert!(error.source().is_some());
        assert!(error.to_string().starts_with("get \"a\": "), "{error}");
        let error = cache.decr("missing", 1).unwrap_err();
        assert_eq!(
            (error.kind(), error.operation(), error.key()),
            (ErrorKind::NotFound, "decr", Some("missing"))
        );
    });
}

#[test]
fn a_value_that_is_too_large_changes_nothing() {
    crate::for_each_backend(|make| {
        let cache = make.builder().max_bytes(4 << 20).open().unwrap();
        cache.set("a", "small", Timeout::Never).unwrap();
        cache.set("b", "small", Timeout::Never).unwrap();
        let large = "x".repeat(5 << 20);
        for result in [
            cache.set("a", &large, Timeout::Never),
            cache.set_bytes("a", large.as_bytes(), Timeout::Never),
            cache.add("new", &large, Timeout::Never).map(|_| ()),
        ] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ValueTooLarge);
        }
        assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("small"));
        assert_eq!(cache.get::<String>("b").unwrap().as_deref(), Some("small"));
        assert_eq!(cache.len(), 2);
    });
}
