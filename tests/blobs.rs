//! Large values on disk (blob files): an uncommitted value leaves no file, an update of the expiry
//! or the version copies no data, space is reclaimed, damage is a miss, and memory use is constant.
//!
//! `KEEPWARM_LARGE_MIB` sets the size of the largest value in mebibytes; the default is 128.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/harness.rs"]
mod harness;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use dir::copy_as_killed;
use harness::Verdict;
use keepwarm::{Builder, Cache, ErrorKind, Timeout};

const LARGE: usize = 300_000;
const CHUNK: usize = 64 << 10;
/// Set for the child whose memory is measured: the directory in which it works.
const MEASURED: &str = "KEEPWARM_LARGE_DIR";

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(MEASURED) {
        stream_a_large_value(Path::new(&dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_dropped_writer_leaves_nothing_on_disk", dropped),
        ("touch_and_incr_version_keep_the_same_file", not_copied),
        ("a_damaged_chunk_is_an_error_then_a_miss", damaged_chunk),
        ("a_damaged_or_replaced_file_is_a_miss", damaged_file),
        ("a_missing_file_never_shows_an_older_value", missing),
        ("orphaned_files_are_deleted_and_foreign_files_kept", orphans),
        ("blobs_are_found_after_a_close_and_after_a_kill", closed),
        ("space_of_removed_values_is_reclaimed", space),
        ("the_space_of_a_held_value_counts_until_the_drop", held_space),
        ("the_coldest_large_values_are_evicted_first", coldest),
        ("memory_stays_flat", flat_memory),
    ])
}

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir)
        .max_bytes(8 << 20)
        .max_entries(2000)
        .hot_bytes(0)
        .default_timeout(Timeout::Never)
}

fn open(dir: &Path) -> Cache {
    builder(dir).open().unwrap()
}

fn value(seed: usize) -> Vec<u8> {
    (0..LARGE).map(|at| (at.wrapping_mul(131) ^ (at >> 7) ^ seed.wrapping_mul(77)) as u8).collect()
}

/// The blob files.
fn blobs(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir.join("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn only_blob(dir: &Path) -> PathBuf {
    let blobs = blobs(dir);
    assert_eq!(blobs.len(), 1, "{blobs:?}");
    blobs[0].clone()
}

/// Copies the directory as a kill would leave it now, and opens the copy.
fn killed(dir: &Path) -> (tempfile::TempDir, Cache) {
    let copy = tempfile::tempdir().unwrap();
    copy_as_killed(dir, copy.path());
    let cache = open(copy.path());
    (copy, cache)
}

fn assert_sound(cache: &Cache) {
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

fn dropped() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set("a", "small", Timeout::Never).unwrap();
    let before = cache.stats().bytes;
    let mut writer = cache.writer("a", Timeout::Never).unwrap();
    (0..4).for_each(|n| writer.write_all(&value(n)).unwrap());
    assert_eq!(blobs(home.path()).len(), 1);
    assert!(cache.stats().bytes >= before + 4 * LARGE as u64, "a growing value counts");
    drop(writer);
    assert!(blobs(home.path()).is_empty());
    assert_eq!(cache.stats().bytes, before);
    // An `add` of an existing key leaves nothing either.
    assert!(!cache.add("a", &serde_bytes::Bytes::new(&value(1)), Timeout::Never).unwrap());
    assert!(blobs(home.path()).is_empty());
    let mut writer = cache.writer("a", Timeout::Never).unwrap();
    writer.write_all(&value(1)).unwrap();
    let (copy, again) = killed(home.path());
    assert_eq!(again.get::<String>("a").unwrap().as_deref(), Some("small"));
    assert!(blobs(copy.path()).is_empty(), "the file of a killed writer is deleted");
    Ok(())
}

fn not_copied() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set_bytes("a", &value(1), Timeout::Default).unwrap();
    let file = only_blob(home.path());
    let inode = file.metadata().unwrap().ino();
    let same = |key: &str, cache: &Cache| {
        assert_eq!(only_blob(home.path()), file);
        assert_eq!(file.metadata().unwrap().ino(), inode);
        assert!(cache.get_bytes(key).unwrap().unwrap() == value(1));
        cache.maintain().unwrap();
        assert!(cache.get_bytes(key).unwrap().unwrap() == value(1), "after maintenance");
    };
    assert!(cache.touch("a", std::time::Duration::from_secs(1000)).unwrap());
    same("a", &cache);
    cache.persist("a").unwrap();
    same("a", &cache);
    cache.incr_version("a", 1).unwrap();
    let moved = cache.with_version(2);
    assert!(!cache.contains_key("a").unwrap());
    same("a", &moved);
    let (_copy, again) = killed(home.path());
    assert!(again.with_version(2).get_bytes("a").unwrap().unwrap() == value(1));
    assert_sound(&again);
    cache.close().unwrap();
    same("a", &moved);
    assert!(moved.delete("a").unwrap());
    moved.maintain().unwrap();
    assert!(blobs(home.path()).is_empty());
    Ok(())
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    // Overwritten in place, so that a reader that has the file open sees the change.
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all(&bytes).unwrap();
}

