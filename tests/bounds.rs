//! The limits: neither `max_bytes` nor `max_entries` is ever exceeded, whatever is stored. The
//! tests write twenty times `max_bytes` and measure while they do.
//!
//! Once by counting the blocks of all files, and once on a file system that is exactly as large as
//! `max_bytes`, so that it refuses one byte too many; there, unlinked files that are still open
//! count too.
//!
//! Shows invariant I4.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/rng.rs"]
mod rng;

use std::any::Any;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::Verdict;
use keepwarm::{Cache, ErrorKind, Eviction, Timeout};
use rng::Rng;

const MAX_BYTES: u64 = 4 << 20;
const MAX_ENTRIES: u64 = 2_000;
/// Set for the child that works on its own mount: the mount point.
const MOUNT: &str = "KEEPWARM_BOUNDS_MOUNT";

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(MOUNT) {
        on_this_mount(Path::new(&dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("the_files_never_take_more_than_max_bytes", by_counting),
        ("a_file_system_as_large_as_max_bytes_is_enough", on_a_mount),
        ("a_smaller_max_bytes_holds_after_the_next_open", smaller_max_bytes),
    ])
}

/// Writes values of all sizes, twenty times `max_bytes` in total, and checks the limits after each.
fn churn(dir: &Path, mut measure: impl FnMut(u64)) {
    let seed = rng::seed();
    let mut rng = Rng::new(seed);
    let cache = Cache::builder(dir)
        .max_bytes(MAX_BYTES)
        .max_entries(MAX_ENTRIES)
        .cull_frequency(16)
        .eviction([Eviction::Lru, Eviction::Adaptive][seed as usize % 2])
        .hot_bytes(1 << 20)
        .open()
        .unwrap();
    let (mut written, mut writes, mut held) = (0, 0u64, Vec::new());
    while written < 20 * MAX_BYTES {
        let len = match rng.below(100) {
            0 => rng.below(MAX_BYTES / 8),
            1..20 => 4_000 + rng.below(8_000),
            _ => rng.below(1_000),
        };
        let key = rng.below(4 * MAX_ENTRIES).to_string();
        let value = vec![writes as u8; len as usize];
        let timeout = match rng.below(4) {
            0 => Timeout::from(Duration::from_millis(1 + rng.below(50))),
            _ => Timeout::Never,
        };
        let stored = match len {
            100_000.. if rng.below(2) == 0 => in_pieces(&cache, &key, &value, timeout),
            _ => cache.set_bytes(&key, &value, timeout),
        };
        match stored {
            Ok(()) => {}
            // The handles below pin their segments. A program that holds many can get `NoSpace`.
            Err(e) if e.kind() == ErrorKind::NoSpace && !held.is_empty() => held.clear(),
            Err(e) => panic!("after {written} bytes: {e}"),
        }
        if rng.below(50) == 0 {
            let key = rng.below(4 * MAX_ENTRIES).to_string();
            match rng.below(2) {
                0 => held.extend(
                    cache.get_bytes(&key).unwrap().map(|bytes| Box::new(bytes) as Box<dyn Any>),
                ),
                _ => held.extend(
                    cache.reader(&key).unwrap().map(|reader| Box::new(reader) as Box<dyn Any>),
                ),
            }
            if held.len() > 10 {
                held.clear();
            }
        }
        if rng.below(5_000) == 0 {
            cache.clear().unwrap();
        }
        assert!(cache.len() <= MAX_ENTRIES, "{} entries", cache.len());
        assert!(cache.stats().bytes <= MAX_BYTES, "{} bytes by its own count", cache.stats().bytes);
        measure(written);
        written += len;
        writes += 1;
    }
    drop(held);
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    println!(
        "{writes} writes, {written} bytes within {MAX_BYTES}; {} evicted",
        cache.stats().evicted
    );
}

/// Stores through a writer. Every fifth length is dropped without a commit.
fn in_pieces(cache: &Cache, key: &str, value: &[u8], timeout: Timeout) -> keepwarm::Result<()> {
    let mut writer = cache.writer(key, timeout)?;
    for piece in value.chunks(7_000) {
        if let Err(e) = writer.write_all(piece) {
            return Err(*e.into_inner().unwrap().downcast::<keepwarm::Error>().unwrap());
        }
    }
    if value.len().is_multiple_of(5) { Ok(()) } else { writer.commit() }
}

/// Counts the blocks of `path` and, if it is a directory, of everything in it. A file deleted since
/// it was listed counts none.
fn blocks(path: &Path, found: &mut BTreeMap<PathBuf, u64>) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    found.insert(path.to_owned(), metadata.blocks() * 512);
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| blocks(&entry.path(), found));
    }
}

