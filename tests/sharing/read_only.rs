//! Processes that may read a directory and not write to it: the directory is mounted read-only for
//! them, or they lack the permission.
//!
//! Shows invariant I29.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use keepwarm::{Cache, ErrorKind, NewLimits, Result, Timeout};

use crate::child_processes::{self, ChildProcess, arguments, number, wait_until};
use crate::harness::Verdict;
use crate::mount;

/// A size that is too large for a segment of these caches, so that the value becomes a file.
const LARGE: usize = 300_000;

fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.map_or_else(|e| format!("{:?}", e.kind()), |value| format!("{value:?}"))
}

/// Role: answers the questions on its standard input about a cache. Arguments: `read` or `write`,
/// the directory.
pub(crate) fn serve(arguments: &[String]) {
    let [access, dir] = arguments else { panic!("{arguments:?}") };
    let opened = Cache::builder(dir).max_bytes(8 << 20).read_only(access == "read").open();
    let cache = match opened {
        Ok(cache) => cache,
        Err(error) => return println!("{:?}", error.kind()),
    };
    println!("open");
    let dir = Path::new(dir);
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        println!("{}", answer(&cache, dir, &words));
    }
}

fn answer(cache: &Cache, dir: &Path, question: &[&str]) -> String {
    match question {
        ["get", key] => kind_of(cache.get::<u64>(key)),
        ["shared", key] => kind_of(cache.get_shared::<u64>(key)),
        ["set", key, value] => kind_of(cache.set(key, &number(value), Timeout::Never)),
        ["large", key] => {
            let value = cache.get_bytes(key).unwrap();
            format!(
                "{:?}",
                value.map(|value| (
                    value.len(),
                    value.iter().all(|byte| *byte == value[0]),
                    value[0]
                ))
            )
        }
        ["iterate"] => cache.keys().map(Result::unwrap).count().to_string(),
        ["handles"] => {
            let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
            let before = descriptors();
            let handles: Vec<_> =
                (0..100).map(|_| Cache::builder(dir).read_only(true).open().unwrap()).collect();
            assert!(
                handles.iter().all(|handle| handle.stats().hits == cache.stats().hits),
                "one engine"
            );
            (descriptors() - before).to_string()
        }
        ["len"] => cache.len().to_string(),
        ["bytes"] => cache.stats().bytes.to_string(),
        ["processes"] => kind_of(cache.process_stats().map(|all| all.len())),
        ["check"] => format!("{:?}", cache.check().unwrap().problems),
        ["dropped"] => {
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let is_removed = |line: &&str| {
                [".seg (deleted)", "/index (deleted)"].iter().any(|end| line.ends_with(end))
            };
            maps.lines().filter(is_removed).count().to_string()
        }
        ["writes"] => {
            cache.flush().unwrap();
            cache.maintain().unwrap();
            assert_eq!(cache.get_or_set("computed", Timeout::Never, || 5).unwrap(), 5);
            assert!(!cache.contains_key("computed").unwrap());
            let key = if cache.contains_key("a").unwrap() { "a" } else { "1" };
            let refusals = [
                cache.set(key, &1, Timeout::Never).err(),
                cache.set_bytes(key, &vec![1; LARGE], Timeout::Never).err(),
                cache.add("new", &1, Timeout::Never).err(),
                cache.delete(key).err(),
                cache.touch(key, Timeout::Never).err(),
                cache.incr(key, 1).err(),
                cache.clear().err(),
                cache.lease("new", Duration::from_secs(1)).err(),
                cache.configure(&NewLimits::new().max_entries(1)).err(),
                cache.writer("new", Timeout::Never).and_then(|writer| writer.commit()).err(),
            ];
            let refused = |error: &Option<keepwarm::Error>| {
                error.as_ref().is_some_and(|error| error.kind() == ErrorKind::ReadOnly)
            };
            assert!(refusals.iter().all(refused), "{refusals:?}");
            "refused".into()
        }
        _ => panic!("{question:?}"),
    }
}

/// Why a process may not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restriction {
    /// The directory is mounted read-only in the namespace of the process.
    Mount,
    /// All files that the directory has now are read-only, and the process is unprivileged.
    Permissions,
}

const RESTRICTIONS: [Restriction; 2] = [Restriction::Mount, Restriction::Permissions];

