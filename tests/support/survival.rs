//! A child process that works through the public API until it is killed, and a witness who knows what it was
//! told.
//!
//! What the child does follows from a seed, so its witness knows each operation beforehand; the child reports
//! the number and the result of each one that was acknowledged. After the kill, every acknowledged operation
//! must be in effect, and of each thread the one after that may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use keepwarm::{Builder, Cache, Durability, Eviction, NewLimits, Swap, Timeout};
use serde_bytes::ByteBuf;
use tempfile::TempDir;

use crate::dir::copy_as_killed;
use crate::rng::Rng;

/// The `cull_frequency` with which a child opens the directory.
const FREQUENCY: u64 = 4;

/// How a child works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) threads: u64,
    /// How many operations each thread does before the child is done.
    pub(crate) operations: u64,
    /// Whether the child, when it is done, waits to be killed, or ends by itself.
    pub(crate) waits: bool,
    /// Whether the bounds are so tight that entries are evicted.
    pub(crate) tight: bool,
    /// 0: buffered, 1: every millisecond, 2: each write, otherwise the default.
    pub(crate) durability: u64,
}

impl Plan {
    fn builder(&self, dir: &Path) -> Builder {
        let eviction = [Eviction::Lru, Eviction::Adaptive][self.seed as usize % 2];
        let builder = Cache::builder(dir).default_timeout(Timeout::Never).eviction(eviction);
        let builder = builder.cull_frequency(FREQUENCY);
        let builder = match self.durability {
            0 => builder.durability(Durability::Buffered),
            1 => builder.durability(Durability::Interval(Duration::from_millis(1))),
            2 => builder.durability(Durability::Sync),
            _ => builder,
        };
        if self.tight {
            builder.max_bytes(1 << 20).max_entries(30).hot_bytes(100_000)
        } else {
            builder.max_bytes(64 << 20).max_entries(20_000)
        }
    }

    fn to_arguments(self) -> Vec<String> {
        let (waits, tight) = (u64::from(self.waits), u64::from(self.tight));
        [self.seed, self.threads, self.operations, waits, tight, self.durability]
            .map(|n| n.to_string())
            .to_vec()
    }

    fn from_arguments(arguments: &[String]) -> Self {
        let numbers: Vec<u64> = arguments.iter().map(|a| a.parse().unwrap()).collect();
        let [seed, threads, operations, waits, tight, durability] = numbers[..] else {
            panic!("{arguments:?}")
        };
        Self { seed, threads, operations, waits: waits == 1, tight: tight == 1, durability }
    }

