//! Statistics of all processes together and of each one: attached, detached and killed processes.

use std::path::Path;

use keepwarm::{Cache, ProcessStats, Timeout};

use crate::child_processes::{self, ChildProcess, arguments, wait_until};
use crate::harness::Verdict;

/// Role: stores one key and misses others. Arguments: the directory, the number of misses.
pub(crate) fn miss(arguments: &[String]) {
    let [dir, misses] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::open(Path::new(dir)).unwrap();
    cache.set("stored", &1, Timeout::Never).unwrap();
    for n in 0..child_processes::number(misses) {
        assert_eq!(cache.get::<u8>(&format!("missing {n}")).unwrap(), None);
    }
    child_processes::wait_for_start();
}

fn start(dir: &Path, misses: u64) -> ChildProcess {
    let mut child = ChildProcess::start("miss", arguments![dir.display(), misses]);
    assert_eq!(child.next_line(), "ready");
    child
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
        assert_eq!(pids.remove(0), std::process::id(), "this process comes first");
        pids.sort_unstable();
        pids
    };
    assert_eq!((misses_of_all(), pids()), (1, vec![]));
    let mut killed = start(&dir, 10);
    let left = start(&dir, 200);
    wait_until("both are seen", || misses_of_all() == 211);
    let mut both = [killed.process.id(), left.process.id()];
    both.sort_unstable();
    assert_eq!(pids(), both);
    let processes = cache.process_stats().unwrap();
    let of = |pid: u32| *processes.iter().find(|process| process.pid == pid).unwrap();
    let ProcessStats { since, stats, .. } = of(killed.process.id());
    assert_eq!((stats.misses, stats.commits, stats.entries), (10, 1, 1));
    assert!(since >= processes[0].since, "{since:?} {:?}", processes[0]);
    assert_eq!((of(left.process.id()).stats.misses, processes[0].stats.misses), (200, 1));
    let left_pid = left.process.id();
    killed.kill();
    wait_until("the dead process is not listed", || pids() == [left_pid]);
    assert_eq!(misses_of_all(), 211);
    left.finish();
    assert_eq!((misses_of_all(), pids()), (211, vec![]), "at once, as the process detaches");
    // The next process gets the slot of the killed one.
    let next = start(&dir, 3000);
    wait_until("the next process is seen", || misses_of_all() == 3211);
    assert_eq!(pids(), [next.process.id()]);
    assert_eq!(cache.total_stats().unwrap().commits, 3);
    assert_eq!(cache.stats().misses, 1, "the misses of this process");
    next.finish();
    drop(cache);
    let cache = Cache::open(&dir).unwrap();
    assert_eq!(cache.total_stats().unwrap().misses, 0, "counts start from zero");
    Ok(())
}