impl Restriction {
    /// Starts a process that may only read.
    fn open(self, dir: &Path) -> std::result::Result<ChildProcess, &'static str> {
        let mut command = match self {
            Self::Mount => mount::command(mount::READ_ONLY, dir, "--role serve read")?,
            Self::Permissions => {
                let unprivileged = |command: &Command| {
                    let mut in_namespace = Command::new("unshare");
                    in_namespace.arg("-U").arg(command.get_program()).args(command.get_args());
                    in_namespace
                };
                let is_root = nix::unistd::geteuid().is_root();
                let may = unprivileged(&Command::new("true"))
                    .status()
                    .is_ok_and(|status| status.success());
                if !is_root || !may {
                    return Err("needs root and user namespaces (permissions)");
                }
                forbid(dir);
                unprivileged(&child_processes::command("serve", arguments!["read", dir.display()]))
            }
        };
        let mut child = ChildProcess::spawn(&mut command);
        assert_eq!(child.next_line(), "open", "{self:?}");
        Ok(child)
    }
}

/// Removes the permission to write.
fn forbid(path: &Path) {
    let is_dir = path.is_dir();
    if is_dir {
        fs::read_dir(path).unwrap().for_each(|entry| forbid(&entry.unwrap().path()));
    }
    fs::set_permissions(path, Permissions::from_mode(if is_dir { 0o555 } else { 0o444 })).unwrap();
}

fn writer(dir: &Path) -> Cache {
    Cache::builder(dir).max_bytes(8 << 20).max_entries(1000).open().unwrap()
}

/// Starts a process that writes.
fn process(dir: &Path) -> ChildProcess {
    let mut child = ChildProcess::start("serve", arguments!["write", dir.display()]);
    assert_eq!(child.next_line(), "open");
    child
}

fn fill(cache: &Cache) {
    for n in 0..100 {
        cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
    }
    cache.set_bytes("large", &vec![7; LARGE], Timeout::Never).unwrap();
}

fn some(value: u64) -> String {
    format!("Some({value})")
}

fn assert_sees_all(reader: &mut ChildProcess) {
    assert_eq!((reader.ask("len"), reader.ask("iterate")), ("101".into(), "101".into()));
    for n in 0..100 {
        assert_eq!(reader.ask(&format!("get {n}")), some(n));
    }
    assert_eq!(reader.ask("large large"), format!("{:?}", Some((LARGE, true, 7))));
    assert_eq!(reader.ask("get none"), "None");
    assert_eq!(reader.ask("check"), "[]");
    assert_eq!(reader.ask("writes"), "refused");
}

/// Fills a cache in `dir`, which stays open here, and starts a read-only process that sees all of
/// it.
fn writer_and_reader(
    dir: &Path,
    restriction: Restriction,
) -> std::result::Result<(Cache, ChildProcess), &'static str> {
    let cache = writer(dir);
    fill(&cache);
    let mut reader = restriction.open(dir)?;
    assert_sees_all(&mut reader);
    Ok((cache, reader))
}

/// The content of a directory: names, times and bytes.
type Listing = BTreeMap<PathBuf, (SystemTime, Vec<u8>)>;

fn listing(dir: &Path) -> Listing {
    let mut all = Listing::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let is_dir = path.is_dir();
        if is_dir {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let bytes = if is_dir { Vec::new() } else { fs::read(&path).unwrap() };
        all.insert(path.clone(), (fs::metadata(&path).unwrap().modified().unwrap(), bytes));
    }
    all
}

#[track_caller]
fn assert_unchanged(dir: &Path, before: &Listing) {
    let now = listing(dir);
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&now), names(before));
    for (path, what) in &now {
        assert!(before[path] == *what, "{} was changed", path.display());
    }
}

/// Calls `set` for each number, and asserts that the reader sees each write as soon as it is
/// acknowledged.
fn assert_sees_each(
    reader: &mut ChildProcess,
    mut set: impl FnMut(u64),
    times: std::ops::Range<u64>,
) {
    for n in times {
        set(n);
        for _ in 0..3 {
            assert_eq!(reader.ask("get a"), some(n));
        }
        assert_eq!(reader.ask("shared a"), some(n));
    }
}

