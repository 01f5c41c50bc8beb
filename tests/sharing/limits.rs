//! The limits of a directory apply to all processes that have it open, and any of them can change
//! them.
//!
//! Shows invariant I4.

use std::path::Path;
use std::time::Instant;

use keepwarm::{Cache, NewLimits, Timeout};

use crate::child_processes::{self, ChildProcess, arguments, wait_until};
use crate::harness::Verdict;

const LESS_BYTES: u64 = 6 << 20;
const FEW: u64 = 300;
const VALUE: [u8; 10_000] = [7; 10_000];

fn fill(cache: &Cache, name: &str, count: u64) {
    for n in 0..count {
        cache.set_bytes(&format!("{name} {n}"), &VALUE, Timeout::Never).unwrap();
    }
}

/// Role: opens the directory with other limits than those in force. Each time that it is told to
/// proceed, it writes, and prints the limits that it sees. Argument: the directory.
pub(crate) fn keep_within(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::builder(Path::new(dir)).max_entries(77).max_bytes(2 << 20).open().unwrap();
    fill(&cache, "theirs", 800);
    loop {
        println!("ready");
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 {
            return;
        }
        let limits = cache.limits();
        fill(&cache, "again", 500);
        println!("{} {} {}", limits.max_entries, limits.max_bytes, cache.len());
    }
}

pub(crate) fn apply_to_all() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::builder(&dir).max_entries(5000).max_bytes(64 << 20).open().unwrap();
    fill(&cache, "ours", 800);
    let mut child = ChildProcess::start("keep-within", arguments![dir.display()]);
    let mut ask = || {
        assert_eq!(child.next_line(), "ready");
        child.proceed();
        let line = child.next_line();
        line.split_whitespace().map(child_processes::number).collect::<Vec<_>>()
    };
    assert_eq!(ask()[..2], [5000, 64 << 20], "the limits in force, not those that it asked for");
    assert_eq!(cache.len(), 2100);
    let counts = cache.configure(&NewLimits::new().max_entries(FEW)).unwrap();
    assert_eq!((counts.max_entries, counts.max_bytes), (FEW, 64 << 20));
    assert!(cache.len() <= FEW);
    let [entries, _, len] = ask()[..] else { panic!("three numbers") };
    assert!(entries == FEW && len <= FEW, "{entries} {len}");
    let began = Instant::now();
    let counts =
        cache.configure(&NewLimits::new().max_bytes(LESS_BYTES).max_entries(5000)).unwrap();
    let took = began.elapsed();
    assert_eq!(counts.max_bytes, LESS_BYTES);
    // The other process continues to write. It abandons its active segment, which is too long now.
    assert_eq!(ask()[1], LESS_BYTES);
    wait_until("the cache is within the lower limit", || cache.stats().bytes <= LESS_BYTES);
    fill(&cache, "ours", 800);
    ask();
    // Bytes that the other process moves between its counters at this moment may count twice.
    wait_until("the cache stays within the limit", || cache.stats().bytes <= LESS_BYTES);
    child.finish();
    assert!(cache.check().unwrap().is_sound());
    println!("a tenth of max_bytes, while another process writes: {took:?}");
    Ok(())
}

/// Role: writes some entries, keeps the directory open, and writes more when it is told to proceed.
/// Arguments: the directory, its `max_bytes`, a prefix of the keys.
pub(crate) fn write_twice(arguments: &[String]) {
    let [dir, bytes, name] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::builder(Path::new(dir))
        .max_bytes(child_processes::number(bytes))
        .hot_bytes(0)
        .open()
        .unwrap();
    fill(&cache, name, 20);
    child_processes::wait_for_start();
    fill(&cache, name, 20);
    assert!(cache.get_bytes(&format!("{name} 19")).unwrap().is_some());
}

/// Each writing process has a share of the space reserved, even while it does not write.
pub(crate) fn serve_many_writers() -> Verdict {
    const WRITERS: u32 = 40;
    const BYTES: u64 = 4 << 20;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::builder(&dir).max_bytes(BYTES).open().unwrap();
    let began = Instant::now();
    // One after the other, so that the first writers hold more than is left for the last one.
    let start = |n: u32| {
        let mut writer = ChildProcess::start("write-twice", arguments![dir.display(), BYTES, n]);
        assert_eq!(writer.next_line(), "ready", "writer {n} found no space");
        assert!(cache.stats().bytes <= BYTES);
        writer
    };
    let writers: Vec<_> = (0..WRITERS).map(start).collect();
    for mut writer in writers {
        writer.proceed();
        writer.finish();
    }
    assert!(cache.check().unwrap().is_sound());
    println!("{WRITERS} processes write twice: {:?}", began.elapsed());
    Ok(())
}
