use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::*;
use crate::entry::Soft;

fn item(value: &[u8], codec: Codec) -> Item<'_> {
    Item { value, codec, expires_at: None, soft: Soft::default(), token: 1 }
}

fn packed<T: DeserializeOwned>(value: &[u8]) -> Result<T> {
    decode(item(value, Codec::MessagePack))
}

fn raw<T: DeserializeOwned>(value: &[u8]) -> Result<T> {
    decode(item(value, Codec::Raw))
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: T) {
    let encoded = encode(&value).unwrap();
    assert_eq!(packed::<T>(&encoded).unwrap(), value, "{:x?}", &*encoded);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Byte(u8),
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Colour(u8, u8, u8),
    Named { bytes: Vec<u8> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flattened {
    id: u8,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Rest {
    digest: [u8; 4],
    body: Vec<u8>,
    note: Option<String>,
    wide: (u64, i64, f64, String),
}

#[test]
fn values_round_trip() {
    round_trip(());
    round_trip(None::<u8>);
    round_trip(vec![1u8, 255]);
    round_trip(Vec::<u8>::new());
    round_trip([0u8; 32]);
    round_trip((1u8, "a".to_owned()));
    round_trip((1u8, 2u8, 300u16));
    round_trip((1u8,));
    round_trip(vec![(1u8, 2u8), (3, 4)]);
    round_trip(vec![Some(1u8), None]);
    round_trip(vec![Untagged::Byte(1), Untagged::Text("a".into())]);
    round_trip(Untagged::Bytes(vec![1, 200]));
    round_trip([Shape::Point, Shape::Circle(0.5)]);
    round_trip(Shape::Colour(1, 2, 200));
    round_trip(Shape::Named { bytes: vec![7] });
    round_trip(BTreeMap::from([(vec![1u8], i64::MIN), (vec![], i64::MAX)]));
    round_trip((i128::MIN, u128::MAX, f32::MAX, 'ß'));
}

#[test]
fn byte_arrays_in_flattened_structs_round_trip() {
    let rest = Rest {
        digest: [1, 2, 3, 200],
        body: vec![9; 300],
        note: Some("x".repeat(300)),
        wide: (u64::MAX, i64::MIN, 0.5, "y".repeat(70_000)),
    };
    round_trip(Flattened { id: 1, rest });
}

#[test]
fn byte_arrays_are_stored_as_bin() {
    assert_eq!(&*encode(&vec![1u8, 2]).unwrap(), [0xc4, 2, 1, 2]);
    assert_eq!(&*encode(&[1u8, 200]).unwrap(), [0xc4, 2, 1, 200]);
    assert_eq!(&*encode([1u8, 2].as_slice()).unwrap(), [0xc4, 2, 1, 2]);
    assert_eq!(&*encode(&vec![1u16, 2]).unwrap(), [0x92, 1, 2]);
}

#[test]
fn structs_are_stored_with_field_names() {
    #[derive(Serialize)]
    struct Old {
        width: u32,
        height: u32,
    }
    #[derive(Deserialize, PartialEq, Debug)]
    struct New {
        height: u32,
        width: u32,
    }
    let encoded = encode(&Old { width: 1, height: 2 }).unwrap();
    assert_eq!(packed::<New>(&encoded).unwrap(), New { height: 2, width: 1 });
}

#[test]
fn bytes_after_the_value_are_refused() {
    assert_eq!(packed::<u8>(&[1]).unwrap(), 1);
    for after in 0..=255 {
        assert_eq!(packed::<u8>(&[1, after]).unwrap_err().kind(), ErrorKind::Decode, "{after:x}");
    }
    assert_eq!(packed::<(u8, u8)>(&[0x93, 1, 2, 3]).unwrap_err().kind(), ErrorKind::Decode);
}

#[test]
fn damaged_bytes_are_a_decode_error() {
    let whole = encode(&(vec![1u8; 5], "text", [1u64, 1 << 40])).unwrap();
    for len in 0..whole.len() {
        assert!(packed::<(Vec<u8>, String, [u64; 2])>(&whole[..len]).is_err());
        widen::bin_to_arrays(&whole[..len]);
    }
    // A bin whose header claims 4 GiB.
    assert!(packed::<Vec<u8>>(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
    assert!(packed::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
}

#[test]
fn raw_bytes_decode_only_as_byte_types() {
    assert_eq!(raw::<Vec<u8>>(b"ab").unwrap(), b"ab");
    assert_eq!(raw::<serde_bytes::ByteBuf>(b"ab").unwrap().into_vec(), b"ab");
    assert_eq!(raw::<Option<serde_bytes::ByteBuf>>(b"").unwrap().unwrap().into_vec(), b"");
    assert_eq!(raw::<[u8; 2]>(b"ab").unwrap(), *b"ab");
    assert!(raw::<[u8; 2]>(b"abc").is_err());
    assert!(raw::<String>(b"ab").is_err());
    assert!(raw::<u8>(b"a").is_err());
    assert!(raw::<Shape>(b"Point").is_err());
    assert!(raw::<()>(b"").is_err());
}

#[test]
fn get_bytes_accepts_only_byte_arrays() {
    let bytes = |value: &'static [u8], codec| {
        into_bytes(Stored {
            value: Bytes::from_static(value),
            codec,
            expires_at: None,
            soft: Soft::default(),
            token: 1,
        })
    };
    assert_eq!(bytes(b"\x01", Codec::Raw).unwrap(), b"\x01"[..]);
    assert_eq!(bytes(b"\xc4\x01a", Codec::MessagePack).unwrap(), b"a"[..]);
    assert_eq!(bytes(b"\x90", Codec::MessagePack).unwrap(), b""[..]);
    assert_eq!(bytes(b"\x92\x01\x7f", Codec::MessagePack).unwrap(), b"\x01\x7f"[..]);
    for other in
        [&b"\x01"[..], b"\xa1a", b"\xc4\x01", b"\xc4\x01ab", b"\x91\xcd\x01\x00", b"\x91", b""]
    {
        assert_eq!(
            bytes(other, Codec::MessagePack).unwrap_err().kind(),
            ErrorKind::Decode,
            "{other:x?}"
        );
    }
}

#[test]
fn only_integers_can_be_counted() {
    let integer = |value: &[u8]| decode_integer(item(value, Codec::MessagePack));
    for value in [0, 1, -1, 127, 128, -32, -33, 255, 256, -129, 65_536, -32_769, i64::MAX, i64::MIN]
    {
        assert_eq!(integer(&encode(&value).unwrap()).unwrap(), i128::from(value));
        assert_eq!(integer(&encode_integer(value)).unwrap(), i128::from(value));
    }
    assert_eq!(integer(&encode(&200u8).unwrap()).unwrap(), 200);
    assert_eq!(integer(&encode(&u64::MAX).unwrap()).unwrap(), i128::from(u64::MAX));
    for other in [
        &encode(&1.0f64).unwrap()[..],
        &encode(&true).unwrap(),
        &encode("1").unwrap(),
        b"",
        b"\x01\x01",
    ] {
        assert_eq!(integer(other).unwrap_err().kind(), ErrorKind::NotAnInteger, "{other:x?}");
    }
    assert!(decode_integer(item(&[1], Codec::Raw)).is_err());
}

#[test]
fn a_panicking_serialize_returns_an_empty_buffer() {
    struct Half;
    impl Serialize for Half {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::SerializeSeq;
            serializer.serialize_seq(Some(2))?.serialize_element("half")?;
            panic!("on purpose");
        }
    }
    assert!(std::panic::catch_unwind(|| encode(&Half).map(|_| ())).is_err());
    assert_eq!(&*encode(&1u8).unwrap(), [1]);
}

#[test]
fn a_failing_serialize_is_an_encode_error() {
    struct Fails;
    impl Serialize for Fails {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("on purpose"))
        }
    }
    let error = encode(&Fails).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    assert!(error.to_string().contains("on purpose"));
    assert_eq!(&*encode(&1u8).unwrap(), [1]);
}

#[test]
fn get_bytes_reads_every_byte_array_of_set() {
    let long = if cfg!(miri) { 300 } else { 70_000 };
    for bytes in [vec![], vec![1u8], vec![200], vec![0; 15], vec![127; 16], vec![255; long]] {
        let value = Bytes::copy_from_slice(&encode(&bytes).unwrap());
        let stored = Stored {
            value,
            codec: Codec::MessagePack,
            expires_at: None,
            soft: Soft::default(),
            token: 1,
        };
        assert_eq!(into_bytes(stored).unwrap(), bytes);
    }
    for array in [[0u8; 4], [127; 4], [200; 4]] {
        let value = Bytes::copy_from_slice(&encode(&array).unwrap());
        let stored = Stored {
            value,
            codec: Codec::MessagePack,
            expires_at: None,
            soft: Soft::default(),
            token: 1,
        };
        assert_eq!(into_bytes(stored).unwrap(), array[..]);
    }
}
