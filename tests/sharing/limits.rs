//! The limits of a directory are those of all processes that have it open, and any of them can change them.

use std::path::Path;
use std::time::Instant;

use keepwarm::{Cache, NewLimits, Timeout};

use crate::crew::{self, Member, arguments, until};
use crate::harness::Verdict;

const LESS_BYTES: u64 = 6 << 20;
const FEW: u64 = 300;
const VALUE: [u8; 10_000] = [7; 10_000];

fn fill(cache: &Cache, name: &str, count: u64) {
    for n in 0..count {
        cache.set_bytes(&format!("{name} {n}"), &VALUE, Timeout::Never).unwrap();
    }
}

/// A process that asked for other limits than those that count. Says what it sees, when it is told to go on.
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

pub(crate) fn count_for_all() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::builder(&dir).max_entries(5000).max_bytes(64 << 20).open().unwrap();
    fill(&cache, "ours", 800);
    let mut member = Member::start("keep-within", arguments![dir.display()]);
    let mut ask = || {
        assert_eq!(member.hear(), "ready");
        member.go();
        let said = member.hear();
        said.split_whitespace().map(crew::number).collect::<Vec<_>>()
    };
    assert_eq!(ask()[..2], [5000, 64 << 20], "not what it asked for itself");
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
    // The other process goes on writing, and gives up the segment that it was at, which is too long now.
    assert_eq!(ask()[1], LESS_BYTES);
    until("all is within less bytes", || cache.stats().bytes <= LESS_BYTES);
    fill(&cache, "ours", 800);
    ask();
    // What moves in the count of the other process at this moment may count twice.
    until("all stays within them", || cache.stats().bytes <= LESS_BYTES);
    member.finish();
    assert!(cache.check().unwrap().is_sound());
    println!("a tenth of max_bytes, while another process writes: {took:?}");
    Ok(())
}

/// A process that writes some, goes on having the directory open, and writes some more when it is told to.
pub(crate) fn write_twice(arguments: &[String]) {
    let [dir, bytes, name] = arguments else { panic!("{arguments:?}") };
    let cache =
        Cache::builder(Path::new(dir)).max_bytes(crew::number(bytes)).hot_bytes(0).open().unwrap();
    fill(&cache, name, 20);
    crew::ready();
    fill(&cache, name, 20);
    assert!(cache.get_bytes(&format!("{name} 19")).unwrap().is_some());
}

/// Each process that writes has a part of the space for itself, whether it writes at the time or not.
pub(crate) fn serve_many_writers() -> Verdict {
    const WRITERS: u32 = 40;
    const BYTES: u64 = 4 << 20;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::builder(&dir).max_bytes(BYTES).open().unwrap();
    let began = Instant::now();
    // One after the other, so that the first ones have more than is left for the last.
    let start = |n: u32| {
        let mut writer = Member::start("write-twice", arguments![dir.display(), BYTES, n]);
        assert_eq!(writer.hear(), "ready", "number {n} found no room");
        assert!(cache.stats().bytes <= BYTES);
        writer
    };
    let writers: Vec<_> = (0..WRITERS).map(start).collect();
    for mut writer in writers {
        writer.go();
        writer.finish();
    }
    assert!(cache.check().unwrap().is_sound());
    println!("{WRITERS} processes write twice: {:?}", began.elapsed());
    Ok(())
}