fn damaged_chunk() -> Verdict {
    for chunk in [0, 2, LARGE / CHUNK] {
        let home = tempfile::tempdir().unwrap();
        let cache = open(home.path());
        cache.set_bytes("a", &value(1), Timeout::Never).unwrap();
        let mut reader = cache.reader("a").unwrap().unwrap();
        flip(&only_blob(home.path()), 64 + chunk * CHUNK + 5);
        assert_eq!(cache.check().unwrap().problems.len(), 1);
        let mut before = vec![0; chunk * CHUNK];
        reader.read_exact(&mut before).unwrap();
        assert!(before == value(1)[..chunk * CHUNK], "the bytes before the damage are readable");
        assert_eq!(cache.stats().corrupt, 0);
        let error = reader.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        let error = error.into_inner().unwrap().downcast::<keepwarm::Error>().unwrap();
        assert_eq!((error.kind(), error.key()), (ErrorKind::Damaged, Some("a")));
        assert_eq!(cache.stats().corrupt, 1);
        if chunk < LARGE / CHUNK {
            reader.seek(SeekFrom::Start((chunk + 1) as u64 * CHUNK as u64)).unwrap();
            let mut after = Vec::new();
            reader.read_to_end(&mut after).unwrap();
            assert!(
                after == value(1)[(chunk + 1) * CHUNK..],
                "the bytes after the damage are readable"
            );
        }
        assert!(cache.reader("a").unwrap().is_none() && cache.get_bytes("a").unwrap().is_none());
        assert_eq!(cache.stats().corrupt, 1, "counted once");
        drop(reader);
        cache.maintain().unwrap();
        assert!(blobs(home.path()).is_empty());
        assert_sound(&cache);
    }
    Ok(())
}

/// A name, and a function that damages a blob's file. The second path is that of another blob.
type Harm = (&'static str, fn(&Path, &Path));

const HARMS: &[Harm] = &[
    ("a flipped bit of the value", |file, _| flip(file, 64 + 1000)),
    ("a flipped bit of the last byte", |file, _| flip(file, 64 + LARGE - 1)),
    ("a flipped bit of the header", |file, _| flip(file, 30)),
    ("a flipped bit of a check", |file, _| flip(file, 64 + LARGE + 1)),
    ("truncated", |file, _| {
        fs::File::options().write(true).open(file).unwrap().set_len(100_000).unwrap()
    }),
    ("truncated to 0", |file, _| {
        fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap()
    }),
    ("removed", |file, _| fs::remove_file(file).unwrap()),
    ("another blob in its place", |file, other| assert!(fs::copy(other, file).unwrap() > 0)),
    ("a link in its place", |file, other| {
        fs::remove_file(file).unwrap();
        symlink(other, file).unwrap();
    }),
    ("a directory in its place", |file, _| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }),
];

fn damaged_file() -> Verdict {
    for (name, harm) in HARMS {
        for while_open in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let mut cache = open(home.path());
            cache.set_bytes("a", &value(1), Timeout::Never).unwrap();
            let file = only_blob(home.path());
            cache.set_bytes("b", &value(2), Timeout::Never).unwrap();
            let other = blobs(home.path()).into_iter().find(|path| *path != file).unwrap();
            if while_open {
                harm(&file, &other);
            } else {
                drop(cache);
                harm(&file, &other);
                cache = open(home.path());
            }
            for _ in 0..2 {
                assert!(cache.get_bytes("a").unwrap().is_none(), "{name}");
            }
            assert!(!cache.contains_key("a").unwrap(), "{name}");
            assert!(cache.stats().corrupt <= 1, "{name}: counted once");
            assert!(
                cache.get_bytes("b").unwrap().unwrap() == value(2),
                "{name}: the other entry is unchanged"
            );
            cache.maintain().unwrap();
            cache.set_bytes("a", &value(3), Timeout::Never).unwrap();
            assert!(cache.get_bytes("a").unwrap().unwrap() == value(3), "{name}: stored again");
            assert_sound(&cache);
        }
    }
    Ok(())
}

