//! Streams: values written and read in pieces are whole or absent, readable from any offset, and a
//! reader keeps its value when the entry changes.

use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::Duration;

use keepwarm::{Cache, ErrorKind, Timeout};
use serde_bytes::ByteBuf;

use crate::{for_each_backend, ms, with_cache};

/// From empty to several chunks, and around the length from which a value has its own blob file.
const LENGTHS: [usize; 9] = [0, 1, 5000, 65_535, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 3_000_000];

fn value(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
}

fn write(cache: &Cache, key: &str, value: &[u8]) {
    let mut writer = cache.writer(key, Timeout::Default).unwrap();
    let mut rest = value;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(10_007));
        writer.write_all(piece).unwrap();
        rest = after;
    }
    writer.commit().unwrap();
}

fn read(cache: &Cache, key: &str) -> Option<Vec<u8>> {
    let mut reader = cache.reader(key).unwrap()?;
    let mut bytes = Vec::new();
    assert_eq!(reader.read_to_end(&mut bytes).unwrap() as u64, reader.len());
    assert_eq!(reader.is_empty(), bytes.is_empty());
    Some(bytes)
}

#[test]
fn a_written_value_is_read_back() {
    with_cache(|cache, _| {
        assert!(cache.reader("absent").unwrap().is_none());
        for len in LENGTHS {
            let written = value(len, len);
            write(&cache, "a", &written);
            assert!(read(&cache, "a").unwrap() == written, "{len} bytes in pieces");
            assert!(cache.get_bytes("a").unwrap().unwrap() == written, "{len} bytes at once");
            assert!(cache.get::<Vec<u8>>("a").unwrap().unwrap() == written, "{len} bytes, typed");
            cache.set_bytes("b", &written, Timeout::Default).unwrap();
            assert!(read(&cache, "b").unwrap() == written, "{len} bytes from `set_bytes`");
            cache.set("c", &ByteBuf::from(written.clone()), Timeout::Default).unwrap();
            assert!(read(&cache, "c").unwrap() == written, "{len} bytes from `set`");
        }
    });
}

#[test]
fn a_value_that_is_no_byte_array_has_no_reader() {
    with_cache(|cache, _| {
        cache.set("small", "text", Timeout::Default).unwrap();
        cache.set("large", &"text".repeat(1_000_000), Timeout::Default).unwrap();
        for key in ["small", "large"] {
            let error = cache.reader(key).unwrap_err();
            assert_eq!((error.kind(), error.key()), (ErrorKind::Decode, Some(key)));
        }
        assert_eq!(cache.get::<String>("large").unwrap().unwrap().len(), 4_000_000);
    });
}

#[test]
fn dropping_a_writer_changes_nothing() {
    with_cache(|cache, _| {
        for len in [10, 2_000_000] {
            let mut writer = cache.writer("absent", Timeout::Default).unwrap();
            writer.write_all(&value(0, len)).unwrap();
            drop(writer);
            assert!(!cache.contains_key("absent").unwrap());
            for there in [10, 2_000_000] {
                cache.set_bytes("a", &value(1, there), Timeout::Default).unwrap();
                let mut writer = cache.writer("a", Timeout::Default).unwrap();
                writer.write_all(&value(2, len)).unwrap();
                assert!(cache.get_bytes("a").unwrap().unwrap() == value(1, there));
                drop(writer);
                assert!(cache.get_bytes("a").unwrap().unwrap() == value(1, there));
            }
        }
    });
}

#[test]
fn a_reader_can_seek_to_any_offset() {
    with_cache(|cache, _| {
        for len in [10, 1000, 200_000, 2_000_000u64] {
            let there = value(3, len as usize);
            cache.set("a", &ByteBuf::from(there.clone()), Timeout::Default).unwrap();
            let mut reader = cache.reader("a").unwrap().unwrap();
            let mut at = 7 % len;
            for step in 0..50 {
                at = (at * 7 + step * 65_536 + 1) % len;
                let to = match step % 3 {
                    0 => SeekFrom::Start(at),
                    1 => SeekFrom::End(at as i64 - len as i64),
                    _ => SeekFrom::Current(at as i64 - reader.stream_position().unwrap() as i64),
                };
                assert_eq!(reader.seek(to).unwrap(), at);
                let mut piece = vec![0; 100_000.min((len - at) as usize)];
                reader.read_exact(&mut piece).unwrap();
                assert!(piece == there[at as usize..at as usize + piece.len()], "{len} from {at}");
            }
            assert_eq!(reader.seek(SeekFrom::Start(len + 5)).unwrap(), len + 5);
            assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0, "beyond the end");
            let before = reader.seek(SeekFrom::End(-(len as i64) - 1)).unwrap_err();
            assert_eq!(before.kind(), IoErrorKind::InvalidInput);
            assert_eq!(
                reader.stream_position().unwrap(),
                len + 5,
                "a failed seek does not move the position"
            );
        }
    });
}