    pub(crate) fn operation(&self, thread: u64, index: u64) -> Operation {
        let mut rng = Rng::new(self.seed ^ (thread << 56) ^ (index << 20));
        let nonce = rng.next();
        // A few are written again and again, others stay among what is dead.
        let mut value = || {
            let keys = if rng.below(4) > 0 { 6 } else { 40 };
            format!("{thread} value {}", rng.below(keys))
        };
        match nonce % 1000 {
            0..350 => Operation::Set(vec![(value(), nonce)]),
            350..400 => Operation::Set((0..3).map(|n| (value(), nonce ^ n << 40)).collect()),
            400..470 => Operation::Add(value(), nonce),
            470..540 => Operation::Swap(value(), nonce),
            540..690 => Operation::Delete(value()),
            690..730 => Operation::Touch(value()),
            730..740 => {
                let key = value();
                // One so large that it is a file of its own.
                let large =
                    (0..).map(|n| nonce ^ n << 40).find(|n| self::value(&key, *n).len() > 10_000);
                Operation::Move(key, large.unwrap())
            }
            740..970 => Operation::Incr(
                format!("{thread} counter {}", rng.below(10)),
                rng.below(9) as i64 - 2,
            ),
            970..975 => Operation::Flush,
            975..980 if thread == 0 => Operation::Configure(3 + rng.below(3)),
            980..985 => Operation::Maintain,
            985..990 => Operation::Close,
            _ if thread == 0 => Operation::Clear,
            _ => Operation::Flush,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// One key after the other.
    Set(Vec<(String, u64)>),
    Add(String, u64),
    Swap(String, u64),
    Delete(String),
    Touch(String),
    /// Stores a large value, moves it to another version and back.
    Move(String, u64),
    Incr(String, i64),
    Clear,
    /// Has a cull remove one entry in so many, which changes nothing of what is acknowledged.
    Configure(u64),
    Flush,
    Maintain,
    Close,
}

impl Operation {
    fn keys(&self) -> Vec<String> {
        match self {
            Self::Set(items) => items.iter().map(|(key, _)| key.clone()).collect(),
            Self::Add(key, _)
            | Self::Swap(key, _)
            | Self::Delete(key)
            | Self::Touch(key)
            | Self::Move(key, _)
            | Self::Incr(key, _) => {
                vec![key.clone()]
            }
            _ => Vec::new(),
        }
    }
}

/// What is stored under `key` for `nonce`: no two values are the same, most are small, a few take pages.
fn value(key: &str, nonce: u64) -> Vec<u8> {
    let mut rng = Rng::new(nonce);
    let len = match rng.below(20) {
        0 => rng.below(40_000),
        1..8 => rng.below(8000),
        _ => rng.below(200),
    };
    let mut bytes = nonce.to_le_bytes().to_vec();
    bytes.extend(key.as_bytes());
    bytes.extend((0..len).map(|_| rng.next() as u8));
    bytes
}

/// What a report from the child consists of: thread, index and result, 8 bytes each.
const REPORT: usize = 24;

/// The command line of a child: a mark, the directory and the plan. What follows is the caller's.
const MARK: &str = "--work-until-killed";
const ARGUMENTS: usize = 8;

/// If this process was started to be killed: works, after handing the rest of the command line to `prepare`.
pub(crate) fn work_if_child(prepare: impl FnOnce(&[String])) -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_none_or(|a| a != MARK) {
        return false;
    }
    prepare(&arguments[ARGUMENTS..]);
    work(Path::new(&arguments[1]), Plan::from_arguments(&arguments[2..ARGUMENTS]));
    true
}

fn work(dir: &Path, plan: Plan) {
    let cache = plan.builder(dir).open().expect("the child opens the directory");
    // Not `stdout`, which would buffer.
    let pipe = Mutex::new(File::options().write(true).open("/proc/self/fd/1").unwrap());
    let report = |thread: u64, index: u64, result: i64| {
        let mut bytes = [0; REPORT];
        bytes[..8].copy_from_slice(&thread.to_le_bytes());
        bytes[8..16].copy_from_slice(&index.to_le_bytes());
        bytes[16..].copy_from_slice(&result.to_le_bytes());
        pipe.lock().unwrap().write_all(&bytes).unwrap();
    };
    // A clear touches everybody's keys: held exclusively, so that the witness knows what came before it.
    let clearing = RwLock::new(());
    std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            let (cache, clearing, report) = (&cache, &clearing, &report);
            scope.spawn(move || {
                for index in 0..plan.operations {
                    let operation = plan.operation(thread, index);
                    if matches!(operation, Operation::Clear) {
                        let _alone = clearing.write().unwrap();
                        report(thread, index, perform(cache, &operation).unwrap());
                    } else {
                        let _shared = clearing.read().unwrap();
                        report(thread, index, perform(cache, &operation).unwrap());
                    }
                }
            });
        }
    });
    if plan.waits {
        loop {
            std::thread::park();
        }
    }
}

