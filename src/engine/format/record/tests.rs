use super::*;

const PLACE: RecordPlace = RecordPlace { salt: 0x1234_5678_9abc_def0, offset: 4096 };

fn encoded(kind: Kind, flags: u16, key: &[u8], body: &[u8], stamp: Stamp) -> Vec<u8> {
    let draft = Draft {
        kind,
        codec: Codec::Raw,
        flags,
        key_len: key.len() as u32,
        body_len: body.len() as u32,
    };
    let len = draft.len().unwrap();
    let (words, check) = Prepared::new(draft, len, PLACE, key, [&[], body]).stamp(stamp);
    let mut bytes = Vec::new();
    bytes.extend(len.to_le_bytes());
    bytes.extend(check.to_le_bytes());
    words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    bytes.extend(key);
    bytes.extend(body);
    bytes.resize(len as usize, 0);
    bytes
}

const STAMP: Stamp =
    Stamp { sequence: 77, generation: 3, expires_at: Some(Timestamp::from_millis(123)) };

#[test]
fn an_encoded_record_is_decoded() {
    for (kind, key, body) in [
        (Kind::Value, &b"key"[..], &b"value"[..]),
        (Kind::Tombstone, b"", b""),
        (Kind::Clear, b"", b""),
    ] {
        let bytes = encoded(kind, 0, key, body, STAMP);
        let record = Record::decode(&bytes, PLACE).unwrap();
        assert_eq!((record.kind, record.key, record.value()), (kind, key, Some(body)));
        assert_eq!(
            (record.sequence, record.generation, record.expires_at),
            (77, 3, STAMP.expires_at)
        );
    }
    let forever = encoded(Kind::Value, 0, b"k", b"v", Stamp { expires_at: None, ..STAMP });
    assert_eq!(Record::decode(&forever, PLACE).unwrap().expires_at, None);
}

#[test]
fn a_missing_sector_is_torn_and_a_flipped_bit_is_damage() {
    // The body begins at 4096 + 40 + 3.
    let bytes = encoded(Kind::Value, 0, b"key", &[7; 2000], STAMP);
    let torn =
        |bytes: &[u8]| Record::decode(bytes, PLACE).map(|r| (r.is_torn(), r.value().is_some()));
    assert_eq!(torn(&bytes), Some((false, true)));
    for missing in [43..512, 512..1024, 1024..1536, 1536..2043, 43..2043] {
        let mut part = bytes.clone();
        part[missing.clone()].fill(0);
        assert_eq!(torn(&part), Some((true, false)), "{missing:?}");
    }
    for flipped in [43, 511, 512, 2042] {
        let mut part = bytes.clone();
        part[flipped] ^= 0x10;
        assert_eq!(torn(&part), Some((false, false)), "byte {flipped}");
    }
    let mut zeros = encoded(Kind::Value, 0, b"key", &[0; 2000], STAMP);
    assert_eq!(torn(&zeros), Some((false, true)), "zeros that were stored");
    zeros[600] = 1;
    assert_eq!(torn(&zeros).map(|(_, sound)| sound), Some(false));
}

#[test]
fn optional_fields_come_before_the_value() {
    let mut body = 5u64.to_le_bytes().to_vec();
    body.extend(3u32.to_le_bytes());
    body.extend(b"tagvalue");
    let bytes = encoded(Kind::Value, FLAG_STALE_AT | FLAG_TAGS, b"k", &body, STAMP);
    assert_eq!(Record::decode(&bytes, PLACE).unwrap().value(), Some(&b"value"[..]));
}

#[test]
fn freshness_is_stored_with_the_value() {
    let softs = [
        Soft::default(),
        Soft { stale_at: Some(Timestamp::from_millis(5)), took: None },
        Soft { stale_at: None, took: Some(7) },
        Soft { stale_at: Some(Timestamp::MAX), took: Some(u32::MAX) },
    ];
    for soft in softs {
        let fields = Fields::new(soft);
        let body = [fields.bytes(), b"value"].concat();
        let bytes = encoded(Kind::Value, fields.flags, b"k", &body, STAMP);
        let record = Record::decode(&bytes, PLACE).unwrap();
        assert_eq!(record.content(), Some((soft, &b"value"[..])));
        let (flags, body) = touched(record.flags, record.verified_body().unwrap()).unwrap();
        let bytes = encoded(Kind::Value, flags, b"k", body, STAMP);
        assert_eq!(
            Record::decode(&bytes, PLACE).unwrap().content(),
            Some((soft.touched(), &b"value"[..]))
        );
    }
    // Flags for fields that the body is too short for.
    for flags in [FLAG_STALE_AT, FLAG_TOOK, FLAG_TAGS] {
        let bytes = encoded(Kind::Value, flags, b"k", b"abc", STAMP);
        assert_eq!(Record::decode(&bytes, PLACE).unwrap().content(), None);
    }
}

#[test]
fn any_flipped_bit_is_detected() {
    let bytes = encoded(Kind::Value, 0, b"a key", b"a value", STAMP);
    let used = HEADER_LEN + b"a keya value".len();
    for bit in 0..used * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let value = Record::decode(&bytes, PLACE).and_then(|r| r.value().map(<[u8]>::to_vec));
        assert_eq!(value, None, "bit {bit}");
    }
}

#[test]
fn a_record_is_valid_only_at_its_position() {
    let bytes = encoded(Kind::Value, 0, b"k", b"v", STAMP);
    assert!(Record::decode(&bytes, PLACE).is_some());
    assert!(Record::decode(&bytes, RecordPlace { offset: 8192, ..PLACE }).is_none());
    assert!(Record::decode(&bytes, RecordPlace { salt: 1, ..PLACE }).is_none());
}

#[test]
fn truncated_and_zero_bytes_are_no_record() {
    let bytes = encoded(Kind::Value, 0, b"key", b"value", STAMP);
    for len in 0..bytes.len() {
        assert!(Record::decode(&bytes[..len], PLACE).is_none(), "{len}");
    }
    assert!(Record::decode(&[0; 64], PLACE).is_none());
}
