//! What one process removes, the others let go of within about a second, though they do nothing: the space comes back.
//! And what a leader did is done by another as soon after its death.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Timeout};

use crate::crew::{self, Member, arguments, until};
use crate::harness::Verdict;

const KEYS: u64 = 500;
const SHORT: Timeout = Timeout::After(Duration::from_millis(200));

fn builder(dir: &Path) -> Builder {
    Cache::builder(dir).max_entries(10_000).max_bytes(32 << 20)
}

fn value(seed: u64) -> Vec<u8> {
    (0..8000).map(|n: u64| (n.wrapping_mul(31) + seed) as u8).collect()
}

/// A process that reads everything, so that all segments are mapped, keeps one value or none, and does nothing then.
pub(crate) fn keep(arguments: &[String]) {
    let [dir, kept] = arguments else { panic!("{arguments:?}") };
    let cache = builder(Path::new(dir)).open().unwrap();
    for n in 0..KEYS {
        assert_eq!(cache.get_bytes(&n.to_string()).unwrap().as_deref(), Some(&value(n)[..]));
    }
    let kept: Option<u64> = kept.parse().ok();
    let held = kept.map(|n| (n, cache.get_bytes(&n.to_string()).unwrap().unwrap()));
    crew::ready();
    if let Some((n, held)) = held {
        assert_eq!(held, value(n)[..], "what is held stays as it was");
        assert_ne!(cache.get_bytes(&n.to_string()).unwrap().unwrap(), value(n)[..]);
    }
}

/// How many removed segments a process has mapped.
fn removed_and_mapped(process: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    maps.lines().filter(|line| line.contains(".seg") && line.ends_with("(deleted)")).count()
}

/// The bytes that files take in `dir`, directories left out. What the background removes meanwhile takes none.
fn on_disk(dir: &Path) -> u64 {
    let files =
        walkdir::WalkDir::new(dir).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    files.filter(fs::Metadata::is_file).map(|file| file.blocks() * 512).sum()
}

pub(crate) fn what_is_removed_is_let_go_of() -> Verdict {
    for (kept, most_mapped) in [("nothing", 0), ("77", 1)] {
        in_time("what is removed is let go of", || let_go_of(kept, most_mapped));
    }
    Ok(())
}

/// Says when an idle process that keeps what is in so many segments had let go of all others that were removed.
fn let_go_of(kept: &str, most_mapped: usize) -> Duration {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let fill = |seed: u64| {
        (0..KEYS).for_each(|n| {
            cache.set_bytes(&n.to_string(), &value(n + seed), Timeout::Never).unwrap()
        });
    };
    fill(0);
    let mut idle = Member::start("keep", arguments![dir.display(), kept]);
    assert_eq!(idle.hear(), "ready");
    let process = idle.child.id();
    (1..10).for_each(fill);
    let began = Instant::now();
    cache.maintain().unwrap();
    until("an idle process lets go of what others removed", || {
        removed_and_mapped(process) == most_mapped
    });
    let took = began.elapsed();
    println!(
        "removed and let go of in {took:?}, where an idle process keeps {kept}: {most_mapped} segments stay"
    );
    // It counts what is kept, and nothing else that is not there.
    let segments = fs::read_dir(dir.join("segments")).unwrap();
    let len =
        segments.filter_map(|segment| Some(segment.ok()?.metadata().ok()?.len())).max().unwrap();
    let held = most_mapped as u64 * len;
    until("the space is free", || {
        cache.maintain().unwrap();
        cache.stats().bytes <= on_disk(&dir) + held
    });
    idle.go();
    idle.finish();
    assert!(cache.check().unwrap().is_sound());
    took
}

/// While a process that does nothing has not let go of what was removed, nothing more is evicted for that.
pub(crate) fn what_goes_counts_as_room() -> Verdict {
    const FIT: u64 = 3000;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    let set = |n: u64| cache.set_bytes(&n.to_string(), &value(n), Timeout::Never).unwrap();
    (0..KEYS).for_each(set);
    let mut idle = Member::start("keep", arguments![dir.display(), "nothing"]);
    assert_eq!(idle.hear(), "ready");
    (KEYS..FIT).for_each(set);
    let (mut least, mut most) = (u64::MAX, 0);
    for n in FIT..4 * FIT {
        set(n);
        let entries = cache.stats().entries;
        (least, most) = (least.min(entries), most.max(entries));
    }
    println!("a writer at max_bytes beside an idle process: {least} to {most} entries");
    assert!(least > most / 2, "{least} of {most} entries");
    idle.go();
    idle.finish();
    Ok(())
}

/// The first process in a directory, which leads: says so once it has removed something that expired.
pub(crate) fn lead(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let cache = builder(Path::new(dir)).open().unwrap();
    cache.set("short", &0, SHORT).unwrap();
    until("a leader reaps", || cache.stats().expired == 1);
    crew::ready();
}

pub(crate) fn who_leads_is_followed() -> Verdict {
    in_time("another process leads", another_leads);
    Ok(())
}

/// Has a leader die, and says when another process had done its work.
fn another_leads() -> Duration {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let mut leader = Member::start("lead", arguments![dir.display()]);
    assert_eq!(leader.hear(), "ready");
    let cache = builder(&dir).open().unwrap();
    leader.kill();
    let died = Instant::now();
    cache.set("short", &0, SHORT).unwrap();
    until("another leads", || cache.stats().expired == 1);
    let took = died.elapsed();
    println!("{took:?} after its leader's death another process had reaped");
    took
}

/// What happens once a second comes in time, unless the machine is busy each time that it is looked at.
#[track_caller]
fn in_time(what: &str, take: impl Fn() -> Duration) {
    const MOST: Duration = Duration::from_secs(2);
    let tries: Vec<_> = (0..5).map(|_| take()).take_while(|took| *took > MOST).collect();
    assert!(tries.len() < 5, "{what} only after {tries:?}");
}
