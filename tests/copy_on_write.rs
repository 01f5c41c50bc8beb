//! Full disks where a store into a mapped file may need a block that is not there: Btrfs, also
//! after snapshots, and XFS after copies that share blocks. Whatever another program does to the
//! disk: reads go on, writes are refused with `NoSpace`, no process ends, and nothing that was
//! acknowledged is lost.
//!
//! Each case runs in a process of its own, which SIGBUS would end.
#![cfg(test)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/harness.rs"]
mod harness;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use disk::Disk;
use harness::Verdict;
use keepwarm::{Cache, ErrorKind, Timeout};

/// Set for a child: what happens to the disk, and where it is mounted.
const STEPS: &str = "KEEPWARM_STEPS";
const DISK: &str = "KEEPWARM_DISK";
const KEYS: usize = 1500;

const BTRFS: &[&str] = &["mkfs.btrfs", "-q", "-f"];
const XFS: &[&str] = &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"];

fn main() -> ExitCode {
    if let Ok(steps) = std::env::var(STEPS) {
        in_child(&steps, Path::new(&std::env::var_os(DISK).unwrap()));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_full_btrfs_is_read_and_refuses_writes", || on(BTRFS, 160, "fill")),
        ("a_btrfs_that_is_full_after_a_snapshot", || on(BTRFS, 160, "snapshot fill")),
        ("a_btrfs_that_is_full_before_a_snapshot", || on(BTRFS, 160, "fill snapshot fill")),
        ("a_btrfs_without_copies_on_write", || on(BTRFS, 160, "nocow snapshot fill")),
        ("a_full_xfs_with_shared_blocks", || on(XFS, 320, "handle copy fill")),
    ])
}

fn on(make: &[&str], mib: u64, steps: &str) -> Verdict {
    let disk = Disk::new(make, mib)?;
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.env(STEPS, steps).env(DISK, disk.path()).status().unwrap();
    assert!(status.success(), "{steps}: {status}");
    Ok(())
}

/// What each key may have: the value whose set was acknowledged last, and those of later sets that
/// failed, which may have taken effect.
type Expected = Vec<Vec<u8>>;

fn value(round: u8, key: usize) -> Vec<u8> {
    let mut value = vec![round; 1024];
    value[..8].copy_from_slice(&key.to_le_bytes());
    value
}

fn in_child(steps: &str, disk: &Path) {
    let dir = disk.join("cache");
    let open = || {
        let builder = Cache::builder(&dir).max_bytes(24 << 20).max_entries(20_000).hot_bytes(0);
        builder.handle_sigbus(steps.contains("handle")).open().unwrap()
    };
    if steps.contains("nocow") {
        fs::create_dir(&dir).unwrap();
        assert!(Command::new("chattr").arg("+C").arg(&dir).status().unwrap().success());
    }
    let cache = open();
    let mut expected: Vec<Expected> = (0..KEYS).map(|key| vec![value(1, key)]).collect();
    for (key, values) in expected.iter().enumerate() {
        cache.set_bytes(&key.to_string(), &values[0], Timeout::Never).unwrap();
    }
    cache.flush().unwrap();
    for step in steps.split(' ') {
        match step {
            "fill" => fill(disk),
            "snapshot" => share(disk, &["btrfs", "subvolume", "snapshot"]),
            "copy" => share(disk, &["cp", "-a", "--reflink=always"]),
            _ => {}
        }
        // Pages that were written back need a block when they change.
        let _ = Command::new("sync").arg("-f").arg(disk).status();
        all_there(&cache, &expected);
    }
    let refused = store(&cache, 2, &mut expected);
    println!("{steps}: {refused} of {KEYS} writes refused");
    all_there(&cache, &expected);
    fs::remove_dir_all(disk.join("other")).unwrap();
    // A snapshot has the files of the other program, too.
    for copy in fs::read_dir(disk.join("copies")).into_iter().flatten() {
        let delete = ["subvolume", "delete", "-c"];
        let _ = Command::new("btrfs").args(delete).arg(copy.unwrap().path()).output();
    }
    let _ = Command::new("btrfs").args(["subvolume", "sync"]).arg(disk).output();
    let end = Instant::now() + Duration::from_secs(60);
    while store(&cache, 3, &mut expected) > 0 {
        assert!(Instant::now() < end, "writes are refused although there is space");
    }
    all_there(&cache, &expected);
    drop(cache);
    all_there(&open(), &expected);
}

/// Another program takes all space, and the space of small files.
fn fill(disk: &Path) {
    let other = disk.join("other");
    fs::create_dir_all(&other).unwrap();
    // More than once: when the data is on the disk, what was reserved for it is free again.
    for _ in 0..3 {
        let name = format!("{}", fs::read_dir(&other).unwrap().count());
        let Ok(mut file) = fs::File::create(other.join(name)) else { return };
        for piece in [1 << 20, 4096] {
            let bytes = vec![1; piece];
            while file.write_all(&bytes).is_ok() {}
            let _ = file.sync_all();
        }
    }
}

/// Shares the blocks of the cache with a copy.
fn share(disk: &Path, command: &[&str]) {
    let copies = disk.join("copies");
    let name = format!("{}", fs::read_dir(disk).unwrap().count());
    fs::create_dir_all(&copies).unwrap();
    let from = if command[0] == "cp" { disk.join("cache") } else { disk.to_owned() };
    // On a full disk this may be refused.
    let made =
        Command::new(command[0]).args(&command[1..]).arg(from).arg(copies.join(name)).output();
    println!("{command:?}: {:?}", made.map(|made| made.status));
}

fn all_there(cache: &Cache, expected: &[Expected]) {
    for (key, values) in expected.iter().enumerate() {
        let found = cache.get_bytes(&key.to_string());
        let found = found.unwrap_or_else(|e| panic!("key {key}: {e}"));
        let found = found.unwrap_or_else(|| panic!("key {key} is missing"));
        assert!(values.iter().any(|value| *value == found), "key {key} has another value");
    }
}

/// Sets every key. Returns how many were refused, which must be for want of space.
fn store(cache: &Cache, round: u8, expected: &mut [Expected]) -> usize {
    let mut refused = 0;
    for (key, values) in expected.iter_mut().enumerate() {
        let new = value(round, key);
        match cache.set_bytes(&key.to_string(), &new, Timeout::Never) {
            Ok(()) => *values = vec![new],
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                refused += 1;
                values.push(new);
            }
        }
    }
    refused
}
