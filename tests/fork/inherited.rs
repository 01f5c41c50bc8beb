//! A child with an inherited cache, writer, reader, lease or computation.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use keepwarm::{Builder, Cache, Error, ErrorKind, Timeout};

use crate::child::{Pipe, child, descriptors, mappings};
use crate::harness::Verdict;
use crate::locks::first_held;

const TIMES: i64 = 3000;
/// The tolerance of the counts: descriptors that the background thread opens for a moment, and
/// segments that it creates meanwhile.
const FEW: u64 = 5;

/// Whether no count exceeds the lowest by more than the tolerance.
fn are_alike(counts: &[u64]) -> bool {
    let least = counts.iter().min().unwrap();
    counts.iter().all(|count| *count <= least + FEW)
}

pub(crate) fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(20_000).max_bytes(32 << 20)
}

/// Increments the shared counter, and writes and reads entries of this process.
fn work(cache: &Cache, process: &str) {
    for n in 0..TIMES {
        let key = format!("{process} {n}");
        cache.set(&key, &n, Timeout::Never).unwrap();
        cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap();
        assert_eq!(cache.get(&key).unwrap(), Some(n));
    }
}

fn check(cache: &Cache) {
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
}

pub(crate) fn both_use_the_cache() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = builder(&home.path().join("cache")).open().unwrap();
    let view = cache.with_prefix("view");
    let value = vec![7; 30_000];
    cache.set_bytes("bytes", &value, Timeout::Never).unwrap();
    view.set("before", &1, Timeout::Never).unwrap();
    let held = cache.get_bytes("bytes").unwrap().unwrap();
    let forked = child(|| {
        assert_eq!(view.get("before").unwrap(), Some(1));
        work(&cache, "child");
        assert_eq!(held, value);
        cache.delete("bytes").unwrap();
        assert_eq!(cache.get_or_set("computed", Timeout::Never, || 5).unwrap(), 5);
        cache.flush().unwrap();
    });
    work(&cache, "parent");
    forked.finish();
    assert_eq!(cache.get("count").unwrap(), Some(2 * TIMES), "increments of both processes");
    for n in 0..TIMES {
        assert_eq!(cache.get(&format!("child {n}")).unwrap(), Some(n));
        assert_eq!(cache.get(&format!("parent {n}")).unwrap(), Some(n));
    }
    assert_eq!(
        (cache.get_bytes("bytes").unwrap(), cache.get("computed").unwrap()),
        (None, Some(5))
    );
    assert_eq!(held, value);
    check(&cache);
    Ok(())
}

pub(crate) fn generations() -> Verdict {
    const GENERATIONS: u64 = 20;
    fn live(cache: &Cache, generation: u64, said: &Pipe) {
        let count = || cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap();
        count();
        said.send(descriptors() as u64);
        if generation < GENERATIONS {
            let next = child(|| live(cache, generation + 1, said));
            count();
            next.finish();
        }
        count();
    }
    let home = tempfile::tempdir().unwrap();
    let cache = builder(&home.path().join("cache")).open().unwrap();
    let said = Pipe::new();
    live(&cache, 1, &said);
    let counts: Vec<u64> = (0..GENERATIONS).map(|_| said.receive()).collect();
    assert!(are_alike(&counts), "descriptors in each generation: {counts:?}");
    assert_eq!(cache.get("count").unwrap(), Some(3 * GENERATIONS - 1));
    check(&cache);
    println!(
        "{GENERATIONS} generations: {} descriptors in the first, {} in the last",
        counts[0],
        counts[counts.len() - 1]
    );
    Ok(())
}

pub(crate) fn no_descriptor_leaks() -> Verdict {
    const FORKS: u64 = 100;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let (lease, said) = (cache.lease("lease", Duration::from_secs(600)).unwrap(), Pipe::new());
    let held = || [descriptors() as u64, mappings(&[dir.to_str().unwrap()]) as u64];
    let before = held();
    let mut children = Vec::new();
    for n in 0..FORKS {
        child(|| {
            let inherited = descriptors();
            cache.set(&format!("child {n}"), &n, Timeout::Never).unwrap();
            drop(cache.lease("another", Duration::from_secs(600)).unwrap().unwrap());
            said.send(descriptors() as u64);
            cache.close().unwrap();
            assert_eq!(descriptors(), inherited);
        })
        .finish();
        assert_eq!(cache.get(&format!("child {n}")).unwrap(), Some(n));
        children.push(said.receive());
    }
    assert!(are_alike(&children), "descriptors of each child: {children:?}");
    let after = held();
    let is_more = before.iter().zip(after).any(|(before, after)| after > before + FEW);
    assert!(!is_more, "descriptors and mappings of the parent: {before:?}, then {after:?}");
    drop(lease);
    println!(
        "{FORKS} children: {} descriptors in the parent, {} in a child",
        after[0], children[0]
    );
    Ok(())
}