fn by_counting() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    let (samples, most) = std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let (mut samples, mut most) = (0u64, 0);
            while !done.load(Ordering::Acquire) {
                let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
                blocks(dir.path(), &mut before);
                blocks(dir.path(), &mut after);
                // If files were created or deleted in between, the sum belongs to no moment.
                if before == after {
                    most = most.max(after.values().sum());
                    samples += 1;
                }
            }
            (samples, most)
        });
        churn(dir.path(), |_| ());
        done.store(true, Ordering::Release);
        counter.join().unwrap()
    });
    println!("{samples} samples, at most {most} bytes of {MAX_BYTES} in use");
    assert!(samples > 10, "only {samples} samples");
    assert!(most <= MAX_BYTES && most > MAX_BYTES / 2);
    Ok(())
}

/// All blocks of the directory, while no process works on it.
fn all_blocks(dir: &Path) -> u64 {
    let mut found = BTreeMap::new();
    blocks(dir, &mut found);
    found.values().sum()
}

fn smaller_max_bytes() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let open = |max_bytes: u64, max_entries| {
        Cache::builder(dir.path()).max_bytes(max_bytes).max_entries(max_entries).open().unwrap()
    };
    for (larger, smaller) in
        [((1 << 30, 1_000_000), (1 << 20, 100)), ((64 << 20, 100), (1 << 20, 1_000_000))]
    {
        let cache = open(larger.0, larger.1);
        for n in 0..5000 {
            cache.set_bytes(&n.to_string(), &vec![1; 1 + n % 3000], Timeout::Never).unwrap();
        }
        drop(cache);
        let cache = open(smaller.0, smaller.1);
        assert!(cache.len() <= smaller.1, "{} entries of {}", cache.len(), smaller.1);
        let used = all_blocks(dir.path());
        assert!(used <= smaller.0, "{used} bytes of {} in use after opening", smaller.0);
        for n in 0..2000 {
            cache.set_bytes(&n.to_string(), &vec![2; 1 + n % 3000], Timeout::Never).unwrap();
            assert!(cache.stats().bytes <= smaller.0);
        }
        assert!(cache.len() > 50 && cache.len() <= smaller.1, "{} entries", cache.len());
        drop(cache);
        let used = all_blocks(dir.path());
        assert!(used <= smaller.0, "{used} bytes of {} in use", smaller.0);
    }
    Ok(())
}

/// Starts this program again where it may mount: in its own mount namespace, as root or as a user
/// that is root in its own user namespace.
fn on_a_mount() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={MAX_BYTES} keepwarm \"${MOUNT}\"");
    let inside = |flags: &str, script: &str| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", script, "sh"]).env(MOUNT, dir.path());
        command
    };
    let flags = ["-m", "-Urm"].into_iter().find(|flags| {
        let tried = inside(flags, &mount).output();
        tried.is_ok_and(|output| output.status.success())
    });
    let Some(flags) = flags else { return Err("needs root (mount)") };
    let script = format!("{mount} && exec \"$1\"");
    let status = inside(flags, &script).arg(std::env::current_exe().unwrap()).status().unwrap();
    assert!(status.success(), "{status}");
    Ok(())
}

/// Values that a program still holds when it closes a cache count when it opens the cache again.
fn held_across_openings(mount: &Path) {
    let dir = mount.join("held");
    let half = MAX_BYTES / 2;
    let open = || Cache::builder(&dir).max_bytes(half).max_entries(MAX_ENTRIES).open().unwrap();
    let others = in_use(mount);
    let (mut held, mut most) = (Vec::new(), 0);
    for round in 0..3 {
        let cache = open();
        for n in 0..20 {
            let key = format!("{round} {n}");
            // May be refused, because the held values take much of the space.
            let _ = cache.set_bytes(&key, &vec![n; 40_000], Timeout::Never);
            if n % 4 == 0 {
                held.extend(cache.get_bytes(&key).unwrap());
            }
        }
        drop(cache);
        let cache = open();
        for n in 0..500 {
            if let Err(e) = cache.set_bytes(&n.to_string(), &[3; 10_000], Timeout::Never) {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
            }
            most = most.max(in_use(mount) - others);
        }
    }
    println!("{} values held across openings: at most {most} bytes of {half} in use", held.len());
    assert!(most <= half, "{most} bytes of {half} in use");
    drop(held);
    open().set("a", &1, Timeout::Never).unwrap();
}

/// The bytes in use on the file system at `mount`.
fn in_use(mount: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(mount).unwrap();
    (found.blocks() - found.blocks_free()) * found.fragment_size()
}

/// The child: `dir` is a mount of exactly `max_bytes`.
fn on_this_mount(dir: &Path) {
    let mut most = 0;
    churn(&dir.join("cache"), |_| {
        most = most.max(in_use(dir));
    });
    println!("on its own mount: at most {most} bytes of {MAX_BYTES} in use");
    assert!(most <= MAX_BYTES && most > MAX_BYTES / 2);
    std::fs::remove_dir_all(dir.join("cache")).unwrap();
    held_across_openings(dir);
}
