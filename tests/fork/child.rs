//! Child processes made with `fork`, and pipes to talk to them.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, alarm, fork};

/// The longest that a child may run, and that a process waits to receive. SIGALRM ends one that
/// hangs.
const SECONDS: u32 = 240;

/// A child process. It is killed when this is dropped.
pub(crate) struct Child {
    pid: Option<Pid>,
}

/// Forks a child that runs `work` and then calls `_exit`: with 0, or with 1 if it panicked.
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
    reason = "these tests are about what the child of a process with threads may do"
)]
fn fork_here() -> ForkResult {
    // SAFETY: the child allocates, which the C library allows. Of the locks that other threads may
    // hold it takes only ours, and those are under test.
    unsafe { fork() }.unwrap()
}

/// Ends the process without destructors or exit handlers, as a server's child may.
#[expect(unsafe_code, reason = "there is no safe way to call it")]
fn end(status: i32) -> ! {
    // SAFETY: `_exit` may be called anywhere.
    unsafe { libc::_exit(status) }
}

impl Child {
    /// Waits for the child, which must exit with 0.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        let pid = self.pid.take().unwrap();
        assert_eq!(
            waitpid(pid, None).unwrap(),
            WaitStatus::Exited(pid, 0),
            "a child failed, or hung"
        );
    }

    /// Waits for the child, which must end by SIGKILL.
    #[track_caller]
    pub(crate) fn wait_killed(mut self) {
        let pid = self.pid.take().unwrap();
        let status = waitpid(pid, None).unwrap();
        assert_eq!(status, WaitStatus::Signaled(pid, Signal::SIGKILL, false));
    }

    #[track_caller]
    pub(crate) fn kill(self) {
        kill(self.pid.unwrap(), Signal::SIGKILL).unwrap();
        self.wait_killed();
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

/// A pipe that carries numbers from one process to another.
pub(crate) struct Pipe {
    from: PipeReader,
    to: PipeWriter,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        let (from, to) = std::io::pipe().unwrap();
        Self { from, to }
    }

    pub(crate) fn send(&self, number: u64) {
        (&self.to).write_all(&number.to_le_bytes()).unwrap();
    }

    pub(crate) fn receive(&self) -> u64 {
        let mut bytes = [0; 8];
        // The sender may have failed.
        let before = alarm::set(SECONDS);
        (&self.from).read_exact(&mut bytes).unwrap();
        before.map_or_else(alarm::cancel, alarm::set);
        u64::from_le_bytes(bytes)
    }
}

/// The number of open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The number of mappings of this process whose line in `maps` contains all of `parts`.
pub(crate) fn mappings(parts: &[&str]) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