/// A name, and a way for a child to end with its inherited cache.
type Ending = (&'static str, fn(Cache));

const ENDINGS: &[Ending] = &[
    ("it does nothing and calls _exit", std::mem::forget),
    ("it drops the cache", drop),
    ("it uses it and calls _exit", |cache| {
        work(&cache, "child");
        std::mem::forget(cache);
    }),
    ("it uses and drops it", |cache| work(&cache, "child")),
    ("it closes the cache without using it", |cache| cache.close().unwrap()),
    ("it uses and closes it", |cache| {
        work(&cache, "child");
        cache.close().unwrap();
    }),
    ("it opens the directory itself, too", |cache| {
        // By another path, so that the open does not find the inherited handle by its path.
        let other = builder(Path::new("/proc/self/cwd/cache")).open().unwrap();
        other.set("other", &1, Timeout::Never).unwrap();
        drop(cache);
        assert_eq!(other.get("other").unwrap(), Some(1));
    }),
];

pub(crate) fn parent_stays_attached() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    std::env::set_current_dir(home.path()).unwrap();
    let cache = builder(&dir).open().unwrap();
    let lease = cache.lease("lease", Duration::from_secs(600)).unwrap().unwrap();
    let locks = dir.join("locks");
    let mine = first_held(&locks);
    assert_eq!(mine, Some(1), "the slot of this process");
    let mut all = Some((cache, lease));
    for (name, ending) in ENDINGS {
        child(|| {
            // The child's only handles.
            let (inherited, lease) = all.take().unwrap();
            // New files may get the numbers of descriptors that the child has closed. A second
            // close of such a number would close one of these.
            let files: Vec<File> = (0..20).map(|_| tempfile::tempfile().unwrap()).collect();
            let found = || -> Vec<_> {
                let inode = |file: &File| {
                    std::fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))
                        .map(|m| m.ino())
                };
                files
                    .iter()
                    .map(|file| (inode(file).unwrap(), file.metadata().unwrap().ino()))
                    .collect()
            };
            let before = found();
            drop(lease);
            ending(inherited);
            assert_eq!(found(), before, "{name}: the files that the child opened are still open");
        })
        .finish();
        assert_eq!(first_held(&locks), mine, "{name}: the parent is still attached");
        let (cache, lease) = all.as_ref().unwrap();
        work(cache, "parent");
        assert!(lease.is_held().unwrap());
        assert!(cache.lease("lease", Duration::from_secs(600)).unwrap().is_none(), "{name}");
    }
    check(&all.as_ref().unwrap().0);
    drop(all);
    assert_eq!(first_held(&locks), None);
    std::env::set_current_dir("/").unwrap();
    Ok(())
}

