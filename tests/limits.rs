//! The limits of the system: at their edge a call fails with a typed error, and works again when
//! the limit is gone. The largest `max_bytes` works.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use harness::Verdict;
use keepwarm::{Cache, ErrorKind, Timeout};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, dir] = &arguments[..]
        && role == "without-address-space"
    {
        without_address_space(Path::new(dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("the_largest_max_bytes_works_and_takes_little", largest_max_bytes),
        ("without_address_space_no_file_is_created", || {
            let dir = tempfile::tempdir().unwrap();
            if Command::new("prlimit").arg("--version").output().is_err() {
                return Err("needs prlimit");
            }
            let mut child = Command::new(std::env::current_exe().unwrap());
            let status = child.arg("without-address-space").arg(dir.path()).status().unwrap();
            assert!(status.success(), "{status}");
            Ok(())
        }),
    ])
}

fn largest_max_bytes() -> Verdict {
    const LARGEST: u64 = 1 << 47;
    let dir = tempfile::tempdir().unwrap();
    let open = || Cache::builder(dir.path()).max_bytes(LARGEST).max_entries(10_000).open().unwrap();
    for round in 0..2 {
        let cache = open();
        assert_eq!(cache.limits().max_bytes, LARGEST);
        for n in 0..100 {
            cache.set_bytes(&format!("{round} {n}"), &[7; 5000], Timeout::Never).unwrap();
        }
        cache.set_bytes("large", &vec![8; 3 << 20], Timeout::Never).unwrap();
        assert!(cache.get_bytes("0 99").unwrap().is_some_and(|value| *value == [7; 5000]));
    }
    let files = walkdir::WalkDir::new(dir.path()).into_iter().map(Result::unwrap);
    let taken: u64 = files.map(|file| file.metadata().unwrap().blocks() * 512).sum();
    println!("{taken} bytes on the disk");
    assert!(taken < 120 << 20);
    Ok(())
}

/// Sets a limit of this process.
fn limit(to: &str) {
    let pid = std::process::id().to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, to]).status().unwrap();
    assert!(set.success());
}

/// The child.
fn without_address_space(dir: &Path) {
    let cache = Cache::builder(dir).max_entries(1000).open().unwrap();
    cache.set("a", &1, Timeout::Never).unwrap();
    let segments = || std::fs::metadata(dir.join("segments")).unwrap();
    let before = (segments().mtime(), segments().mtime_nsec());
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    // Room for the program, and for no segment of 16 MiB.
    limit(&format!("--as={}:unlimited", pages * 4096 + (10 << 20)));
    let value = vec![7; 200_000];
    let mut refused = 0;
    for n in 0..100 {
        if let Err(e) = cache.set_bytes(&n.to_string(), &value, Timeout::Never) {
            assert_eq!(e.kind(), ErrorKind::Io, "{e}");
            refused += 1;
        }
    }
    assert!(refused > 1, "{refused} were refused");
    assert_eq!((segments().mtime(), segments().mtime_nsec()), before, "a file was created");
    assert_eq!(cache.get("a").unwrap(), Some(1));
    limit("--as=unlimited:unlimited");
    cache.set_bytes("later", &value, Timeout::Never).unwrap();
    assert_eq!(cache.stats().evicted, 0);
}
