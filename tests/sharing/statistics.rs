//! What all processes have counted, and each: of those that are there, that left, and that were killed.

use std::path::Path;

use keepwarm::{Cache, ProcessStats, Timeout};

use crate::crew::{self, Member, arguments, until};
use crate::harness::Verdict;

/// A process that misses so many keys, and stores one.
pub(crate) fn miss(arguments: &[String]) {
    let [dir, misses] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::open(Path::new(dir)).unwrap();
    cache.set("stored", &1, Timeout::Never).unwrap();
    for n in 0..crew::number(misses) {
        assert_eq!(cache.get::<u8>(&format!("missing {n}")).unwrap(), None);
    }
    crew::ready();
}

fn start(dir: &Path, misses: u64) -> Member {
    let mut member = Member::start("miss", arguments![dir.display(), misses]);
    assert_eq!(member.hear(), "ready");
    member
}

pub(crate) fn are_added_up() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = Cache::open(&dir).unwrap();
    cache.get::<u8>("missing").unwrap();
    let misses_of_all = || cache.total_stats().unwrap().misses;
    let pids = || {
        let mut pids: Vec<u32> =
            cache.process_stats().unwrap().iter().map(|process| process.pid).collect();
        assert_eq!(pids.remove(0), std::process::id(), "this one first");
        pids.sort_unstable();
        pids
    };
    assert_eq!((misses_of_all(), pids()), (1, vec![]));
    let mut killed = start(&dir, 10);
    let left = start(&dir, 200);
    until("both are seen", || misses_of_all() == 211);
    let mut both = [killed.child.id(), left.child.id()];
    both.sort_unstable();
    assert_eq!(pids(), both);
    let processes = cache.process_stats().unwrap();
    let of = |pid: u32| *processes.iter().find(|process| process.pid == pid).unwrap();
    let ProcessStats { since, stats, .. } = of(killed.child.id());
    assert_eq!((stats.misses, stats.commits, stats.entries), (10, 1, 1));
    assert!(since >= processes[0].since, "{since:?} {:?}", processes[0]);
    assert_eq!((of(left.child.id()).stats.misses, processes[0].stats.misses), (200, 1));
    let left_pid = left.child.id();
    killed.kill();
    until("the dead one is not listed", || pids() == [left_pid]);
    assert_eq!(misses_of_all(), 211);
    left.finish();
    assert_eq!((misses_of_all(), pids()), (211, vec![]), "at once, as it leaves");
    // One that gets the number of the one that was killed.
    let next = start(&dir, 3000);
    until("the next one is seen", || misses_of_all() == 3211);
    assert_eq!(pids(), [next.child.id()]);
    assert_eq!(cache.total_stats().unwrap().commits, 3);
    assert_eq!(cache.stats().misses, 1, "of this process");
    next.finish();
    drop(cache);
    let cache = Cache::open(&dir).unwrap();
    assert_eq!(cache.total_stats().unwrap().misses, 0, "begins anew");
    Ok(())
}
