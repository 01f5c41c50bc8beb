//! Processes that work together: this program, started again in a role.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The name of a role, and what a process does in it.
pub(crate) type Role = (&'static str, fn(&[String]));

const MARK: &str = "--role";

/// If this process was started in a role: plays it.
pub(crate) fn play(roles: &[Role]) -> bool {
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

/// Nanoseconds of the clock that is the same for all processes of the machine, and never goes back.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// How long this thread was ready to run while others had the processors, as the kernel tells. On a busy machine, calls
/// wait for these longer than for each other.
pub(crate) struct Waits(Option<File>);

impl Waits {
    /// Of the thread that makes it.
    pub(crate) fn new() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// Of any thread; `None` if it is gone, or the kernel does not tell.
    pub(crate) fn of(process: u32, thread: u32) -> Option<u64> {
        let file = File::open(format!("/proc/{process}/task/{thread}/schedstat")).ok()?;
        Self::read(&file)
    }

    /// Nanoseconds since the thread began; 0 where the kernel does not tell.
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

/// What `what` gives, and how long it took, without what this thread waited for a processor.
#[cfg(feature = "failpoints")]
pub(crate) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let waits = Waits::new();
    let (started, before) = (Instant::now(), waits.so_far());
    let given = what();
    let (took, waited) = (started.elapsed(), waits.so_far() - before);
    (given, took.saturating_sub(Duration::from_nanos(waited)))
}

/// A process in a role. Dropped, it is killed.
pub(crate) struct Member {
    pub(crate) child: Child,
    told: Option<ChildStdin>,
    says: BufReader<ChildStdout>,
}

/// The command that starts this program in a role.
pub(crate) fn command(role: &str, arguments: Vec<String>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(MARK).arg(role).args(arguments);
    command
}

impl Member {
    pub(crate) fn start(role: &str, arguments: Vec<String>) -> Self {
        Self::spawn(&mut command(role, arguments))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (told, says) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, told, says }
    }

    /// The next line that it says; empty once it has ended.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets it go on that waits in [`ready`].
    pub(crate) fn go(&mut self) {
        self.told.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Asks it something, and gives what it answers.
    #[track_caller]
    pub(crate) fn ask(&mut self, question: &str) -> String {
        self.told.as_mut().unwrap().write_all(format!("{question}\n").as_bytes()).unwrap();
        self.hear()
    }

    /// Tells it to end.
    pub(crate) fn dismiss(&mut self) {
        self.told = None;
    }

    /// Sees it to its end, which must be a good one, and gives what it said.
    #[track_caller]
    pub(crate) fn finish(mut self) -> String {
        self.dismiss();
        let mut said = String::new();
        self.says.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "a process failed: {status}: {said}");
        said
    }

    /// Kills it with SIGKILL and waits until the kernel is done with it.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a process for each line of arguments, lets them begin at the same moment when all are ready, and gives
/// what each said.
pub(crate) fn together(
    role: &str,
    arguments: impl IntoIterator<Item = Vec<String>>,
) -> Vec<String> {
    all_together(arguments.into_iter().map(|line| command(role, line)))
}

/// The same of processes that these commands start.
pub(crate) fn all_together(commands: impl IntoIterator<Item = Command>) -> Vec<String> {
    let mut crew: Vec<Member> =
        commands.into_iter().map(|mut command| Member::spawn(&mut command)).collect();
    for member in &mut crew {
        assert_eq!(member.hear(), "ready", "a process failed before it began");
    }
    crew.iter_mut().for_each(Member::go);
    crew.into_iter().map(Member::finish).collect()
}

/// Waits until `is_so`. Background threads look around once a second; a busy machine may need far longer.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "not within a minute: {what}");
        // So that those have a processor who are waited for.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// In a process with a role: says that it is ready, and waits for the others.
pub(crate) fn ready() {
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// In a process with a role: turns true when it is to end, or whoever started it is gone.
pub(crate) fn dismissed() -> Arc<AtomicBool> {
    let dismissed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&dismissed);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        seen.store(true, Ordering::Release);
    });
    dismissed
}

/// Arguments, as text.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { vec![$($argument.to_string()),*] };
}
pub(crate) use arguments;

/// Reads an argument.
#[track_caller]
pub(crate) fn number(argument: &str) -> u64 {
    argument.parse().unwrap_or_else(|_| panic!("{argument:?} is not a number"))
}