fn perform(cache: &Cache, operation: &Operation) -> keepwarm::Result<i64> {
    Ok(match operation {
        Operation::Set(items) => {
            for (key, nonce) in items {
                let value = value(key, *nonce);
                if nonce % 2 == 0 {
                    cache.set_bytes(key, &value, Timeout::Default)?;
                } else {
                    let mut writer = cache.writer(key, Timeout::Default)?;
                    value.chunks(3000).try_for_each(|piece| writer.write_all(piece)).unwrap();
                    writer.commit()?;
                }
            }
            0
        }
        Operation::Add(key, nonce) => {
            // `add` takes types; bytes of this one are stored as they are.
            i64::from(cache.add(key, &ByteBuf::from(value(key, *nonce)), Timeout::Default)?)
        }
        Operation::Swap(key, nonce) => {
            let token = cache.get_entry::<ByteBuf>(key)?.map(|entry| entry.token);
            let new = ByteBuf::from(value(key, *nonce));
            i64::from(matches!(
                cache.compare_and_swap(key, token, &new, Timeout::Default)?,
                Swap::Stored(_)
            ))
        }
        Operation::Delete(key) => i64::from(cache.delete(key)?),
        Operation::Move(key, nonce) => {
            cache.set_bytes(key, &value(key, *nonce), Timeout::Default)?;
            let moved =
                cache.incr_version(key, 1).and_then(|_| cache.with_version(2).decr_version(key, 1));
            match moved {
                // Evicted meanwhile.
                Err(e) if e.kind() == keepwarm::ErrorKind::NotFound => 0,
                moved => moved?,
            }
        }
        Operation::Touch(key) => i64::from(cache.touch(key, Duration::from_secs(100_000))?),
        Operation::Incr(key, delta) => cache.incr_or_init(key, *delta, 0, Timeout::Never)?,
        Operation::Clear => cache.clear().map(|()| 0)?,
        Operation::Configure(frequency) => {
            cache.configure(&NewLimits::new().cull_frequency(*frequency)).map(|_| 0)?
        }
        Operation::Flush => cache.flush().map(|()| 0)?,
        Operation::Maintain => cache.maintain().map(|()| 0)?,
        Operation::Close => cache.close().map(|()| 0)?,
    })
}

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Nothing,
    Value(u64),
    Count(i64),
}

/// What a child came to.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) acknowledged: u64,
    /// Operations that had begun, as far as can be told, and took effect without an acknowledgement.
    pub(crate) unacknowledged_in_effect: u64,
    pub(crate) status: ExitStatus,
}

/// A directory, and what was acknowledged of it.
pub(crate) struct Witness {
    home: TempDir,
    /// What each key may hold; nothing, where it is not named. Beside what was acknowledged, that is what an
    /// operation that was not may have left, as long as the entry is evicted and may come back.
    possible: BTreeMap<String, Vec<Content>>,
    /// What its `cull_frequency` may be.
    frequencies: Vec<u64>,
}

