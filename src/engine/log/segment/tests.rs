use super::*;
use crate::engine::format::record::Kind;
use crate::entry::Codec;
use crate::sys::storage::SYSTEM;

struct Appender {
    segment: Segment,
    tail: u32,
    sequence: u64,
    _dir: tempfile::TempDir,
}

fn log() -> Appender {
    let dir = tempfile::tempdir().unwrap();
    let segment =
        Segment::create(SYSTEM, dir.path(), 9, 16 << 10, false, &SpaceInUse::default()).unwrap();
    Appender { segment, tail: segment_header::LEN as u32, sequence: 0, _dir: dir }
}

impl Appender {
    fn append(&mut self, key: &[u8], body: &[u8], stamped: bool) -> u32 {
        let draft = Draft {
            kind: Kind::Value,
            codec: Codec::Raw,
            flags: 0,
            key_len: key.len() as u32,
            body_len: body.len() as u32,
        };
        let (at, len) = (self.tail, draft.len().unwrap());
        self.segment.begin(at, len);
        let prepared = self.segment.prepare(at, len, draft, key, [&[], body]);
        self.sequence += 1;
        if stamped {
            let stamp = Stamp { sequence: self.sequence, generation: 0, expires_at: None };
            self.segment.stamp(at, &prepared, stamp);
        }
        self.segment.finish();
        self.tail += len;
        at
    }

    fn keys(&self) -> Vec<String> {
        self.segment.records().map(|(_, r)| String::from_utf8(r.key.to_vec()).unwrap()).collect()
    }
}

#[test]
fn a_scan_skips_records_that_were_never_stamped() {
    let mut log = log();
    log.append(b"a", b"1", true);
    log.append(b"b", b"22222222222222", false);
    log.append(b"c", &[7; 3000], true);
    log.append(b"d", b"", false);
    assert_eq!(log.keys(), ["a", "c"]);
    assert!(log.segment.is_drained());
}

#[test]
fn a_scan_finds_what_follows_any_damage() {
    let mut log = log();
    for key in ["a", "b", "c", "d"] {
        log.append(key.as_bytes(), &[1; 100], true);
    }
    let b = log.segment.records().nth(1).unwrap().0;
    for offset in b..b + 40 {
        for flip in [0x01, 0x80, 0xff] {
            let before = log.segment.map.bytes(offset as usize, 1).unwrap()[0];
            assert!(log.segment.map.fill(offset as usize, &[before ^ flip]));
            assert_eq!(log.keys(), ["a", "c", "d"], "offset {offset} flip {flip}");
            assert!(log.segment.map.fill(offset as usize, &[before]));
        }
    }
    assert_eq!(log.keys(), ["a", "b", "c", "d"]);
}

#[test]
fn a_scan_finds_what_follows_a_page_of_zeros() {
    let mut log = log();
    for i in 0..100u32 {
        log.append(&i.to_le_bytes(), &[1; 100], true);
    }
    assert!(log.segment.map.fill(4096, &[0; 4096]));
    let left = log.segment.records().count();
    assert!((70..=75).contains(&left), "{left} of 100, with 144 bytes each and 4096 bytes gone");
}

#[test]
fn a_stored_value_is_not_taken_for_a_record() {
    let mut log = log();
    let at = log.append(b"inner", b"value", true);
    let len = record::stored_len(&log.segment.map, at).unwrap();
    let copy = log.segment.map.bytes(at as usize, len as usize).unwrap().to_vec();
    log.append(b"outer", &copy, false);
    assert_eq!(log.keys(), ["inner"]);
}

#[test]
fn an_opened_file_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let space = SpaceInUse::default();
    let segment = Segment::create(SYSTEM, dir.path(), 3, 16 << 10, false, &space).unwrap();
    let path = segment.path.clone();
    assert_eq!(space.bytes(), 0, "the table counts it");
    segment.count_as_held();
    assert_eq!(space.bytes(), 16 << 10, "until it is removed");
    drop(segment);
    assert_eq!(space.bytes(), 0);
    assert!(matches!(
        Segment::open(SYSTEM, &path, 3, Access::ToWrite, &space).unwrap(),
        SegmentFile::Segment(_)
    ));
    assert!(
        matches!(
            Segment::open(SYSTEM, &path, 4, Access::ToWrite, &space).unwrap(),
            SegmentFile::Foreign
        ),
        "another id"
    );
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert!(
        matches!(
            Segment::open(SYSTEM, &path, 3, Access::ToWrite, &space).unwrap(),
            SegmentFile::Foreign
        ),
        "truncated"
    );
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(
        Segment::open(SYSTEM, &path, 3, Access::ToWrite, &space).unwrap(),
        SegmentFile::Incomplete
    ));
    for len in [1, 63, 64, 100] {
        std::fs::write(&path, &[1; 100][..len]).unwrap();
        assert!(
            matches!(
                Segment::open(SYSTEM, &path, 3, Access::ToWrite, &space).unwrap(),
                SegmentFile::Foreign
            ),
            "{len}"
        );
    }
}

#[test]
fn file_names_encode_ids() {
    assert_eq!(Segment::id_of("000000ff.seg"), Some(255));
    for name in ["ff.seg", "000000FF.seg", "00000000.seg", "000000ff", "+00000ff.seg"] {
        assert_eq!(Segment::id_of(name), None, "{name}");
    }
}

#[test]
fn a_segment_beyond_the_greatest_length_is_foreign() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(Segment::file_name(3));
    for (len, ours) in [(16 << 10, true), (segment_header::MAX_LEN, true), (5 << 30, false)] {
        std::fs::write(&path, segment_header::encode(3, 7, len)).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let opened =
            Segment::open(SYSTEM, &path, 3, Access::ToWrite, &SpaceInUse::default()).unwrap();
        assert_eq!(matches!(opened, SegmentFile::Segment(_)), ours, "{len}");
        if let SegmentFile::Segment(segment) = opened {
            assert_eq!(segment.records().count(), 0);
        }
    }
}

#[test]
fn a_forked_process_drops_inherited_values_without_a_lock() {
    let dir = tempfile::tempdir().unwrap();
    let space = SpaceInUse::inherited();
    let segment =
        Arc::new(Segment::create(SYSTEM, dir.path(), 1, 16 << 10, false, &space).unwrap());
    let pin = segment.pin(u64::MAX).unwrap();
    segment.count_as_held();
    let mut reservation = space.reserve(100);
    // A thread that does not exist in the child held the locks.
    let _locked = (space.lock_own(), space.pinned());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        reservation.shrink_to(10);
        drop((reservation, pin, segment));
        tell.send(()).unwrap();
    });
    told.recv_timeout(std::time::Duration::from_secs(60)).expect("the drop waits for a lock");
}
