//! Locks of other programs in a directory that a process left without closing it. None of them may
//! make its index count as valid.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use keepwarm::{ErrorKind, Timeout};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::harness::Verdict;
use crate::worker::{builder, say};

pub(crate) const KEYS: u64 = 300;

/// Role: writes each key twice, deletes some, and waits to be killed.
pub(crate) fn fill(dir: &Path) {
    let cache = builder(dir).open().unwrap();
    for round in 0..2 {
        for key in 0..KEYS {
            cache.set(&key.to_string(), &round, Timeout::Never).unwrap();
        }
        if round == 0 {
            // So that the index on the disk is one of old values.
            cache.maintain().unwrap();
            cache.flush().unwrap();
        }
    }
    (0..KEYS).step_by(3).for_each(|key| assert!(cache.delete(&key.to_string()).unwrap()));
    say("filled");
    loop {
        std::thread::park();
    }
}

/// Fills a directory with a process that is killed then.
pub(crate) fn filled_and_killed(dir: &Path) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg("--fill").arg(dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim_end(), "filled");
}

/// A directory whose process was killed, and whose index was then damaged: what a recovery makes
/// good, and a process that takes the index for one in use does not.
fn left_by_a_kill(dir: &Path) {
    filled_and_killed(dir);
    // As a power cut leaves it: the buckets are empty, header and attach table are as they were.
    use std::os::unix::fs::FileExt;
    let index = File::options().write(true).open(dir.join("index")).unwrap();
    let (len, buckets) = (index.metadata().unwrap().len(), 256 << 10);
    index.write_all_at(&vec![0; (len - buckets) as usize], buckets).unwrap();
}

/// Locks bytes of `file`, with a lock that belongs to the open file.
fn lock(file: &File, kind: libc::c_int, start: i64, len: i64) {
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)).unwrap();
}

pub(crate) fn assert_right(dir: &Path) {
    let cache = builder(dir).open().unwrap();
    for key in 0..KEYS {
        let expected = (key % 3 != 0).then_some(1);
        assert_eq!(cache.get::<u64>(&key.to_string()).unwrap(), expected, "key {key}");
    }
    cache.set("new", &1, Timeout::Never).unwrap();
    assert_eq!(cache.process_stats().unwrap().len(), 1, "no other process is attached");
    assert!(cache.check().unwrap().is_sound());
}

pub(crate) fn shared() -> Verdict {
    // The byte of the killed process, of others, and of all.
    for (start, len) in [(1, 1), (2, 1), (1, 1024)] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        left_by_a_kill(&dir);
        let [locks, index] = ["locks", "index"].map(|name| File::open(dir.join(name)).unwrap());
        for file in [&locks, &index] {
            lock(file, libc::F_RDLCK, start, len);
        }
        if len < 1024 {
            assert_right(&dir);
        } else {
            // No number is free.
            assert_eq!(builder(&dir).open().unwrap_err().kind(), ErrorKind::Busy);
        }
        drop((locks, index));
        assert_right(&dir);
    }
    Ok(())
}

pub(crate) fn exclusive() -> Verdict {
    for names in [&["locks"][..], &["index"], &["locks", "index"]] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache");
        left_by_a_kill(&dir);
        let open = |name: &&str| File::options().read(true).write(true).open(dir.join(name));
        let files: Vec<File> = names.iter().map(|name| open(name).unwrap()).collect();
        files.iter().for_each(|file| lock(file, libc::F_WRLCK, 1, 1));
        assert_right(&dir);
        drop(files);
        assert_right(&dir);
    }
    Ok(())
}

pub(crate) fn on_the_directory() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    left_by_a_kill(&dir);
    let foreign = File::open(&dir).unwrap();
    lock(&foreign, libc::F_RDLCK, 0, 0);
    let error = builder(&dir).open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("`locks`"), "it says what it waited for: {error}");
    drop(foreign);
    assert_right(&dir);
    Ok(())
}