pub(crate) fn sees_each_write() -> Verdict {
    for restriction in RESTRICTIONS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let (cache, mut reader) = writer_and_reader(&dir, restriction)?;
        assert_eq!(reader.ask("processes"), "2");
        assert_eq!(cache.process_stats().unwrap().len(), 1, "read-only processes are not listed");
        let set = |n| cache.set("a", &n, Timeout::Never).unwrap();
        assert_sees_each(&mut reader, set, 0..500);
        assert!(cache.delete("a").unwrap());
        assert_eq!(reader.ask("get a"), "None");
        set(7);
        cache.touch("a", Duration::ZERO).unwrap();
        assert_eq!(reader.ask("get a"), "None");
        cache.set_bytes("large", &vec![8; LARGE], Timeout::Never).unwrap();
        assert_eq!(reader.ask("large large"), format!("{:?}", Some((LARGE, true, 8))));
        // Between the two calls, the background may release bytes or create a segment.
        wait_until("both count the same bytes", || {
            reader.ask("bytes") == cache.stats().bytes.to_string()
        });
        cache.clear().unwrap();
        assert_eq!((reader.ask("get 1"), reader.ask("len")), ("None".into(), "0".into()));
        // The reader continues when all writers close the directory, and when others open it.
        set(8);
        drop(cache);
        let before = listing(&dir);
        assert_eq!(reader.ask("get a"), some(8));
        assert_eq!(reader.ask("writes"), "refused");
        assert_unchanged(&dir, &before);
        let cache = writer(&dir);
        assert_sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 9..20);
        drop(cache);
        // The same if the index must be rebuilt with another size.
        let cache = Cache::builder(&dir).max_bytes(64 << 20).max_entries(100_000).open().unwrap();
        assert_sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 20..30);
        drop(cache);
        // The same if the only writer dies.
        let mut one = process(&dir);
        let mut set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        assert_sees_each(&mut reader, &mut set, 30..40);
        one.kill();
        assert_eq!(reader.ask("get a"), some(39));
        let mut other = process(&dir);
        let mut set = |n: u64| assert_eq!(other.ask(&format!("set a {n}")), "()");
        assert_sees_each(&mut reader, &mut set, 40..50);
        assert_eq!(reader.ask("check"), "[]");
        reader.finish();
        other.finish();
        println!(
            "{restriction:?}: 541 writes of others seen at once, across three opens and a kill"
        );
    }
    Ok(())
}

pub(crate) fn reads_a_closed_directory() -> Verdict {
    for restriction in RESTRICTIONS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        fill(&writer(&dir));
        let before = listing(&dir);
        let mut reader = restriction.open(&dir)?;
        assert_sees_all(&mut reader);
        assert_eq!((reader.ask("processes"), reader.ask("handles")), ("1".into(), "0".into()));
        assert_unchanged(&dir, &before);
        // The reader sees the writes of a process that opens the directory later.
        let mut one = process(&dir);
        let set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        assert_sees_each(&mut reader, set, 0..10);
        assert_eq!(reader.ask("processes"), "2");
        one.finish();
        // Without an index, the reader unmaps the old one: the process that must rebuild it may
        // need its space.
        drop(Cache::builder(&dir).max_bytes(64 << 20).max_entries(100_000).open().unwrap());
        fs::remove_file(dir.join("index")).unwrap();
        assert_eq!((reader.ask("get a"), reader.ask("dropped")), ("Io".into(), "0".into()));
        let cache = writer(&dir);
        assert_sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 10..20);
        reader.finish();
    }
    Ok(())
}

pub(crate) fn reads_after_a_kill() -> Verdict {
    for restriction in RESTRICTIONS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        fill(&writer(&dir));
        let mut one = process(&dir);
        for n in 0..100 {
            assert_eq!(one.ask(&format!("set {n} {n}")), "()");
        }
        one.kill();
        let before = listing(&dir);
        let mut reader = restriction.open(&dir)?;
        assert_sees_all(&mut reader);
        assert_unchanged(&dir, &before);
        let mut second = restriction.open(&dir)?;
        // The reader sees the writes of the process that recovers the directory.
        let mut one = process(&dir);
        let mut set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        assert_sees_each(&mut reader, &mut set, 0..10);
        set(20);
        assert_eq!((reader.ask("processes"), reader.ask("get a")), ("2".into(), some(20)));
        overfill(&writer(&dir));
        assert_eq!(one.ask("set a 20"), "()");
        one.kill();
        // The second reader was idle so far: it attached before the recovery and the overfill.
        wait_until_unmapped(&mut second);
        assert_eq!(second.ask("get a"), some(20));
        assert_eq!(reader.ask("get a"), some(20));
        for reader in [reader, second] {
            reader.finish();
        }
    }
    Ok(())
}

