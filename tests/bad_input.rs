//! Bad input: a mistake of a program or its environment is an immediate, typed error that names the
//! cause, and changes nothing. Tested: keys and values that are too long, unusable directories and
//! disks, and several handles, threads and processes on one directory.
//!
//! `damage.rs` tests damaged files of a cache, `failures.rs` refusals of the operating system.
//!
//! Shows invariant I5.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/mount.rs"]
mod mount;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use harness::Verdict;
use keepwarm::testing::TempCache;
use keepwarm::{Cache, ErrorKind, Timeout};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--holds") => holds(Path::new(&arguments[2])),
        Some("--is-refused") => is_refused(Path::new(&arguments[2])),
        Some("--on-a-small-disk") => on_a_small_disk(Path::new(&arguments[2])),
        _ => {
            return harness::main(&[
                ("a_key_has_at_most_64_kib", longest_key),
                ("a_value_that_cannot_fit_is_refused_and_the_old_kept", largest_value),
                ("opening_a_file_is_refused", a_file),
                ("a_missing_parent_directory_is_an_error", no_parent),
                ("a_foreign_directory_is_refused_and_not_changed", foreign),
                ("a_directory_without_write_permission_is_refused", no_permission),
                ("a_read_only_file_system_is_refused", read_only),
                ("a_full_disk_is_an_error_and_keeps_the_entries", full),
                ("all_paths_to_a_directory_share_one_engine", other_paths),
                ("threads_that_open_concurrently_share_one_engine", many_threads),
                ("processes_share_the_directory_however_one_ends", second_process),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn child(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(role).arg(dir);
    command
}

fn longest_key() -> Verdict {
    let cache = TempCache::new().unwrap();
    let longest = "k".repeat(65_536 - ":1:".len());
    cache.set(&longest, &1, Timeout::Never).unwrap();
    assert_eq!(cache.get::<u8>(&longest).unwrap(), Some(1));
    assert!(cache.touch(&longest, Duration::from_secs(9)).unwrap());
    assert_eq!(cache.incr(&longest, 1).unwrap(), 2);
    // All but the first character of it is another key.
    assert_eq!(cache.get::<u8>(&longest[1..]).unwrap(), None);
    let longer = longest.clone() + "k";
    let refused = |result: keepwarm::Result<()>, call: &str| {
        let error = result.expect_err(call);
        assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidKey, call));
        assert_eq!(error.key(), Some(longer.as_str()));
        assert!(error.to_string().len() < 1000, "{error}");
    };
    refused(cache.set(&longer, &1, Timeout::Never), "set");
    refused(cache.set_bytes(&longer, b"1", Timeout::Never), "set_bytes");
    refused(cache.get::<u8>(&longer).map(drop), "get");
    refused(cache.get_bytes(&longer).map(drop), "get_bytes");
    refused(cache.add(&longer, &1, Timeout::Never).map(drop), "add");
    refused(cache.touch(&longer, Timeout::Never).map(drop), "touch");
    refused(cache.incr(&longer, 1).map(drop), "incr");
    refused(cache.delete(&longer).map(drop), "delete");
    refused(cache.contains_key(&longer).map(drop), "contains_key");
    refused(
        cache.get_or_set(&longer, Timeout::Never, || -> u8 { unreachable!() }).map(drop),
        "get_or_set",
    );
    refused(cache.ttl(&longer).map(drop), "ttl");
    // A version with more digits makes the same key too long.
    assert_eq!(cache.incr_version(&longest, 9).unwrap_err().kind(), ErrorKind::InvalidKey);
    assert_eq!(cache.get::<u8>(&longest).unwrap(), Some(2));
    assert_eq!(cache.len(), 1);
    Ok(())
}

fn largest_value() -> Verdict {
    const MAX_BYTES: usize = 4 << 20;
    let cache = TempCache::with(|b| b.max_bytes(MAX_BYTES as u64)).unwrap();
    cache.set_bytes("value", b"old", Timeout::Never).unwrap();
    cache.set_bytes("other", b"other", Timeout::Never).unwrap();
    let (mut fits, mut refused) = (0, 0);
    for len in [
        1 << 10,
        1 << 16,
        1 << 18,
        1 << 19,
        1 << 20,
        1 << 21,
        MAX_BYTES - 1,
        MAX_BYTES,
        MAX_BYTES + 1,
        1 << 26,
    ] {
        let value = vec![len as u8 | 1; len];
        match cache.set_bytes("value", &value, Timeout::Never) {
            Ok(()) => {
                assert_eq!(refused, 0, "{len} bytes fit but fewer did not");
                fits += 1;
                assert!(cache.get_bytes("value").unwrap().unwrap() == value);
                cache.set_bytes("value", b"old", Timeout::Never).unwrap();
            }
            Err(e) => {
                refused += 1;
                assert_eq!(
                    (e.kind(), e.key()),
                    (ErrorKind::ValueTooLarge, Some("value")),
                    "{len}: {e}"
                );
                assert_eq!(
                    cache.get_bytes("value").unwrap().as_deref(),
                    Some(&b"old"[..]),
                    "{len}"
                );
                assert_eq!(
                    cache.add("absent", &vec![1u64; len], Timeout::Never).unwrap_err().kind(),
                    ErrorKind::ValueTooLarge
                );
                assert!(!cache.contains_key("absent").unwrap());
            }
        }
    }
    assert!(fits >= 4 && refused >= 3, "{fits} fit, {refused} were refused");
    assert_eq!(cache.stats().corrupt, 0);
    Ok(())
}

/// All paths below a directory, with the contents of files. Symbolic links to directories are not
/// followed.
fn listing(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(listing(&path));
            found.insert(path, None);
        } else {
            found.insert(path.clone(), fs::read(path).ok());
        }
    }
    found
}