fn missing() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set_bytes("a", b"oldest", Timeout::Never).unwrap();
    cache.set_bytes("a", &value(1), Timeout::Never).unwrap();
    cache.set_bytes("a", b"old", Timeout::Never).unwrap();
    cache.set_bytes("a", &value(2), Timeout::Never).unwrap();
    cache.maintain().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_as_killed(home.path(), copy.path());
    fs::remove_file(only_blob(copy.path())).unwrap();
    for _ in 0..2 {
        let again = open(copy.path());
        assert_eq!(again.get_bytes("a").unwrap(), None);
        assert_sound(&again);
        // The same after another replay of the log.
        let (_other, once_more) = killed(copy.path());
        assert_eq!(once_more.get_bytes("a").unwrap(), None);
    }
    Ok(())
}

fn orphans() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set_bytes("a", &value(1), Timeout::Never).unwrap();
    let name = |file: &str| home.path().join("blobs").join(file);
    for close in [true, false] {
        // Files that a kill can leave: a blob without a record, and the file of a writer.
        let orphan = name("0123456789abcdef0123456789abcdef.blob");
        fs::copy(
            blobs(home.path()).iter().max_by_key(|b| b.metadata().unwrap().len()).unwrap(),
            &orphan,
        )
        .unwrap();
        let part = name("fedcba9876543210fedcba9876543210.part");
        fs::write(&part, b"part").unwrap();
        let foreign = ["x", "0.blob", "0123456789ABCDEF0123456789abcdef.blob", "photo.part"];
        foreign.iter().for_each(|file| fs::write(name(file), "foreign").unwrap());
        if close {
            cache.close().unwrap();
            assert!(cache.get_bytes("a").unwrap().unwrap() == value(1));
            assert!(!part.exists());
            cache.maintain().unwrap();
            assert!(!orphan.exists());
            foreign.iter().for_each(|file| assert_eq!(fs::read(name(file)).unwrap(), b"foreign"));
        } else {
            let (copy, again) = killed(home.path());
            assert!(again.get_bytes("a").unwrap().unwrap() == value(1));
            again.maintain().unwrap();
            assert_eq!(blobs(copy.path()).len(), 1 + foreign.len());
        }
        foreign.iter().for_each(|file| fs::remove_file(name(file)).unwrap());
    }
    Ok(())
}

fn closed() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    (0..4).for_each(|n| cache.set_bytes(&n.to_string(), &value(n), Timeout::Never).unwrap());
    assert!(cache.delete("0").unwrap());
    for round in 0..4 {
        // Each round moves the values to another key, which recovery must find too.
        let before = cache.with_version(1 + round);
        (1..4).for_each(|n| assert_eq!(before.incr_version(&n.to_string(), 1).unwrap(), 2 + round));
        let now = cache.with_version(2 + round);
        let holds = |cache: &Cache| {
            for n in 1..4 {
                assert!(
                    cache.get_bytes(&n.to_string()).unwrap().unwrap() == value(n),
                    "{n} in round {round}"
                );
            }
            assert_eq!(cache.len(), 3);
            cache.maintain().unwrap();
            assert_eq!(cache.check().unwrap().blobs, 3);
            assert_sound(cache);
        };
        let (_copy, again) = killed(home.path());
        holds(&again.with_version(2 + round));
        cache.close().unwrap();
        assert_eq!(blobs(home.path()).len(), 3);
        holds(&now);
    }
    cache.clear().unwrap();
    cache.close().unwrap();
    assert_eq!(cache.check().unwrap().blobs, 0);
    assert!(blobs(home.path()).is_empty());
    Ok(())
}

fn space() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set("a", "small", Timeout::Never).unwrap();
    let before = cache.stats().bytes;
    for n in 0..100 {
        cache.set_bytes(&(n % 5).to_string(), &value(n), Timeout::Never).unwrap();
        assert!(cache.stats().bytes <= 8 << 20);
    }
    cache.maintain().unwrap();
    assert_eq!(blobs(home.path()).len(), 5, "the files of overwritten values are deleted");
    let clock = keepwarm::ManualClock::new();
    for n in 0..5 {
        match n % 3 {
            0 => assert!(cache.delete(&n.to_string()).unwrap()),
            1 => cache.set(&n.to_string(), &n, Timeout::Never).unwrap(),
            _ => assert!(cache.touch(&n.to_string(), std::time::Duration::ZERO).unwrap()),
        }
    }
    cache.maintain().unwrap();
    assert!(blobs(home.path()).is_empty());
    assert!(cache.stats().bytes < before + LARGE as u64 / 2, "{} of {before}", cache.stats().bytes);
    drop(cache);
    // The files of expired values and of cleared ones are deleted too.
    let cache = builder(home.path()).clock(clock.clone()).open().unwrap();
    cache.set_bytes("expires", &value(1), std::time::Duration::from_secs(5)).unwrap();
    clock.advance(std::time::Duration::from_secs(6));
    cache.maintain().unwrap();
    assert!(blobs(home.path()).is_empty());
    cache.set_bytes("cleared", &value(1), Timeout::Never).unwrap();
    cache.clear().unwrap();
    cache.maintain().unwrap();
    assert!(blobs(home.path()).is_empty());
    assert_sound(&cache);
    Ok(())
}

