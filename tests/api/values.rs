//! Values: returned as they were stored, or a decode error; never a wrong value.

use std::collections::BTreeMap;

use keepwarm::{Cache, ErrorKind, Timeout};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::with_cache;

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    cache: &Cache,
    value: T,
) {
    cache.set("a", &value, Timeout::Default).unwrap();
    assert_eq!(cache.get::<T>("a").unwrap(), Some(value));
}

#[test]
fn values_of_many_types_round_trip() {
    with_cache(|cache, _| {
        round_trip(&cache, String::new());
        round_trip(&cache, "x".repeat(1_000_000));
        round_trip(&cache, (u64::MAX, i64::MIN, f64::MIN_POSITIVE, true, 'ß'));
        round_trip(&cache, vec![Some(1.5), None]);
        round_trip(
            &cache,
            BTreeMap::from([("a".to_owned(), vec![1u8, 2]), ("b".to_owned(), vec![])]),
        );
        round_trip(
            &cache,
            serde_json::json!({"a": [1, -1, 1.0, null, "x", true, 18446744073709551615u64]}),
        );
        round_trip(&cache, Ok::<u8, String>(1));
    });
}

#[test]
fn a_stored_null_is_a_hit() {
    with_cache(|cache, _| {
        cache.set("a", &None::<u8>, Timeout::Default).unwrap();
        assert_eq!(cache.get::<Option<u8>>("a").unwrap(), Some(None));
        assert_eq!(cache.get::<()>("a").unwrap(), Some(()));
        assert!(cache.contains_key("a").unwrap());
        assert!(!cache.add("a", &1, Timeout::Default).unwrap());
        assert_eq!(cache.get::<Option<u8>>("missing").unwrap(), None);
        assert_eq!(cache.get::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
    });
}

#[test]
fn a_value_of_another_type_is_a_decode_error() {
    with_cache(|cache, _| {
        cache.set("a", "text", Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(cache.get::<Vec<String>>("a").unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(cache.get_entry::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
        cache.set("a", &300, Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
        // The entry is unchanged.
        assert_eq!(cache.get::<u16>("a").unwrap(), Some(300));
    });
}

#[test]
fn reordered_fields_keep_their_values() {
    #[derive(Serialize)]
    struct Before {
        from: u32,
        to: u32,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    struct After {
        to: u32,
        #[serde(default)]
        by: u32,
        from: u32,
    }
    with_cache(|cache, _| {
        cache.set("a", &Before { from: 1, to: 2 }, Timeout::Default).unwrap();
        assert_eq!(cache.get::<After>("a").unwrap(), Some(After { to: 2, by: 0, from: 1 }));
    });
}

#[test]
fn a_longer_value_does_not_decode_as_a_shorter_one() {
    with_cache(|cache, _| {
        cache.set("a", &(1, 2, 3), Timeout::Default).unwrap();
        assert_eq!(cache.get::<(u8, u8)>("a").unwrap_err().kind(), ErrorKind::Decode);
        // A byte array is one value: it must not decode as its first element.
        cache.set_bytes("b", b"\x01\x02", Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("b").unwrap_err().kind(), ErrorKind::Decode);
    });
}

#[test]
fn a_panic_while_encoding_changes_nothing() {
    struct Half;
    impl Serialize for Half {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeSeq;
            serializer.serialize_seq(Some(2))?.serialize_element("half")?;
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
    with_cache(|cache, _| {
        cache.set("a", &1, Timeout::Default).unwrap();
        let set = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cache.set("a", &Half, Timeout::Default)
        }));
        assert!(set.is_err());
        assert_eq!(cache.get::<u8>("a").unwrap(), Some(1));
        cache.set("b", &2, Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("b").unwrap(), Some(2));
    });
}

#[test]
fn a_value_may_call_the_cache_while_encoding_and_decoding() {
    use std::cell::RefCell;
    thread_local! { static CACHE: RefCell<Option<Cache>> = const { RefCell::new(None) }; }
    fn cache() -> Cache {
        CACHE.with_borrow(|cache| cache.clone().unwrap())
    }
    #[derive(Debug, PartialEq)]
    struct CallsCache;
    impl Serialize for CallsCache {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            cache().set("other", "while it is stored", Timeout::Default).unwrap();
            serializer.serialize_u8(9)
        }
    }
    impl<'de> Deserialize<'de> for CallsCache {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            assert_eq!(
                cache().get::<String>("other").unwrap().as_deref(),
                Some("while it is stored")
            );
            cache().set("other", "while it is read", Timeout::Default).unwrap();
            u8::deserialize(deserializer).map(|_| CallsCache)
        }
    }
    with_cache(|new, _| {
        CACHE.set(Some(new));
        cache().set("a", &CallsCache, Timeout::Default).unwrap();
        assert_eq!(cache().get::<CallsCache>("a").unwrap(), Some(CallsCache));
        assert_eq!(cache().get::<String>("other").unwrap().as_deref(), Some("while it is read"));
        CACHE.set(None);
    });
}
