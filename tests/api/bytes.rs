//! Byte values: raw bytes are stored unchanged; typed byte arrays are stored as MessagePack bin.

use keepwarm::{ErrorKind, Timeout};
use serde_bytes::ByteBuf;

use crate::with_cache;

#[test]
fn bytes_are_returned_unchanged() {
    with_cache(|cache, _| {
        for bytes in [&b""[..], b"\x00", b"\xc0", &[0xff; 100_000]] {
            cache.set_bytes("a", bytes, Timeout::Default).unwrap();
            assert_eq!(cache.get_bytes("a").unwrap().as_deref(), Some(bytes));
            assert_eq!(cache.get::<Vec<u8>>("a").unwrap().as_deref(), Some(bytes));
            assert_eq!(
                cache.get::<ByteBuf>("a").unwrap().map(ByteBuf::into_vec).as_deref(),
                Some(bytes)
            );
        }
        assert_eq!(cache.get_bytes("missing").unwrap(), None);
    });
}

#[test]
fn bytes_stay_readable_after_the_entry_is_removed() {
    with_cache(|cache, _| {
        cache.set_bytes("a", &[7; 10_000], Timeout::Default).unwrap();
        let bytes = cache.get_bytes("a").unwrap().unwrap();
        cache.set_bytes("a", &[8; 10_000], Timeout::Default).unwrap();
        cache.clear().unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn get_bytes_reads_a_typed_byte_array() {
    with_cache(|cache, _| {
        cache.set("vec", &vec![1u8, 2, 255], Timeout::Default).unwrap();
        cache.set("array", &[1u8, 2, 255], Timeout::Default).unwrap();
        cache.set("small", &[1u8, 2, 3], Timeout::Default).unwrap();
        cache.set("buf", &ByteBuf::from([1, 2, 255]), Timeout::Default).unwrap();
        cache.set("empty", &Vec::<u8>::new(), Timeout::Default).unwrap();
        for key in ["vec", "array", "buf"] {
            assert_eq!(cache.get_bytes(key).unwrap().as_deref(), Some(&[1, 2, 255][..]), "{key}");
            assert_eq!(
                cache.get::<Vec<u8>>(key).unwrap().as_deref(),
                Some(&[1, 2, 255][..]),
                "{key}"
            );
        }
        assert_eq!(cache.get_bytes("small").unwrap().as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(cache.get_bytes("empty").unwrap().as_deref(), Some(&[][..]));
    });
}

#[test]
fn a_typed_byte_array_takes_one_byte_per_element() {
    with_cache(|cache, _| {
        let used = |value: &dyn Fn()| {
            cache.clear().unwrap();
            value();
            cache.stats().bytes
        };
        let raw = used(&|| cache.set_bytes("a", &[200; 500_000], Timeout::Default).unwrap());
        let typed = used(&|| cache.set("a", &vec![200u8; 500_000], Timeout::Default).unwrap());
        assert!(typed < raw + 100_000, "typed array: {typed} bytes; raw bytes: {raw} bytes");
    });
}

#[test]
fn get_bytes_of_another_type_is_a_decode_error() {
    with_cache(|cache, _| {
        cache.set("text", "abc", Timeout::Default).unwrap();
        cache.set("integer", &1, Timeout::Default).unwrap();
        cache.set("list", &["a"], Timeout::Default).unwrap();
        cache.set("null", &None::<Vec<u8>>, Timeout::Default).unwrap();
        for key in ["text", "integer", "list", "null"] {
            let error = cache.get_bytes(key).unwrap_err();
            assert_eq!((error.kind(), error.key()), (ErrorKind::Decode, Some(key)));
        }
    });
}

#[test]
fn raw_bytes_decode_as_no_other_type() {
    with_cache(|cache, _| {
        // 0x01 would be the MessagePack of 1.
        cache.set_bytes("a", b"\x01", Timeout::Default).unwrap();
        assert_eq!(cache.get::<u8>("a").unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(cache.get::<String>("a").unwrap_err().kind(), ErrorKind::Decode);
        assert_eq!(cache.get::<Option<u8>>("a").unwrap_err().kind(), ErrorKind::Decode);
    });
}