fn held_space() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = open(home.path());
    cache.set_bytes("a", &value(1), Timeout::Never).unwrap();
    let with_it = cache.stats().bytes;
    let (reader, bytes) =
        (cache.reader("a").unwrap().unwrap(), cache.get_bytes("a").unwrap().unwrap());
    cache.delete("a").unwrap();
    let still_counts = || {
        cache.maintain().unwrap();
        assert_eq!(blobs(home.path()).len(), 1);
        assert_eq!(cache.stats().bytes, with_it);
    };
    still_counts();
    drop(reader);
    still_counts();
    assert!(bytes == value(1));
    drop(bytes);
    cache.maintain().unwrap();
    assert!(blobs(home.path()).is_empty());
    assert!(cache.stats().bytes <= with_it - LARGE as u64);
    Ok(())
}

fn coldest() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    // Recency is measured in inserts.
    let cache = builder(home.path()).max_entries(200).open().unwrap();
    for n in 0..50 {
        cache.set(&format!("small {n}"), &vec![n; 100], Timeout::Never).unwrap();
    }
    cache.set_bytes("favourite", &value(0), Timeout::Never).unwrap();
    for n in 0..80 {
        cache.set_bytes(&format!("large {n}"), &value(n), Timeout::Never).unwrap();
        assert!(cache.get_bytes("favourite").unwrap().is_some(), "evicted after {n} others");
        assert!(cache.stats().bytes <= 8 << 20);
    }
    for n in 0..50u8 {
        assert_eq!(cache.get(&format!("small {n}")).unwrap(), Some(vec![n; 100]));
    }
    let left =
        (0..80).filter(|n| cache.contains_key(&format!("large {n}")).unwrap()).collect::<Vec<_>>();
    assert!(left.len() > 10 && left.contains(&79), "{left:?}");
    assert!(*left.iter().min().unwrap() > 50, "the coldest were evicted first: {left:?}");
    assert!(cache.stats().evicted >= 80 - left.len() as u64);
    assert_sound(&cache);
    Ok(())
}

fn flat_memory() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let status =
        Command::new(std::env::current_exe().unwrap()).env(MEASURED, home.path()).status().unwrap();
    assert!(status.success());
    Ok(())
}

/// The peak memory of this process, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn stream_a_large_value(dir: &Path) {
    const MIB: usize = 1 << 20;
    let mib: u64 = std::env::var("KEEPWARM_LARGE_MIB").map_or(128, |n| n.parse().unwrap());
    let cache =
        Cache::builder(dir).max_bytes((2 * mib + 200) << 20).max_entries(10_000).open().unwrap();
    cache.set("warm", "up", Timeout::Never).unwrap();
    // No two pieces are equal: each starts with its number.
    let mut piece: Vec<u8> =
        (0..MIB).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mark = |piece: &mut [u8], n: u64| piece[..8].copy_from_slice(&n.to_le_bytes());
    let before = peak_memory();
    let started = Instant::now();
    let mut writer = cache.writer("large", Timeout::Never).unwrap();
    for n in 0..mib {
        mark(&mut piece, n);
        writer.write_all(&piece).unwrap();
    }
    writer.commit().unwrap();
    let written = started.elapsed();
    let mut reader = cache.reader("large").unwrap().unwrap();
    assert_eq!(reader.len(), mib << 20);
    let mut found = vec![0; MIB];
    let started = Instant::now();
    for n in 0..mib {
        mark(&mut piece, n);
        reader.read_exact(&mut found).unwrap();
        assert!(found == piece, "piece {n}");
    }
    let read = started.elapsed();
    for n in (0..mib).rev().step_by(7) {
        mark(&mut piece, n);
        reader.seek(SeekFrom::Start(n << 20)).unwrap();
        reader.read_exact(&mut found).unwrap();
        assert!(found == piece, "piece {n}");
    }
    assert!(cache.touch("large", std::time::Duration::from_secs(100)).unwrap());
    cache.incr_version("large", 1).unwrap();
    let grown = peak_memory() - before;
    println!(
        "{mib} MiB written in {written:?} and read in {read:?}; memory grew by {} KiB",
        grown >> 10
    );
    assert!(grown < 8 << 20, "memory grew by {grown} bytes");
}