#[test]
fn a_reader_keeps_the_value_that_it_opened() {
    with_cache(|cache, _| {
        let changes: [&dyn Fn(&str); 4] = [
            &|key| cache.set_bytes(key, b"other", Timeout::Default).unwrap(),
            &|key| assert!(cache.delete(key).unwrap()),
            &|key| write(&cache, key, &value(9, 2_500_000)),
            &|_| cache.clear().unwrap(),
        ];
        for (n, change) in changes.iter().enumerate() {
            let key = n.to_string();
            let there = value(n, 2_000_000);
            write(&cache, &key, &there);
            let mut reader = cache.reader(&key).unwrap().unwrap();
            let whole = cache.get_bytes(&key).unwrap().unwrap();
            let mut first = vec![0; 1_000_000];
            reader.read_exact(&mut first).unwrap();
            change(&key);
            cache.maintain().unwrap();
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).unwrap();
            assert!([first, rest].concat() == there && whole == there, "after change {n}");
        }
    });
}

#[test]
fn the_timeout_starts_at_the_commit() {
    with_cache(|cache, clock| {
        for len in [10, 2_000_000] {
            let mut writer = cache.writer("a", ms(1000)).unwrap();
            writer.write_all(&value(0, len)).unwrap();
            clock.advance(ms(5000));
            writer.commit().unwrap();
            clock.advance(ms(999));
            assert_eq!(cache.reader("a").unwrap().unwrap().len(), len as u64);
            clock.advance(ms(1));
            assert!(cache.reader("a").unwrap().is_none());
            cache.set_bytes("a", b"old", Timeout::Default).unwrap();
            let mut writer = cache.writer("a", Duration::ZERO).unwrap();
            writer.write_all(&value(0, len)).unwrap();
            writer.commit().unwrap();
            assert!(!cache.contains_key("a").unwrap(), "a timeout of zero removes the entry");
        }
    });
}

#[test]
fn large_values_support_every_operation() {
    with_cache(|cache, clock| {
        let large = value(5, 2_000_000);
        assert!(cache.add("a", &ByteBuf::from(large.clone()), ms(1000)).unwrap());
        assert!(!cache.add("a", &ByteBuf::from(value(6, 2_000_000)), ms(1000)).unwrap());
        assert!(cache.touch("a", ms(3000)).unwrap());
        clock.advance(ms(2000));
        assert!(cache.get_bytes("a").unwrap().unwrap() == large);
        assert_eq!(cache.ttl("a").unwrap(), Some(keepwarm::Ttl::Remaining(ms(1000))));
        assert_eq!(cache.incr_version("a", 1).unwrap(), 2);
        let moved = cache.with_version(2);
        assert!(!cache.contains_key("a").unwrap() && read(&moved, "a").unwrap() == large);
        assert_eq!(moved.keys().map(Result::unwrap).collect::<Vec<_>>(), ["a"]);
        let all: Vec<_> = moved.iter::<ByteBuf>().map(Result::unwrap).collect();
        assert!(all.len() == 1 && all[0].1 == large);
        assert_eq!(cache.incr("a", 1).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(moved.incr("a", 1).unwrap_err().kind(), ErrorKind::NotAnInteger);
        let entry = moved.get_entry::<ByteBuf>("a").unwrap().unwrap();
        let swapped = moved.compare_and_swap(
            "a",
            Some(entry.token),
            &ByteBuf::from(value(7, 1_500_000)),
            ms(9),
        );
        assert!(matches!(swapped.unwrap(), keepwarm::Swap::Stored(_)));
        assert!(read(&moved, "a").unwrap() == value(7, 1_500_000));
        assert!(moved.delete("a").unwrap() && cache.is_empty());
    });
}

#[test]
fn concurrent_readers_see_whole_values_in_order() {
    for_each_backend(|make| {
        const LEN: usize = 300_000;
        let cache = make.builder().max_bytes(16 << 20).open().unwrap();
        write(&cache, "a", &value(0, LEN));
        thread::scope(|scope| {
            scope.spawn(|| (1..40).for_each(|n| write(&cache, "a", &value(n, LEN))));
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < 39 {
                        let found = read(&cache, "a").unwrap();
                        // Rounds do not go back, and a value is of one round.
                        let round = usize::from(found[0]);
                        assert!(
                            round >= last && found == value(round, LEN),
                            "round {round} after {last}"
                        );
                        last = round;
                    }
                });
            }
        });
        assert_eq!(cache.stats().corrupt, 0);
    });
}

#[test]
fn a_value_beyond_the_bounds_is_refused_and_cleaned_up() {
    for_each_backend(|make| {
        let cache = make.builder().max_bytes(4 << 20).open().unwrap();
        cache.set_bytes("a", b"old", Timeout::Default).unwrap();
        let mut writer = cache.writer("a", Timeout::Default).unwrap();
        let piece = value(1, 100_000);
        let refused = (0..100).find_map(|_| writer.write_all(&piece).err());
        let error = match refused {
            Some(error) => {
                assert_eq!(error.kind(), IoErrorKind::FileTooLarge);
                assert_eq!(writer.commit().unwrap_err().kind(), ErrorKind::Interrupted);
                *error.into_inner().unwrap().downcast::<keepwarm::Error>().unwrap()
            }
            None => writer.commit().unwrap_err(),
        };
        assert_eq!((error.kind(), error.key()), (ErrorKind::ValueTooLarge, Some("a")));
        assert_eq!(cache.get_bytes("a").unwrap().as_deref(), Some(&b"old"[..]));
        assert!(cache.stats().bytes <= 4 << 20);
    });
}

#[test]
fn the_dummy_backend_keeps_no_streamed_value() {
    let cache = Cache::dummy();
    write(&cache, "a", &value(0, 2_000_000));
    assert!(cache.reader("a").unwrap().is_none());
}
