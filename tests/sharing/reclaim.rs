//! When one process removes a segment, the others unmap it within about a second, even if they are
//! idle, so that its space becomes free. When a leader dies, another process takes over its work as
//! soon.
//!
//! Shows invariants I24 and I28.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Timeout};

use crate::child_processes::{self, ChildProcess, arguments, wait_until};
use crate::harness::Verdict;

const KEYS: u64 = 500;
const SHORT: Timeout = Timeout::After(Duration::from_millis(200));

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(10_000).max_bytes(32 << 20)
}

fn value(seed: u64) -> Vec<u8> {
    (0..8000).map(|n: u64| (n.wrapping_mul(31) + seed) as u8).collect()
}

/// Role: reads everything, so that all segments are mapped, holds one value or none, and is idle
/// then. Arguments: the directory, the number of the value to hold.
pub(crate) fn keep(arguments: &[String]) {
    let [dir, kept] = arguments else { panic!("{arguments:?}") };
    let cache = builder(Path::new(dir)).open().unwrap();
    for n in 0..KEYS {
        assert_eq!(cache.get_bytes(&n.to_string()).unwrap().as_deref(), Some(&value(n)[..]));
    }
    let kept: Option<u64> = kept.parse().ok();
    let held = kept.map(|n| (n, cache.get_bytes(&n.to_string()).unwrap().unwrap()));
    child_processes::wait_for_start();
    if let Some((n, held)) = held {
        assert_eq!(held, value(n)[..], "a held value stays unchanged");
        assert_ne!(cache.get_bytes(&n.to_string()).unwrap().unwrap(), value(n)[..]);
    }
}

/// The number of removed segments that a process has mapped.
fn removed_and_mapped(process: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    maps.lines().filter(|line| line.contains(".seg") && line.ends_with("(deleted)")).count()
}

/// The bytes that the files in `dir` occupy, without directories. Files that the background removes
/// meanwhile count zero.
fn on_disk(dir: &Path) -> u64 {
    let files =
        walkdir::WalkDir::new(dir).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
}

pub(crate) fn removed_segments_are_unmapped() -> Verdict {
    for (kept, most_mapped) in [("nothing", 0), ("77", 1)] {
        assert_in_time("removed segments are unmapped", || time_to_unmap(kept, most_mapped));
    }
    Ok(())
}

/// The time until an idle process, which holds values in `most_mapped` segments, has unmapped all
/// other removed ones.
fn time_to_unmap(kept: &str, most_mapped: usize) -> Duration {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let fill = |seed: u64| {
        (0..KEYS).for_each(|n| {
            cache.set_bytes(&n.to_string(), &value(n + seed), Timeout::Never).unwrap()
        });
    };
    fill(0);
    let mut idle = ChildProcess::start("keep", arguments![dir.display(), kept]);
    assert_eq!(idle.next_line(), "ready");
    let process = idle.process.id();
    (1..10).for_each(fill);
    let began = Instant::now();
    cache.maintain().unwrap();
    wait_until("an idle process unmaps segments that others removed", || {
        removed_and_mapped(process) == most_mapped
    });
    let took = began.elapsed();
    println!(
        "removed segments unmapped after {took:?}; an idle process holds {kept}: \
         {most_mapped} segments stay mapped"
    );
    // The counter includes the segment that is held, and no other removed file.
    let segments = fs::read_dir(dir.join("segments")).unwrap();
    let len =
        segments.filter_map(|segment| Some(segment.ok()?.metadata().ok()?.len())).max().unwrap();
    let held = most_mapped as u64 * len;
    wait_until("the space is free", || {
        cache.maintain().unwrap();
        cache.stats().bytes <= on_disk(&dir) + held
    });
    idle.proceed();
    idle.finish();
    assert!(cache.check().unwrap().is_sound());
    took
}

/// Segments that an idle process has not unmapped yet do not cause more evictions.
pub(crate) fn space_about_to_be_freed() -> Verdict {
    const FIT: u64 = 3000;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let set = |n: u64| cache.set_bytes(&n.to_string(), &value(n), Timeout::Never).unwrap();
    (0..KEYS).for_each(set);
    let mut idle = ChildProcess::start("keep", arguments![dir.display(), "nothing"]);
    assert_eq!(idle.next_line(), "ready");
    (KEYS..FIT).for_each(set);
    let (mut least, mut most) = (u64::MAX, 0);
    for n in FIT..4 * FIT {
        set(n);
        let entries = cache.stats().entries;
        (least, most) = (least.min(entries), most.max(entries));
    }
    println!("a writer at max_bytes beside an idle process: {least} to {most} entries");
    assert!(least > most / 2, "{least} of {most} entries");
    idle.proceed();
    idle.finish();
    Ok(())
}

/// Role: opens the directory first, so it leads. Reports once it has reaped an expired entry.
/// Argument: the directory.
pub(crate) fn lead(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let cache = builder(Path::new(dir)).open().unwrap();
    cache.set("short", &0, SHORT).unwrap();
    wait_until("a leader reaps", || cache.stats().expired == 1);
    child_processes::wait_for_start();
}

pub(crate) fn another_leads_after_a_death() -> Verdict {
    assert_in_time("another process leads", time_until_another_leads);
    Ok(())
}

/// Kills the leader. Returns the time until another process had done a leader's work.
fn time_until_another_leads() -> Duration {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let mut leader = ChildProcess::start("lead", arguments![dir.display()]);
    assert_eq!(leader.next_line(), "ready");
    let cache = builder(&dir).open().unwrap();
    leader.kill();
    let died = Instant::now();
    cache.set("short", &0, SHORT).unwrap();
    wait_until("another leads", || cache.stats().expired == 1);
    let took = died.elapsed();
    println!("another process had reaped {took:?} after the death of the leader");
    took
}

/// Asserts that one of five tries takes at most two seconds: work that runs once a second is in
/// time, unless the machine is busy during all tries.
#[track_caller]
fn assert_in_time(what: &str, take: impl Fn() -> Duration) {
    const MOST: Duration = Duration::from_secs(2);
    let tries: Vec<_> = (0..5).map(|_| take()).take_while(|took| *took > MOST).collect();
    assert!(tries.len() < 5, "{what} only after {tries:?}");
}
