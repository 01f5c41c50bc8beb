//! Child processes that work together: each is this program, started again in a role.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The name of a role, and the function that a process runs in it.
pub(crate) type Role = (&'static str, fn(&[String]));

const MARK: &str = "--role";

/// Runs the role in which this process was started. Returns false if it was started in none.
pub(crate) fn run_role(roles: &[Role]) -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mark, name, rest @ ..] = arguments.as_slice() else { return false };
    if mark != MARK {
        return false;
    }
    let (_, work) =
        roles.iter().find(|(role, _)| role == name).unwrap_or_else(|| panic!("no role {name}"));
    work(rest);
    true
}

/// Nanoseconds of the monotonic clock, which all processes of the machine share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// The run-queue time of a thread (`schedstat`): how long it was ready to run while other threads
/// had the processors. On a busy machine, calls wait longer for a processor than for each other.
pub(crate) struct RunQueueTime(Option<File>);

impl RunQueueTime {
    /// The run-queue time of the calling thread.
    pub(crate) fn new() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// The run-queue time of any thread; `None` if the thread has ended or the kernel has no
    /// `schedstat`.
    pub(crate) fn of(process: u32, thread: u32) -> Option<u64> {
        let file = File::open(format!("/proc/{process}/task/{thread}/schedstat")).ok()?;
        Self::read(&file)
    }

    /// Nanoseconds since the thread started; 0 if the kernel has no `schedstat`.
    pub(crate) fn so_far(&self) -> u64 {
        self.0.as_ref().and_then(Self::read).unwrap_or(0)
    }

    fn read(file: &File) -> Option<u64> {
        let mut text = [0; 64];
        let read = file.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..read]).ok()?;
        text.split_whitespace().nth(1).map(number)
    }
}

/// Calls `what`. Returns its result, and how long it took without the run-queue time of this
/// thread.
#[cfg(feature = "failpoints")]
pub(crate) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let waits = RunQueueTime::new();
    let (started, before) = (Instant::now(), waits.so_far());
    let result = what();
    let (took, waited) = (started.elapsed(), waits.so_far() - before);
    (result, took.saturating_sub(Duration::from_nanos(waited)))
}

/// A process in a role. Dropping it kills the process.
pub(crate) struct ChildProcess {
    pub(crate) process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// The command that starts this program in a role.
pub(crate) fn command(role: &str, arguments: Vec<String>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(MARK).arg(role).args(arguments);
    command
}

impl ChildProcess {
    pub(crate) fn start(role: &str, arguments: Vec<String>) -> Self {
        Self::spawn(&mut command(role, arguments))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    /// The next line that the process prints; empty once it has ended.
    pub(crate) fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Wakes the process from [`wait_for_start`].
    pub(crate) fn proceed(&mut self) {
        self.input.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Sends the process a line, and returns the line that it answers.
    #[track_caller]
    pub(crate) fn ask(&mut self, question: &str) -> String {
        self.input.as_mut().unwrap().write_all(format!("{question}\n").as_bytes()).unwrap();
        self.next_line()
    }

    /// Tells the process to exit: closes its standard input.
    pub(crate) fn request_exit(&mut self) {
        self.input = None;
    }

    /// Waits until the process exits, which must be with success. Returns what it printed.
    #[track_caller]
    pub(crate) fn finish(mut self) -> String {
        self.request_exit();
        let mut printed = String::new();
        self.output.read_to_string(&mut printed).unwrap();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "a process failed: {status}: {printed}");
        printed
    }

    /// Kills the process with SIGKILL and waits until the kernel has removed it.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.process.kill().unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a process for each line of arguments. When all are ready, all start work at the same
/// moment. Returns what each printed.
pub(crate) fn run_together(
    role: &str,
    arguments: impl IntoIterator<Item = Vec<String>>,
) -> Vec<String> {
    run_commands_together(arguments.into_iter().map(|line| command(role, line)))
}

/// The same for processes that these commands start.
pub(crate) fn run_commands_together(commands: impl IntoIterator<Item = Command>) -> Vec<String> {
    let mut children: Vec<ChildProcess> =
        commands.into_iter().map(|mut command| ChildProcess::spawn(&mut command)).collect();
    for child in &mut children {
        assert_eq!(child.next_line(), "ready", "a process failed before it began");
    }
    children.iter_mut().for_each(ChildProcess::proceed);
    children.into_iter().map(ChildProcess::finish).collect()
}

/// Waits until `is_so` returns true. Background threads wake once a second; a busy machine may
/// need far longer, so the limit is a minute.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not within a minute: {what}");
        // Leaves the processor to the processes that are waited for.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// In a process with a role: reports that it is ready, and waits for the signal to start.
pub(crate) fn wait_for_start() {
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// In a process with a role: turns true when the process must exit, or when its parent is dead.
pub(crate) fn exit_requested() -> Arc<AtomicBool> {
    let exit_requested = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&exit_requested);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        seen.store(true, Ordering::Release);
    });
    exit_requested
}

/// Converts arguments to text.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { vec![$($argument.to_string()),*] };
}
pub(crate) use arguments;

/// Parses an argument.
#[track_caller]
pub(crate) fn number(argument: &str) -> u64 {
    argument.parse().unwrap_or_else(|_| panic!("{argument:?} is not a number"))
}
