//! A process that writes keys of its own and reads them back. It knows what each must hold.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Durability, Error, ErrorKind, Timeout};

/// The keys of each process.
const KEYS: u64 = 100;
/// A process reports its progress after so many writes.
const STEP: u64 = 100;

pub(crate) fn builder(dir: &Path) -> Builder {
    let durability = Durability::Interval(Duration::from_millis(200));
    Cache::builder(dir).max_entries(50_000).max_bytes(64 << 20).durability(durability)
}

/// What a process knows of a key of its own.
#[derive(Default, Clone, Copy)]
struct Known {
    /// The last value whose write was acknowledged.
    acknowledged: u64,
    /// The highest value that may have been written; its write failed.
    attempted: u64,
    /// An error was reported since the write was acknowledged, so the entry may be lost.
    may_be_lost: bool,
}

/// What a process found. Printed as one line at its end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acknowledged: u64,
    pub(crate) errors: u64,
    /// Entries that were not there, after an error that announced it.
    pub(crate) lost: u64,
    /// The same without an error before.
    pub(crate) silent: u64,
    pub(crate) older: u64,
    pub(crate) wrong: u64,
}

impl Tally {
    fn line(&self) -> String {
        let Self { acknowledged, errors, lost, silent, older, wrong } = self;
        format!("done {acknowledged} {errors} {lost} {silent} {older} {wrong}")
    }

    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> =
            line.strip_prefix("done ")?.split(' ').map(|n| n.parse().unwrap()).collect();
        let [acknowledged, errors, lost, silent, older, wrong] = numbers[..] else { return None };
        Some(Self { acknowledged, errors, lost, silent, older, wrong })
    }
}

/// Role: works until its standard input is closed. `how`: `watching`; or, to see what a checker
/// finds, `unwatched` or `careless`.
pub(crate) fn work(dir: &Path, id: &str, how: &str) {
    #[cfg(feature = "failpoints")]
    for (point, is_on) in
        [("files::unwatched", how != "watching"), ("presence::careless", how == "careless")]
    {
        if is_on {
            fail::cfg(point, "return").unwrap();
        }
    }
    assert!(cfg!(feature = "failpoints") || how == "watching");
    let end = end_of_input();
    let mut known = vec![Known::default(); KEYS as usize];
    let mut tally = Tally::default();
    let cache = loop {
        match builder(dir).open() {
            Ok(cache) => break cache,
            Err(e) if end.load(Ordering::Acquire) => panic!("{e}"),
            Err(e) => report(&e),
        }
    };
    println!("open");
    let mut round = 0u64;
    while !end.load(Ordering::Acquire) {
        round += 1;
        let key = round % KEYS;
        let name = |key| format!("{id}:{key}");
        known[key as usize].attempted = round;
        // Some values are longer, so that several segments come into use.
        let value = (id, round, "x".repeat((round % 7 * 300) as usize));
        match cache.set(&name(key), &value, Timeout::Never) {
            Ok(()) => {
                tally.acknowledged += 1;
                known[key as usize] =
                    Known { acknowledged: round, attempted: round, may_be_lost: false };
            }
            Err(e) => note(&e, &mut tally, &mut known),
        }
        let key = round * 31 % KEYS;
        match cache.get::<(String, u64, String)>(&name(key)) {
            Ok(found) => judge(id, found, &mut known[key as usize], &mut tally),
            Err(e) => note(&e, &mut tally, &mut known),
        }
        if round.is_multiple_of(STEP) {
            println!("at {round}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for (key, known) in known.iter_mut().enumerate() {
        // An error that was not reported yet is one of this process, and is reported once.
        let read = || cache.get::<(String, u64, String)>(&format!("{id}:{key}"));
        match read().or_else(|_| read()) {
            Ok(found) => judge(id, found, known, &mut tally),
            Err(e) => panic!("twice in a row: {e}"),
        }
    }
    println!("{}", tally.line());
}

fn report(error: &Error) {
    println!("error {:?}: {error}", error.kind());
}

fn note(error: &Error, tally: &mut Tally, known: &mut [Known]) {
    tally.errors += 1;
    report(error);
    known.iter_mut().for_each(|known| known.may_be_lost = true);
}

fn judge(id: &str, found: Option<(String, u64, String)>, known: &mut Known, tally: &mut Tally) {
    match found {
        None if known.acknowledged == 0 => {}
        None if known.may_be_lost => tally.lost += 1,
        None => tally.silent += 1,
        Some((of, round, _)) if of == id && round <= known.attempted => {
            if round < known.acknowledged {
                tally.older += 1;
            }
            known.acknowledged = round;
            return;
        }
        Some(_) => tally.wrong += 1,
    }
    *known = Known { attempted: known.attempted, ..Known::default() };
}

fn end_of_input() -> &'static AtomicBool {
    static END: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        END.store(true, Ordering::Release);
    });
    &END
}

/// A worker, seen from outside. Dropping it kills the process.
pub(crate) struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    output: std::sync::mpsc::Receiver<String>,
    /// The kinds of errors that it reported, with the texts.
    pub(crate) errors: BTreeMap<String, String>,
    round: u64,
    is_open: bool,
    tally: Option<Tally>,
}

impl Worker {
    pub(crate) fn start(dir: &Path, id: &str, how: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--work").arg(dir).args([id, how]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take(), process.stdout.take().unwrap());
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || forward(output, &send));
        let (errors, tally) = (BTreeMap::new(), None);
        Self { process, input, output: receive, errors, round: 0, is_open: false, tally }
    }

    fn take(&mut self, line: &str) {
        if let Some(round) = line.strip_prefix("at ") {
            self.round = round.parse().unwrap();
        } else if let Some(error) = line.strip_prefix("error ") {
            let (kind, text) = error.split_once(": ").unwrap();
            self.errors.insert(kind.to_owned(), text.to_owned());
        } else if line == "open" {
            self.is_open = true;
        } else {
            self.tally = Tally::parse(line);
        }
    }

    /// Reads what it prints until `is_so`. Fails after `patience`, or if it ends before.
    pub(crate) fn wait(
        &mut self,
        patience: Duration,
        what: &str,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<Duration, String> {
        let started = Instant::now();
        loop {
            if is_so(self) {
                return Ok(started.elapsed());
            }
            let left = patience.saturating_sub(started.elapsed());
            match self.output.recv_timeout(left) {
                Ok(line) => self.take(&line),
                Err(e) => return Err(format!("{what}: {e}; errors: {:?}", self.errors)),
            }
        }
    }

    /// Waits until it has written for some time from now on.
    pub(crate) fn progress(&mut self, patience: Duration) -> Result<(), String> {
        while let Ok(line) = self.output.try_recv() {
            self.take(&line);
        }
        let from = self.round;
        self.wait(patience, "it does not go on", |worker| worker.round >= from + 2 * STEP).map(drop)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Has it end, and returns what it found.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<Tally, String> {
        self.input = None;
        self.wait(patience, "it does not end", |worker| worker.tally.is_some())?;
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
        Ok(self.tally.take().unwrap_or_default())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn forward(output: ChildStdout, to: &std::sync::mpsc::Sender<String>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if to.send(line).is_err() {
            break;
        }
    }
}

/// The kind of error that a changed directory is reported with.
pub(crate) fn expected() -> String {
    format!("{:?}", ErrorKind::DirectoryChanged)
}

/// Flushes what a role printed, which a kill would lose otherwise.
pub(crate) fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}