fn a_file() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "foreign").unwrap();
    let error = Cache::open(&file).unwrap_err();
    assert_eq!(
        (error.kind(), error.path()),
        (ErrorKind::NotACache, Some(file.as_path())),
        "{error}"
    );
    assert_eq!(fs::read(&file).unwrap(), b"foreign");
    // A path below a file cannot be a directory.
    assert_eq!(Cache::open(file.join("cache")).unwrap_err().kind(), ErrorKind::Io);
    let pipe = home.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(Cache::open(&pipe).unwrap_err().kind(), ErrorKind::NotACache);
    assert_eq!(Cache::open("/dev/null").unwrap_err().kind(), ErrorKind::NotACache);
    Ok(())
}

fn no_parent() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let error = Cache::open(home.path().join("absent/cache")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.path().is_some_and(|path| path.ends_with("absent/cache")), "{error}");
    assert!(listing(home.path()).is_empty());
    let dangling = home.path().join("dangling");
    symlink(home.path().join("nowhere"), &dangling).unwrap();
    Cache::open(&dangling).unwrap_err();
    assert!(!home.path().join("nowhere").exists());
    Cache::open("").unwrap_err();
    Cache::open("\0").unwrap_err();
    Cache::open("x".repeat(100_000)).unwrap_err();
    Ok(())
}

fn foreign() -> Verdict {
    for name in ["letter.txt", ".hidden", "index.bak", "segment", "00000001.seg"] {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(name), "foreign").unwrap();
        fs::create_dir(home.path().join("segments")).unwrap();
        fs::write(home.path().join("segments/photo.jpg"), "foreign").unwrap();
        let before = listing(home.path());
        let error = Cache::open(home.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotACache, "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(listing(home.path()), before, "{name}");
    }
    // Foreign files in a cache directory are not changed.
    let home = tempfile::tempdir().unwrap();
    let open = || Cache::builder(home.path()).max_bytes(1 << 20).open().unwrap();
    open().set("a", &1, Timeout::Never).unwrap();
    let names = [
        "letter.txt",
        "segments/photo.jpg",
        "segments/00000001.seg.bak",
        "segments/0000000a.SEG",
        "blobs/x",
    ];
    names.iter().for_each(|name| fs::write(home.path().join(name), "foreign").unwrap());
    let cache = open();
    assert_eq!(cache.get("a").unwrap(), Some(1));
    for n in 0..3000 {
        cache.set_bytes(&n.to_string(), &[1; 1000], Timeout::Never).unwrap();
    }
    cache.clear().unwrap();
    drop(cache);
    drop(open());
    for name in names {
        assert_eq!(fs::read(home.path().join(name)).unwrap(), b"foreign", "{name}");
    }
    Ok(())
}

/// A child: the operating system must refuse to open the cache.
fn is_refused(dir: &Path) {
    for path in [dir.to_owned(), dir.join("new")] {
        let error = Cache::open(&path).expect_err("the cache was opened");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.path().is_some(), "{error}");
    }
}

fn no_permission() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    Cache::open(&dir).unwrap().set("a", &1, Timeout::Never).unwrap();
    let before = listing(&dir);
    let allow =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(home.path(), 0o755);
    allow(&dir, 0o555);
    let mut command = child("--is-refused", &dir);
    if nix::unistd::geteuid().is_root() {
        // Permissions do not bind root, so the child runs as another user, which owns the files.
        use std::os::unix::fs::lchown;
        use std::os::unix::process::CommandExt;
        for found in walkdir::WalkDir::new(&dir) {
            lchown(found.unwrap().path(), Some(65_534), Some(65_534)).unwrap();
        }
        // Copied to where that user may execute it.
        let program = home.path().join("program");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        allow(&program, 0o755);
        command = {
            let mut other = Command::new(&program);
            other.arg("--is-refused").arg(&dir).uid(65_534).gid(65_534);
            other
        };
    }
    let status = command.status();
    allow(&dir, 0o755);
    if status.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
        return Err("needs a temporary directory in which programs may be executed");
    }
    let status = status.unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(listing(&dir), before);
    assert_eq!(Cache::open(&dir).unwrap().get("a").unwrap(), Some(1));
    Ok(())
}

fn read_only() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    Cache::open(&dir).unwrap().set("a", &1, Timeout::Never).unwrap();
    let before = listing(&dir);
    mount::run(mount::READ_ONLY, &dir, "--is-refused")?;
    assert_eq!(listing(&dir), before);
    assert_eq!(Cache::open(&dir).unwrap().get("a").unwrap(), Some(1));
    Ok(())
}

