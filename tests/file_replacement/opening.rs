//! A directory that cannot be opened, because a process that opens or closes it is stopped, delays
//! neither other directories nor those who have it open.

use std::fs::File;
use std::os::fd::AsFd;

use keepwarm::{Cache, Timeout};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::harness::Verdict;

pub(crate) fn delays_no_other() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let [stuck, other, open] = ["stuck", "other", "open"].map(|name| home.path().join(name));
    drop(Cache::open(&stuck).unwrap());
    let in_use = Cache::open(&open).unwrap();
    in_use.set("k", &1, Timeout::Never).unwrap();
    // As a process that was stopped while it opened the directory.
    let locks = File::options().read(true).write(true).open(stuck.join("locks")).unwrap();
    let attaching = |kind: libc::c_int| libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(locks.as_fd(), FcntlArg::F_OFD_SETLK(&attaching(libc::F_WRLCK))).unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| Cache::open(&stuck))).collect();
        // The first thread waits for the mutex once it holds the byte of those who wait for it.
        let waits = || {
            let mut byte = attaching(libc::F_WRLCK);
            byte.l_start = 2048;
            fcntl(locks.as_fd(), FcntlArg::F_OFD_GETLK(&mut byte)).unwrap();
            byte.l_type != libc::F_UNLCK as libc::c_short
        };
        while !waits() {
            std::thread::yield_now();
        }
        let again = Cache::open(&open).unwrap();
        assert_eq!(again.get("k").unwrap(), Some(1));
        drop((again, in_use));
        Cache::open(&other).unwrap().set("k", &1, Timeout::Never).unwrap();
        assert_eq!(Cache::open(&open).unwrap().get("k").unwrap(), Some(1));
        assert!(waiting.iter().all(|thread| !thread.is_finished()), "the others still wait");
        fcntl(locks.as_fd(), FcntlArg::F_OFD_SETLK(&attaching(libc::F_UNLCK))).unwrap();
        for thread in waiting {
            thread.join().unwrap().unwrap().set("k", &1, Timeout::Never).unwrap();
        }
    });
    Ok(())
}
