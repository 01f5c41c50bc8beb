//! A process has one engine for a directory: the number of descriptors and mappings does not grow
//! with the number of handles and threads.

use std::fs;
use std::path::Path;

use keepwarm::{Builder, Cache, Timeout};

use crate::child_processes::{self, ChildProcess, arguments};
use crate::harness::Verdict;

const HANDLES: usize = 1000;
const THREADS: usize = 100;
/// Slack for files that the background opens for a moment, and for segments that it creates.
const FEW: usize = 8;

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(10_000).max_bytes(16 << 20)
}

/// The descriptors of this process, and its mappings of files in `dir`.
fn held(dir: &Path) -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let dir = dir.to_str().unwrap();
    (
        fs::read_dir("/proc/self/fd").unwrap().count(),
        maps.lines().filter(|line| line.contains(dir)).count(),
    )
}

/// Role: opens many handles beside another process, and prints the numbers of descriptors and
/// mappings. Argument: the directory.
pub(crate) fn hold_many(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let dir = Path::new(dir);
    let cache = builder(dir).open().unwrap();
    let work = |cache: &Cache, n: usize| {
        cache.set(&format!("key {n}"), &n, Timeout::Never).unwrap();
        assert_eq!(cache.get(&format!("key {n}")).unwrap(), Some(n));
    };
    work(&cache, 0);
    child_processes::wait_for_start();
    let before = held(dir);
    let handles: Vec<Cache> = (0..HANDLES).map(|_| builder(dir).open().unwrap()).collect();
    let most = std::thread::scope(|scope| {
        let threads: Vec<_> = handles
            .chunks(HANDLES / THREADS)
            .enumerate()
            .map(|(thread, handles)| {
                scope.spawn(move || {
                    for (n, handle) in handles.iter().enumerate() {
                        work(handle, 1 + thread * handles.len() + n);
                    }
                    held(dir)
                })
            })
            .collect();
        let held = threads.into_iter().map(|thread| thread.join().unwrap());
        held.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1))).unwrap()
    });
    let after = held(dir);
    drop(handles);
    println!("{} {} {} {} {} {}", before.0, before.1, most.0, most.1, after.0, after.1);
}

pub(crate) fn do_not_grow() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let mut child = ChildProcess::start("hold-many", arguments![dir.display()]);
    assert_eq!(child.next_line(), "ready");
    child.proceed();
    let printed = child.finish();
    let counts: Vec<usize> =
        printed.split_whitespace().map(|count| child_processes::number(count) as usize).collect();
    let [fds, maps, most_fds, most_maps, fds_after, maps_after] = counts[..] else {
        panic!("{printed}")
    };
    // A thread that counts descriptors holds one itself: /proc/self/fd is open. All threads may
    // count at the same moment.
    assert!(most_fds <= fds + THREADS + FEW, "{fds} descriptors, then {most_fds}");
    assert!(fds_after <= fds + FEW, "{fds} descriptors with one handle, then {fds_after}");
    assert!(
        most_maps.max(maps_after) <= maps + FEW,
        "{maps} mappings, then {most_maps} and {maps_after}"
    );
    assert_eq!(cache.get("key 1000").unwrap(), Some(1000));
    println!(
        "{HANDLES} handles, {THREADS} threads: {fds_after} descriptors and {maps_after} mappings; \
         with one handle, {fds} and {maps}"
    );
    Ok(())
}