/// A child: `dir` is a file system of 2 MiB.
fn on_a_small_disk(dir: &Path) {
    let (cache_dir, ballast) = (dir.join("cache"), dir.join("ballast"));
    // The first segment of a cache with a limit far above the disk's size does not fit.
    let large = Cache::builder(&cache_dir).max_bytes(1 << 30).max_entries(1000).open().unwrap();
    let error = large.set("a", &1, Timeout::Never).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(large.is_empty() && large.get::<u8>("a").unwrap().is_none());
    drop(large);
    let small = || Cache::builder(&cache_dir).max_bytes(1 << 20).max_entries(1000).open();
    let cache = small().unwrap();
    cache.set("kept", "old", Timeout::Never).unwrap();
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let mut failed = 0;
    for n in 0..3000 {
        match cache.set("kept", &format!("{n} {}", "x".repeat(500)), Timeout::Never) {
            Ok(()) => {}
            Err(e) => {
                failed += 1;
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
            }
        }
        let kept = cache.get::<String>("kept").unwrap();
        assert!(kept.is_none_or(|text| text == "old" || text.ends_with("xxx")));
    }
    println!("{failed} of 3000 calls failed on a full disk");
    drop(cache);
    // No cache can be created there. The existing one opens, or the error is `NoSpace`.
    let error = Cache::open(dir.join("new")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    if let Err(e) = small() {
        assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    }
    fs::remove_file(&ballast).unwrap();
    let cache = small().unwrap();
    cache.set("kept", "new", Timeout::Never).unwrap();
    assert_eq!(cache.get::<String>("kept").unwrap().as_deref(), Some("new"));
    assert!(cache.check().unwrap().is_sound());
}

fn full() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    mount::run("mount -t tmpfs -o size=2m keepwarm \"$0\"", home.path(), "--on-a-small-disk")
}

fn other_paths() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let first = Cache::open(&dir).unwrap();
    first.set("a", &1, Timeout::Never).unwrap();
    fs::create_dir(home.path().join("other")).unwrap();
    symlink(&dir, home.path().join("link")).unwrap();
    symlink("../link", home.path().join("other/link of link")).unwrap();
    let others = [
        "link",
        "cache/",
        "./cache/.",
        "other/../cache",
        "cache/segments/..",
        "other/link of link",
    ];
    for other in others {
        let second = Cache::open(home.path().join(other)).unwrap();
        assert_eq!(second.get::<u8>("a").unwrap(), Some(1), "{other}");
        second.set("b", other, Timeout::Never).unwrap();
        assert_eq!(first.get::<String>("b").unwrap().as_deref(), Some(other));
        assert_eq!(first.len(), second.len());
    }
    // After a rename it is still the same directory.
    let second = Cache::open(home.path().join("link")).unwrap();
    fs::rename(&dir, home.path().join("renamed")).unwrap();
    let third = Cache::open(home.path().join("renamed")).unwrap();
    third.set("c", &3, Timeout::Never).unwrap();
    assert_eq!((first.get("c").unwrap(), second.get("c").unwrap()), (Some(3), Some(3)));
    Ok(())
}

fn many_threads() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let dir = home.path().join(round.to_string());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        // Opened and dropped again, while other threads do the same.
                        Cache::open(&dir).unwrap().incr_or_init("n", 1, 0, Timeout::Never).unwrap();
                    }
                });
            }
        });
        assert_eq!(Cache::open(&dir).unwrap().get("n").unwrap(), Some(8 * 5));
    }
    Ok(())
}

/// A child: keeps the directory open until its standard input ends.
fn holds(dir: &Path) {
    let cache = Cache::open(dir).unwrap();
    cache.incr_or_init("opened", 1, 0, Timeout::Never).unwrap();
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(cache);
}

fn holder(dir: &Path) -> Child {
    let mut child =
        child("--holds", dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn second_process() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let opened = |cache: &Cache| cache.get::<i64>("opened").unwrap();
    for round in 1..=10 {
        let mut first = holder(&dir);
        let cache = Cache::open(&dir).unwrap();
        assert_eq!(opened(&cache), Some(round), "while the first process has it open");
        // Every third time this process keeps it open.
        let cache = Some(cache).filter(|_| round % 3 == 0);
        if round % 2 == 0 {
            first.kill().unwrap();
        } else {
            drop(first.stdin.take());
        }
        first.wait().unwrap();
        let cache = cache.unwrap_or_else(|| Cache::open(&dir).unwrap());
        assert_eq!(opened(&cache), Some(round));
        cache.maintain().unwrap();
        assert_eq!(cache.check().unwrap().problems, [""; 0]);
    }
    // A stopped process does not block a process that opens, writes and closes.
    let mut first = holder(&dir);
    let pid = nix::unistd::Pid::from_raw(first.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let cache = Cache::open(&dir).unwrap();
    assert_eq!(cache.incr("opened", 1).unwrap(), 12);
    drop(cache);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(opened(&Cache::open(&dir).unwrap()), Some(12));
    Ok(())
}
