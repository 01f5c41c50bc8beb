//! Two containers that share a volume: process ids mean nothing from one to the other, and each has the same ones.

use std::path::Path;
use std::process::Command;

use keepwarm::{Cache, Timeout};

use crate::crew::{self, Member, arguments};
use crate::harness::Verdict;

/// In each container.
const PROCESSES: usize = 3;
const TIMES: u64 = 20_000;
const COUNTER: &str = "counter";

/// The first process of a container: starts the others.
pub(crate) fn contain(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    crew::ready();
    let said = crew::together("count-contained", (0..PROCESSES).map(|_| arguments![dir]));
    println!("{} {}", std::process::id(), said.concat().replace('\n', " ").trim());
}

pub(crate) fn count(arguments: &[String]) {
    let [dir] = arguments else { panic!("{arguments:?}") };
    let cache = Cache::open(Path::new(dir)).unwrap();
    crew::ready();
    for _ in 0..TIMES {
        cache.incr_or_init(COUNTER, 1, 0, Timeout::Never).unwrap();
    }
    println!("{}", std::process::id());
}

/// `command` in a process namespace of its own, of which it is the first process.
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
    // As root, or as a user who is root in a namespace of his own.
    let Some(flags) = ["-pf", "-Urpf"].into_iter().find(may) else {
        return Err("needs root (process namespaces)");
    };
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let start = || {
        let command = crew::command("contain", arguments![dir.display()]);
        let mut containers = [(); 2].map(|()| Member::spawn(&mut contained(flags, &command)));
        for container in &mut containers {
            assert_eq!(container.hear(), "ready", "a container failed before it began");
        }
        containers.iter_mut().for_each(Member::go);
        containers
    };
    let ids = start().map(Member::finish);
    assert_eq!(ids[0].split_whitespace().count(), 1 + PROCESSES);
    assert!(
        ids.iter().all(|ids| ids.starts_with("1 ")),
        "each is the first of its container: {ids:?}"
    );
    let each = PROCESSES as u64 * TIMES;
    let cache = Cache::open(&dir).unwrap();
    let count = || cache.get::<u64>(COUNTER).unwrap().unwrap();
    assert_eq!(count(), 2 * each);

    // One of them is killed as a whole: the other counts on, from its processes' own numbers of the same name.
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
    // On a busy machine it may be done before it is killed.
    const TRIES: usize = 10;
    assert!((0..TRIES).any(|_| is_killed_at_work(count())), "each was done before it was killed");
    cache.clear().unwrap();
    println!(
        "2 containers × {PROCESSES} processes × {TIMES} increments, process ids {ids:?}: exact"
    );
    Ok(())
}
