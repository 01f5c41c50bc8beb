//! Two containers that share a volume. A process id has no meaning in the other container, and both
//! containers use the same ids.
//!
//! Shows invariant I22.

use std::path::Path;
use std::process::Command;

use keepwarm::{Cache, Timeout};

use crate::child_processes::{self, ChildProcess, arguments};
use crate::harness::Verdict;

/// Processes in each container.
const PROCESSES: usize = 3;
const TIMES: u64 = 20_000;
const COUNTER: &str = "counter";

/// Role: the first process of a container, which starts the others. Argument: the directory.
pub(crate) fn contain(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    child_processes::wait_for_start();
    let printed =
        child_processes::run_together("count-contained", (0..PROCESSES).map(|_| arguments![dir]));
    println!("{} {}", std::process::id(), printed.concat().replace('\n', " ").trim());
}

/// Role: increments the counter, and prints its process id. Argument: the directory.
pub(crate) fn count(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::open(Path::new(dir)).unwrap();
    child_processes::wait_for_start();
    for _ in 0..TIMES {
        cache.incr_or_init(COUNTER, 1, 0, Timeout::Never).unwrap();
    }
    println!("{}", std::process::id());
}

/// `command` as the first process of a new process namespace.
fn contained(flags: &str, command: &Command) -> Command {
    let mut contained = Command::new("unshare");
    contained
        .args([flags, "--mount-proc", "--kill-child"])
        .arg(command.get_program())
        .args(command.get_args());
    contained
}

pub(crate) fn containers_count_exactly() -> Verdict {
    let may = |flags: &&str| {
        contained(flags, &Command::new("true")).output().is_ok_and(|output| output.status.success())
    };
    // As root, or as root of a new user namespace.
    let Some(flags) = ["-pf", "-Urpf"].into_iter().find(may) else {
        return Err("needs root (process namespaces)");
    };
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let start = || {
        let command = child_processes::command("contain", arguments![dir.display()]);
        let mut containers = [(); 2].map(|()| ChildProcess::spawn(&mut contained(flags, &command)));
        for container in &mut containers {
            assert_eq!(container.next_line(), "ready", "a container failed before it began");
        }
        containers.iter_mut().for_each(ChildProcess::proceed);
        containers
    };
    let ids = start().map(ChildProcess::finish);
    assert_eq!(ids[0].split_whitespace().count(), 1 + PROCESSES);
    assert!(
        ids.iter().all(|ids| ids.starts_with("1 ")),
        "each is the first process of its container: {ids:?}"
    );
    let each = PROCESSES as u64 * TIMES;
    let cache = Cache::open(&dir).unwrap();
    let count = || cache.get::<u64>(COUNTER).unwrap().unwrap();
    assert_eq!(count(), 2 * each);

    // One container is killed as a whole. The other continues to count, although its process ids
    // equal those of the dead processes.
    let is_killed_at_work = |before: u64| {
        let [mut killed, other] = start();
        while count() < before + TIMES / 10 {
            std::thread::yield_now();
        }
        killed.kill();
        other.finish();
        let counted = count() - before;
        assert!((each..=2 * each).contains(&counted), "{counted} of {}", 2 * each);
        counted < 2 * each
    };
    // On a busy machine a container may finish before it is killed.
    const TRIES: usize = 10;
    assert!((0..TRIES).any(|_| is_killed_at_work(count())), "each finished before it was killed");
    cache.clear().unwrap();
    println!(
        "2 containers × {PROCESSES} processes × {TIMES} increments, process ids {ids:?}: exact"
    );
    Ok(())
}