impl Witness {
    pub(crate) fn new(home: TempDir) -> Self {
        Self { home, possible: BTreeMap::new(), frequencies: Vec::new() }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// Starts a child, lets `end_it` see it to its end, and checks that everything acknowledged is in effect:
    /// in the directory itself, which is closed cleanly then, or, with `on_a_copy`, without touching it.
    /// `extra` goes to the child's `prepare`; `end_it` reads the child's reports.
    pub(crate) fn round(
        &mut self,
        plan: Plan,
        extra: &[String],
        on_a_copy: bool,
        end_it: impl FnOnce(&mut Child, &mut Reports),
    ) -> Ended {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(MARK)
            .arg(self.dir())
            .args(plan.to_arguments())
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = child.stdout.take().unwrap();
        let mut reports = Reports { pipe, received: Vec::new() };
        end_it(&mut child, &mut reports);
        while reports.next() {}
        let status = child.wait().unwrap();
        self.judge(plan, &reports.received, status, on_a_copy)
    }

    fn judge(
        &mut self,
        plan: Plan,
        received: &[[u64; 3]],
        status: ExitStatus,
        on_a_copy: bool,
    ) -> Ended {
        let mut next = vec![0; plan.threads as usize];
        if !received.is_empty() {
            self.frequencies.clear();
        }
        self.frequencies.push(FREQUENCY);
        for [thread, index, result] in received {
            assert_eq!(
                *index, next[*thread as usize],
                "{plan:?}: thread {thread} reports in order"
            );
            next[*thread as usize] += 1;
            self.acknowledge(plan, &plan.operation(*thread, *index), *result as i64);
        }
        let begun: Vec<Operation> = (0..plan.threads)
            .zip(&next)
            .filter(|(_, index)| **index < plan.operations)
            .map(|(thread, index)| plan.operation(thread, *index))
            .collect();
        let in_effect = if on_a_copy {
            let copy = tempfile::tempdir_in(self.home.path()).unwrap();
            // Killed early, the child may not even have made it.
            if self.dir().exists() {
                copy_as_killed(&self.dir(), copy.path());
            }
            self.look(plan, &begun, copy.path())
        } else {
            self.look(plan, &begun, &self.dir())
        };
        Ended { acknowledged: received.len() as u64, unacknowledged_in_effect: in_effect, status }
    }

    fn possible(&self, key: &str) -> &[Content] {
        self.possible.get(key).map_or(&[Content::Nothing], |possible| possible)
    }

    /// What adding `delta` to a counter can come to.
    fn sums(&self, plan: Plan, key: &str, delta: i64) -> Vec<i64> {
        let before = self.possible(key).iter().map(|content| match content {
            Content::Count(n) => *n,
            _ => 0,
        });
        // An evicted counter begins anew.
        before.chain(plan.tight.then_some(0)).map(|n| n + delta).collect()
    }

    fn acknowledge(&mut self, plan: Plan, operation: &Operation, result: i64) {
        let mut put = |key: &str, content| {
            self.possible.insert(key.to_owned(), vec![content]);
        };
        match operation {
            Operation::Set(items) => {
                items.iter().for_each(|(key, nonce)| put(key, Content::Value(*nonce)));
            }
            Operation::Add(key, nonce) | Operation::Swap(key, nonce) if result == 1 => {
                put(key, Content::Value(*nonce));
            }
            Operation::Move(key, nonce) => put(key, Content::Value(*nonce)),
            Operation::Delete(key) => put(key, Content::Nothing),
            Operation::Incr(key, delta) => {
                let sums = self.sums(plan, key, *delta);
                assert!(
                    sums.contains(&result),
                    "{plan:?}: {operation:?} gave {result}, not one of {sums:?}"
                );
                self.possible.insert(key.clone(), vec![Content::Count(result)]);
            }
            Operation::Clear => self.possible.clear(),
            Operation::Configure(frequency) => self.frequencies = vec![*frequency],
            _ => {}
        }
    }

    /// What an operation that was begun and not acknowledged can make of `key`.
    fn outcomes(&self, plan: Plan, begun: &[Operation], key: &str) -> Vec<Content> {
        let mut outcomes = Vec::new();
        for operation in begun {
            match operation {
                Operation::Set(items) => {
                    outcomes.extend(
                        items.iter().filter(|(k, _)| k == key).map(|(_, n)| Content::Value(*n)),
                    );
                }
                Operation::Add(k, nonce)
                    if k == key
                        && (plan.tight || self.possible(key).contains(&Content::Nothing)) =>
                {
                    outcomes.push(Content::Value(*nonce));
                }
                Operation::Swap(k, nonce) if k == key => outcomes.push(Content::Value(*nonce)),
                Operation::Move(k, nonce) if k == key => {
                    outcomes.extend([Content::Value(*nonce), Content::Nothing]);
                }
                Operation::Delete(k) if k == key => outcomes.push(Content::Nothing),
                Operation::Incr(k, delta) if k == key => {
                    outcomes.extend(self.sums(plan, key, *delta).into_iter().map(Content::Count));
                }
                _ => {}
            }
        }
        outcomes
    }

    /// Opens the directory and compares. What was found is what the next round begins with.
    fn look(&mut self, plan: Plan, begun: &[Operation], dir: &Path) -> u64 {
        let opened = plan.builder(dir).keep_limits(true).open();
        let cache = opened.unwrap_or_else(|e| self.fail(plan, dir, &e.to_string()));
        self.frequencies.extend(begun.iter().filter_map(|operation| match operation {
            Operation::Configure(frequency) => Some(frequency),
            _ => None,
        }));
        let frequency = cache.limits().cull_frequency;
        if !self.frequencies.contains(&frequency) {
            let what =
                format!("a cull_frequency of {frequency}, not one of {:?}", self.frequencies);
            self.fail(plan, dir, &what);
        }
        self.frequencies = vec![frequency];
        let found = contents(&cache);
        let report = cache.check().unwrap();
        if !report.is_sound() {
            self.fail(plan, dir, &format!("{:?}", report.problems));
        }
        if !plan.tight && cache.stats().evicted > 0 {
            self.fail(plan, dir, "the test stores more than its own bounds allow");
        }
        // A clear that was begun took effect as a whole or not at all.
        if found.is_empty() && begun.iter().any(|operation| matches!(operation, Operation::Clear)) {
            self.possible.clear();
            return 1;
        }
        let mut in_effect = 0;
        let mut keys: BTreeSet<String> =
            self.possible.keys().chain(found.keys()).cloned().collect();
        keys.extend(begun.iter().flat_map(Operation::keys));
        for key in keys {
            let seen = found.get(&key).copied().unwrap_or(Content::Nothing);
            let (mut possible, outcomes) =
                (self.possible(&key).to_vec(), self.outcomes(plan, begun, &key));
            if plan.tight && seen == Content::Nothing {
                possible.extend(outcomes);
                self.possible.insert(key, possible);
                continue;
            }
            if !possible.contains(&seen) {
                if !outcomes.contains(&seen) {
                    let what = format!(
                        "{key:?} holds {seen:?}; acknowledged was {possible:?}, and without \
                         acknowledgement, of {begun:?}, there could be {outcomes:?}"
                    );
                    self.fail(plan, dir, &what);
                }
                in_effect += 1;
            }
            self.possible.insert(key, vec![seen]);
        }
        in_effect
    }

    fn fail(&self, plan: Plan, dir: &Path, what: &str) -> ! {
        let kept = std::env::temp_dir().join(format!("keepwarm-failed-{}", std::process::id()));
        let _ = std::fs::create_dir(&kept);
        copy_as_killed(dir, &kept);
        panic!("{what}\n  the directory is kept in {}\n  {plan:?}", kept.display());
    }
}

/// Everything in the cache; values must be whole.
fn contents(cache: &Cache) -> BTreeMap<String, Content> {
    let mut contents = BTreeMap::new();
    for key in cache.keys() {
        let key = key.unwrap();
        let content = if key.contains("counter") {
            cache.get::<i64>(&key).unwrap().map(Content::Count)
        } else {
            cache.get_bytes(&key).unwrap().map(|bytes| {
                let nonce =
                    bytes.first_chunk().copied().map(u64::from_le_bytes).unwrap_or_default();
                assert_eq!(
                    *bytes,
                    *value(&key, nonce),
                    "{key:?} holds what was never stored there"
                );
                Content::Value(nonce)
            })
        };
        let content = content.unwrap_or_else(|| panic!("{key:?} is listed and is not there"));
        assert!(contents.insert(key.clone(), content).is_none(), "{key:?} is listed twice");
    }
    contents
}

/// What a child reports.
pub(crate) struct Reports {
    pipe: std::process::ChildStdout,
    received: Vec<[u64; 3]>,
}

impl Reports {
    /// Waits for the next report. `false` once the child is gone and everything it reported was read.
    pub(crate) fn next(&mut self) -> bool {
        let mut bytes = [0; REPORT];
        if self.pipe.read_exact(&mut bytes).is_err() {
            return false;
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        self.received.push([word(0), word(8), word(16)]);
        true
    }
}
