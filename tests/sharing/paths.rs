//! All paths to a directory lead to the same cache: for the handles of one process, and for
//! several processes.
//!
//! Shows invariant I9.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use keepwarm::{Cache, Timeout};

use crate::child_processes::{self, arguments};
use crate::harness::Verdict;
use crate::mount;

const TIMES: u64 = 5_000;

/// Role: increments a counter. Argument: the path of the directory.
pub(crate) fn count_at(arguments: &[String]) {
    let [path] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::open(Path::new(path)).unwrap();
    child_processes::wait_for_start();
    for _ in 0..TIMES {
        cache.incr_or_init("counter", 1, 0, Timeout::Never).unwrap();
    }
}

/// Opens the directory by all `paths` in this process, and by each path in a process of its own.
fn is_one(paths: &[PathBuf]) {
    let caches: Vec<Cache> = paths.iter().map(|path| Cache::open(path).unwrap()).collect();
    for (n, cache) in caches.iter().enumerate() {
        cache.set(&n.to_string(), &n, Timeout::Never).unwrap();
    }
    for cache in &caches {
        assert_eq!(cache.stats().commits, caches[0].stats().commits, "one engine");
        for (n, path) in paths.iter().enumerate() {
            assert_eq!(cache.get::<usize>(&n.to_string()).unwrap(), Some(n), "{path:?}");
        }
    }
    assert_eq!(caches[0].process_stats().unwrap().len(), 1);
    child_processes::run_together("count-at", paths.iter().map(|path| arguments![path.display()]));
    let count = caches[0].get::<u64>("counter").unwrap();
    assert_eq!(count, Some(paths.len() as u64 * TIMES));
    assert!(caches[0].check().unwrap().is_sound());
    drop(caches);
    // Opened one after the other, each finds the data that the previous one left.
    for path in paths {
        assert_eq!(Cache::open(path).unwrap().get::<u64>("counter").unwrap(), count, "{path:?}");
    }
}

pub(crate) fn all_lead_to_one() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let [link, around, detour] = ["link", "around", "detour"].map(|name| home.path().join(name));
    symlink(&dir, &link).unwrap();
    symlink(home.path(), &around).unwrap();
    std::fs::create_dir(&detour).unwrap();
    is_one(&[
        dir.clone(),
        link,
        around.join("link"),
        around.join("cache"),
        detour.join("..").join("cache"),
    ]);
    let relative =
        Path::new("/proc/self/cwd").join("../".repeat(50)).join(dir.strip_prefix("/").unwrap());
    assert_eq!(Cache::open(relative).unwrap().get::<u64>("counter").unwrap(), Some(5 * TIMES));
    Ok(())
}

/// Role, in a mount namespace in which `home/cache` is also mounted at `home/bound`. Argument:
/// `home`.
pub(crate) fn bound(arguments: &[String]) {
    let [home] = arguments else { panic!("{arguments:?}") };
    let home = Path::new(home);
    is_one(&[home.join("cache"), home.join("bound")]);
}

pub(crate) fn bind_mount_leads_to_the_same() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    for name in ["cache", "bound"] {
        std::fs::create_dir(home.path().join(name)).unwrap();
    }
    mount::run("mount --bind \"$0/cache\" \"$0/bound\"", home.path(), "--role bound")
}
