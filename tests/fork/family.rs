//! Real children, by `fork`.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

/// How long a child may take, and how long is waited for what another process says. What hangs is ended by SIGALRM.
const SECONDS: u32 = 240;

/// A child. Dropped, it is killed.
pub(crate) struct Child {
    pid: Option<Pid>,
}

/// Forks a child, which does `work` and ends by `_exit`: with 0, unless it panics.
pub(crate) fn child(work: impl FnOnce()) -> Child {
    match fork_here() {
        ForkResult::Parent { child } => Child { pid: Some(child) },
        ForkResult::Child => {
            alarm::set(SECONDS);
            let done = catch_unwind(AssertUnwindSafe(work));
            end(i32::from(done.is_err()))
        }
    }
}

#[expect(
    unsafe_code,
    reason = "what the child of a process with threads may do is what these tests are about"
)]
fn fork_here() -> ForkResult {
    // SAFETY: the child allocates, which the C library allows; of locks that other threads may hold it takes ours alone,
    // which are what is tested.
    unsafe { fork() }.unwrap()
}

/// Ends the process with nothing run, as a server's child may.
#[expect(unsafe_code, reason = "there is no safe way to call it")]
fn end(status: i32) -> ! {
    // SAFETY: it may be called anywhere.
    unsafe { libc::_exit(status) }
}

impl Child {
    /// Sees it to its end, which must be a good one.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        let pid = self.pid.take().unwrap();
        assert_eq!(
            waitpid(pid, None).unwrap(),
            WaitStatus::Exited(pid, 0),
            "a child failed, or hung"
        );
    }

    /// Waits until the kernel has killed it and is done with it.
    #[track_caller]
    pub(crate) fn see_killed(mut self) {
        let pid = self.pid.take().unwrap();
        let status = waitpid(pid, None).unwrap();
        assert_eq!(status, WaitStatus::Signaled(pid, Signal::SIGKILL, false));
    }

    #[track_caller]
    pub(crate) fn kill(self) {
        kill(self.pid.unwrap(), Signal::SIGKILL).unwrap();
        self.see_killed();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// A line from one process to another.
pub(crate) struct Line {
    from: PipeReader,
    to: PipeWriter,
}

impl Line {
    pub(crate) fn new() -> Self {
        let (from, to) = std::io::pipe().unwrap();
        Self { from, to }
    }

    pub(crate) fn say(&self, number: u64) {
        (&self.to).write_all(&number.to_le_bytes()).unwrap();
    }

    pub(crate) fn hear(&self) -> u64 {
        let mut bytes = [0; 8];
        // Whoever should have spoken may have failed.
        let before = alarm::set(SECONDS);
        (&self.from).read_exact(&mut bytes).unwrap();
        before.map_or_else(alarm::cancel, alarm::set);
        u64::from_le_bytes(bytes)
    }
}

/// The descriptors of this process.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The mappings of this process whose line has all of `parts` in it.
pub(crate) fn mappings(parts: &[&str]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