pub(crate) fn writers_and_leases() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let large = vec![5; 2 << 20];
    let write = |key, value: &[u8]| {
        let mut writer = cache.writer(key, Timeout::Never).unwrap();
        writer.write_all(value).unwrap();
        writer
    };
    let writers = [write("small", b"small"), write("large", &large)];
    let dropped = write("dropped", &large);
    let [lease, released] = ["lease", "released"]
        .map(|key| cache.lease(key, Duration::from_secs(600)).unwrap().unwrap());
    cache.set_bytes("stored", &large, Timeout::Never).unwrap();
    let files = || std::fs::read_dir(dir.join("blobs")).unwrap().count();
    let before = files();
    let mut reader = cache.reader("stored").unwrap().unwrap();
    let mut inherited = Some((writers, dropped, lease, released));
    child(|| {
        let ([small, mut broken], dropped, lease, released) = inherited.take().unwrap();
        let failed = [broken.write(b"more").unwrap_err(), reader.read(&mut [0; 100]).unwrap_err()];
        for failed in failed.map(|failed| failed.downcast::<Error>().unwrap()) {
            assert_eq!(failed.kind(), ErrorKind::Interrupted, "{failed}");
        }
        assert_eq!(small.commit().unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(broken.commit().unwrap_err().kind(), ErrorKind::Interrupted);
        drop((dropped, lease));
        assert!(!released.release().unwrap());
        assert_eq!(files(), before);
        assert_eq!(cache.get_bytes("small").unwrap(), None);
        assert!(cache.get_bytes("stored").unwrap().unwrap() == large);
        let mut own = cache.writer("own", Timeout::Never).unwrap();
        own.write_all(b"own").unwrap();
        own.commit().unwrap();
    })
    .finish();
    let (writers, dropped, lease, released) = inherited.take().unwrap();
    for key in ["lease", "released"] {
        assert!(cache.lease(key, Duration::from_secs(600)).unwrap().is_none(), "{key} is taken");
    }
    assert!(lease.is_held().unwrap() && released.release().unwrap() && lease.release().unwrap());
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read == large, "the parent's reader still works");
    assert_eq!(files(), before);
    drop(dropped);
    assert_eq!(files(), before - 1, "the file of the writer that the parent dropped is deleted");
    let [small, mut large_writer] = writers;
    large_writer.write_all(b"more").unwrap();
    small.commit().unwrap();
    large_writer.commit().unwrap();
    assert_eq!(cache.get_bytes("small").unwrap().unwrap(), "small");
    assert_eq!(cache.get_bytes("own").unwrap().unwrap(), "own");
    assert!(cache.get_bytes("large").unwrap().unwrap() == [&large[..], b"more"].concat());
    Ok(())
}

pub(crate) fn computations() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let cache = builder(&home.path().join("cache")).open().unwrap();
    let (begun, asked) = (Pipe::new(), Pipe::new());
    let (go_on, may_go_on) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let cache = &cache;
        let begun = &begun;
        scope.spawn(move || {
            let value = cache.get_or_set("slow", Timeout::Never, || {
                begun.send(1);
                may_go_on.recv().unwrap();
                "the parent's".to_owned()
            });
            assert_eq!(value.unwrap(), "the parent's");
        });
        begun.receive();
        // Other keys are computed at once; this one waits for the parent, which still computes it.
        let forked = child(|| {
            assert_eq!(cache.get_or_set("other", Timeout::Never, || 3).unwrap(), 3);
            asked.send(1);
            let value = cache.get_or_set("slow", Timeout::Never, || "the child's".to_owned());
            assert_eq!(value.unwrap(), "the parent's");
        });
        asked.receive();
        go_on.send(()).unwrap();
        forked.finish();
    });
    // A fork within a computation: both processes continue, and the claim stays with the parent.
    let value = cache.get_or_set("forking", Timeout::Never, || {
        child(|| assert_eq!(cache.get_or_set("inner", Timeout::Never, || 1).unwrap(), 1)).finish();
        // Another child asks for the key while the parent computes it.
        let other = child(|| {
            let seen =
                cache.get_or_set("forking", Timeout::Never, || "the child's".to_owned()).unwrap();
            assert_eq!(seen, "the parent's");
        });
        (other, "the parent's".to_owned()).1
    });
    assert_eq!(value.unwrap(), "the parent's");
    Ok(())
}

pub(crate) fn removed_segments() -> Verdict {
    /// Segments that the background thread may use at the fork. They stay mapped in the child.
    const IN_USE: usize = 4;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let value = vec![3; 60_000];
    let fill = |round: u32| {
        for n in 0..600 {
            cache.set_bytes(&format!("{round} {n}"), &value, Timeout::Never).unwrap();
        }
    };
    fill(0);
    let mut held = cache.get_bytes("0 599").unwrap();
    assert!(held.is_some(), "the value was just stored");
    let go_on = Pipe::new();
    let removed = || mappings(&[dir.join("segments").to_str().unwrap(), "(deleted)"]);
    let forked = child(|| {
        go_on.receive();
        let before = removed();
        assert!(before > 20, "mapped segments that the parent has removed: {before}");
        assert_eq!(cache.get::<u8>("missing").unwrap(), None);
        let now = removed();
        assert!(
            (1..=1 + IN_USE).contains(&now),
            "all unmapped except those in use: {now} of {before} are left"
        );
        assert_eq!(held.take().unwrap(), value);
        assert_eq!(removed(), now - 1, "the segment of the held value is unmapped with it");
    });
    (1..6).for_each(fill);
    cache.maintain().unwrap();
    go_on.send(1);
    forked.finish();
    assert_eq!(held.unwrap(), value);
    Ok(())
}