/// Stores several times `max_bytes`.
fn overfill(cache: &Cache) {
    for n in 1000..3000 {
        cache.set_bytes(&n.to_string(), &[1; 10_000], Timeout::Never).unwrap();
    }
    cache.maintain().unwrap();
}

/// Waits until the reader has no removed file mapped, although it reads nothing meanwhile.
fn wait_until_unmapped(reader: &mut ChildProcess) {
    wait_until("removed files are unmapped", || number(&reader.ask("dropped")) == 0);
}

pub(crate) fn unmaps_removed_files() -> Verdict {
    for restriction in RESTRICTIONS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let (cache, mut reader) = writer_and_reader(&dir, restriction)?;
        overfill(&cache);
        wait_until_unmapped(&mut reader);
        assert_eq!(reader.ask("large large"), "None");
        assert_eq!(reader.ask("iterate"), cache.len().to_string());
        reader.finish();
    }
    Ok(())
}

/// Role, in a mount namespace in which `home/mount` is a read-only file system. Argument: `home`.
pub(crate) fn see_all(arguments: &[String]) {
    let [home] = arguments else { panic!("{arguments:?}") };
    let mount = Path::new(home).join("mount");
    for name in ["closed", "left"] {
        let mut reader =
            ChildProcess::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.next_line(), "open", "{name}");
        assert_sees_all(&mut reader);
        reader.finish();
        #[cfg(feature = "cli")]
        for command in
            [["check", "sound"], ["get", "50"], ["ls", "large"], ["stats", "entries    101"]]
        {
            let mut tool = Command::new(env!("CARGO_BIN_EXE_keepwarm"));
            tool.arg(command[0]).arg(mount.join(name)).args((command[0] == "get").then_some("50"));
            let output = tool.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && text.contains(command[1]), "{command:?}: {text}");
        }
        let opened = Cache::builder(mount.join(name)).open();
        assert!(opened.is_err(), "opening it for writing fails");
    }
    for name in ["damaged-index", "damaged-log"] {
        let mut reader =
            ChildProcess::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.next_line(), "open", "{name}");
        for _ in 0..2 {
            let missed = (0..100).filter(|n| {
                let got = reader.ask(&format!("get {n}"));
                assert!(got == "None" || got == some(*n), "{name}: {got}");
                got == "None"
            });
            assert!(missed.count() > 50, "{name}");
        }
        assert_ne!(reader.ask("check"), "[]", "{name}");
        reader.finish();
    }
    for (name, kind) in
        [("no-index", "Io"), ("no-index-in-it", "Io"), ("empty", "Io"), ("none", "Io")]
    {
        let mut reader =
            ChildProcess::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.next_line(), kind, "{name}");
    }
}

pub(crate) fn file_system_can_be_read() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for name in ["mount", "empty"] {
        fs::create_dir(at(name)).unwrap();
    }
    let dirs = ["closed", "no-index", "no-index-in-it", "damaged-index", "damaged-log"].map(at);
    dirs.iter().for_each(|dir| fill(&writer(dir)));
    fs::remove_file(dirs[1].join("index")).unwrap();
    fs::write(dirs[2].join("index"), b"").unwrap();
    let spoil = |path: &Path, from: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[from..].iter_mut().filter(|byte| **byte != 0).for_each(|byte| *byte ^= 0x55);
        fs::write(path, bytes).unwrap();
    };
    // The second half of the index: the buckets, and places that point to missing segments.
    spoil(&dirs[3].join("index"), fs::metadata(dirs[3].join("index")).unwrap().len() as usize / 2);
    for segment in fs::read_dir(dirs[4].join("segments")).unwrap() {
        spoil(&segment.unwrap().path(), 64);
    }
    let left = at("left");
    fill(&writer(&left));
    let mut one = process(&left);
    for n in 0..100 {
        assert_eq!(one.ask(&format!("set {n} {n}")), "()");
    }
    one.kill();
    let script = "mount -t tmpfs none \"$0/mount\" \
        && (cd \"$0\" && cp -a closed left no-index* damaged* empty mount) \
        && mount -o remount,ro \"$0/mount\"";
    mount::run(script, home.path(), "--role see-all")
}
