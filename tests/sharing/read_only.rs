//! Processes that read a directory and may not write to it: as it is mounted so for them, or as they lack the permission.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use keepwarm::{Cache, ErrorKind, NewLimits, Result, Timeout};

use crate::crew::{self, Member, arguments, number, until};
use crate::harness::Verdict;
use crate::mount;

/// More than is stored in a segment of these caches.
const LARGE: usize = 300_000;

fn kind_of<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.map_or_else(|e| format!("{:?}", e.kind()), |value| format!("{value:?}"))
}

/// Answers what it is asked on its standard input about the cache in a directory.
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
enum Way {
    /// The directory is mounted read-only, where it looks.
    Mount,
    /// All in the directory that is there now may only be read, and the process is nobody special.
    Permissions,
}

const WAYS: [Way; 2] = [Way::Mount, Way::Permissions];

impl Way {
    /// A process that may only read.
    fn open(self, dir: &Path) -> std::result::Result<Member, &'static str> {
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
                unprivileged(&crew::command("serve", arguments!["read", dir.display()]))
            }
        };
        let mut member = Member::spawn(&mut command);
        assert_eq!(member.hear(), "open", "{self:?}");
        Ok(member)
    }
}

/// Takes the permission to write away.
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

/// A process that writes.
fn process(dir: &Path) -> Member {
    let mut member = Member::start("serve", arguments!["write", dir.display()]);
    assert_eq!(member.hear(), "open");
    member
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

fn sees_all(reader: &mut Member) {
    assert_eq!((reader.ask("len"), reader.ask("iterate")), ("101".into(), "101".into()));
    for n in 0..100 {
        assert_eq!(reader.ask(&format!("get {n}")), some(n));
    }
    assert_eq!(reader.ask("large large"), format!("{:?}", Some((LARGE, true, 7))));
    assert_eq!(reader.ask("get none"), "None");
    assert_eq!(reader.ask("check"), "[]");
    assert_eq!(reader.ask("writes"), "refused");
}

/// A cache in `dir` that is open here, and a process that may only read and sees all of it.
fn looked_at(dir: &Path, way: Way) -> std::result::Result<(Cache, Member), &'static str> {
    let cache = writer(dir);
    fill(&cache);
    let mut reader = way.open(dir)?;
    sees_all(&mut reader);
    Ok((cache, reader))
}

/// All that is in a directory: names, times and bytes.
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
fn unchanged(dir: &Path, before: &Listing) {
    let now = listing(dir);
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&now), names(before));
    for (path, what) in &now {
        assert!(before[path] == *what, "{} was changed", path.display());
    }
}

/// Writes in one process or another, and reads here in between: no read gives what was there before a write that is over.
fn sees_each(reader: &mut Member, mut set: impl FnMut(u64), times: std::ops::Range<u64>) {
    for n in times {
        set(n);
        for _ in 0..3 {
            assert_eq!(reader.ask("get a"), some(n));
        }
        assert_eq!(reader.ask("shared a"), some(n));
    }
}

pub(crate) fn reads_what_others_write() -> Verdict {
    for way in WAYS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let (cache, mut reader) = looked_at(&dir, way)?;
        assert_eq!(reader.ask("processes"), "2");
        assert_eq!(cache.process_stats().unwrap().len(), 1, "nobody sees who looks on");
        let set = |n| cache.set("a", &n, Timeout::Never).unwrap();
        sees_each(&mut reader, set, 0..500);
        assert!(cache.delete("a").unwrap());
        assert_eq!(reader.ask("get a"), "None");
        set(7);
        cache.touch("a", Duration::ZERO).unwrap();
        assert_eq!(reader.ask("get a"), "None");
        cache.set_bytes("large", &vec![8; LARGE], Timeout::Never).unwrap();
        assert_eq!(reader.ask("large large"), format!("{:?}", Some((LARGE, true, 8))));
        // The background may be giving some back, or making a segment, between the one look and the other.
        until("both count the same bytes", || {
            reader.ask("bytes") == cache.stats().bytes.to_string()
        });
        cache.clear().unwrap();
        assert_eq!((reader.ask("get 1"), reader.ask("len")), ("None".into(), "0".into()));
        // It goes on when all leave, and when others come.
        set(8);
        drop(cache);
        let before = listing(&dir);
        assert_eq!(reader.ask("get a"), some(8));
        assert_eq!(reader.ask("writes"), "refused");
        unchanged(&dir, &before);
        let cache = writer(&dir);
        sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 9..20);
        drop(cache);
        // The same, where the index has to be another size.
        let cache = Cache::builder(&dir).max_bytes(64 << 20).max_entries(100_000).open().unwrap();
        sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 20..30);
        drop(cache);
        // And where one dies who was the only one.
        let mut one = process(&dir);
        let mut set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        sees_each(&mut reader, &mut set, 30..40);
        one.kill();
        assert_eq!(reader.ask("get a"), some(39));
        let mut other = process(&dir);
        let mut set = |n: u64| assert_eq!(other.ask(&format!("set a {n}")), "()");
        sees_each(&mut reader, &mut set, 40..50);
        assert_eq!(reader.ask("check"), "[]");
        reader.finish();
        other.finish();
        println!(
            "{way:?}: 541 writes of others, each seen at once, through three openings and a death"
        );
    }
    Ok(())
}

pub(crate) fn reads_what_was_closed() -> Verdict {
    for way in WAYS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        fill(&writer(&dir));
        let before = listing(&dir);
        let mut reader = way.open(&dir)?;
        sees_all(&mut reader);
        assert_eq!((reader.ask("processes"), reader.ask("handles")), ("1".into(), "0".into()));
        unchanged(&dir, &before);
        // Whoever comes later is seen.
        let mut one = process(&dir);
        let set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        sees_each(&mut reader, set, 0..10);
        assert_eq!(reader.ask("processes"), "2");
        one.finish();
        // Where there is nothing to look at instead, what was seen is not kept: who has to make it may lack that space.
        drop(Cache::builder(&dir).max_bytes(64 << 20).max_entries(100_000).open().unwrap());
        fs::remove_file(dir.join("index")).unwrap();
        assert_eq!((reader.ask("get a"), reader.ask("dropped")), ("Io".into(), "0".into()));
        let cache = writer(&dir);
        sees_each(&mut reader, |n| cache.set("a", &n, Timeout::Never).unwrap(), 10..20);
        reader.finish();
    }
    Ok(())
}

pub(crate) fn reads_what_was_left() -> Verdict {
    for way in WAYS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        fill(&writer(&dir));
        let mut one = process(&dir);
        for n in 0..100 {
            assert_eq!(one.ask(&format!("set {n} {n}")), "()");
        }
        one.kill();
        let before = listing(&dir);
        let mut reader = way.open(&dir)?;
        sees_all(&mut reader);
        unchanged(&dir, &before);
        let mut second = way.open(&dir)?;
        // Whoever recovers it is seen.
        let mut one = process(&dir);
        let mut set = |n: u64| assert_eq!(one.ask(&format!("set a {n}")), "()");
        sees_each(&mut reader, &mut set, 0..10);
        set(20);
        assert_eq!((reader.ask("processes"), reader.ask("get a")), ("2".into(), some(20)));
        overfill(&writer(&dir));
        assert_eq!(one.ask("set a 20"), "()");
        one.kill();
        // Idle so far: it looked before both.
        lets_go(&mut second);
        assert_eq!(second.ask("get a"), some(20));
        assert_eq!(reader.ask("get a"), some(20));
        for reader in [reader, second] {
            reader.finish();
        }
    }
    Ok(())
}

/// Stores several times what there is room for.
fn overfill(cache: &Cache) {
    for n in 1000..3000 {
        cache.set_bytes(&n.to_string(), &[1; 10_000], Timeout::Never).unwrap();
    }
    cache.maintain().unwrap();
}

/// Waits until nothing that was removed is mapped there, although nothing is read meanwhile.
fn lets_go(reader: &mut Member) {
    until("removed files are let go of", || number(&reader.ask("dropped")) == 0);
}

pub(crate) fn lets_go_of_what_was_removed() -> Verdict {
    for way in WAYS {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        let (cache, mut reader) = looked_at(&dir, way)?;
        overfill(&cache);
        lets_go(&mut reader);
        assert_eq!(reader.ask("large large"), "None");
        assert_eq!(reader.ask("iterate"), cache.len().to_string());
        reader.finish();
    }
    Ok(())
}

/// In a mount namespace: `home/mount` is a file system of its own that cannot be written to.
pub(crate) fn see_all(arguments: &[String]) {
    let [home] = arguments else { panic!("{arguments:?}") };
    let mount = Path::new(home).join("mount");
    for name in ["closed", "left"] {
        let mut reader = Member::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.hear(), "open", "{name}");
        sees_all(&mut reader);
        reader.finish();
        #[cfg(feature = "cli")]
        for command in
            [["check", "sound"], ["get", "50"], ["ls", "large"], ["stats", "entries    101"]]
        {
            let mut tool = Command::new(env!("CARGO_BIN_EXE_keepwarm"));
            tool.arg(command[0]).arg(mount.join(name)).args((command[0] == "get").then_some("50"));
            let said = tool.output().unwrap();
            let told = String::from_utf8(said.stdout).unwrap();
            assert!(said.status.success() && told.contains(command[1]), "{command:?}: {told}");
        }
        let opened = Cache::builder(mount.join(name)).open();
        assert!(opened.is_err(), "to write");
    }
    for name in ["damaged-index", "damaged-log"] {
        let mut reader = Member::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.hear(), "open", "{name}");
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
        let mut reader = Member::start("serve", arguments!["read", mount.join(name).display()]);
        assert_eq!(reader.hear(), kind, "{name}");
    }
}

pub(crate) fn file_system_is_read() -> Verdict {
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
    // Behind the table of processes: the buckets, and places of segments that there are not.
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
    let script = "mount -t tmpfs none \"$0/mount\" && (cd \"$0\" && cp -a closed left no-index* damaged* empty mount) \
        && mount -o remount,ro \"$0/mount\"";
    mount::run(script, home.path(), "--role see-all")
}
