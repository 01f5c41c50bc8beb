//! Crash tests: a child process that works through the public API until it is killed, and a witness
//! in the parent that knows which operations were acknowledged.
//!
//! The operations of the child follow from a seed, so the witness knows them in advance. The child
//! reports the number and the result of each acknowledged operation. After the kill, every
//! acknowledged operation must be in effect. Of each thread, the next operation may be in effect.

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

/// The `cull_frequency` that a child passes when it opens the directory.
const FREQUENCY: u64 = 4;

/// How a child works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) threads: u64,
    /// How many operations each thread does before the child has finished.
    pub(crate) operations: u64,
    /// Whether the child, when it has finished, waits for a kill, or exits.
    pub(crate) waits: bool,
    /// Whether the limits are so low that entries are evicted.
    pub(crate) tight: bool,
    /// 0: buffered, 1: sync every millisecond, 2: sync at each write, otherwise the default.
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
        // A few keys are written again and again. Entries of the others stay, between dead records.
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
                // A value so large that it is a file of its own.
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
    /// Sets `cull_frequency`, which does not change what is acknowledged.
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

/// The value for `key` and `nonce`. Values are unique; most are small, a few take pages.
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

/// The size of a report from the child: thread, index and result, 8 bytes each.
const REPORT: usize = 24;

/// The command line of a child: a mark, the directory and the plan. Further arguments belong to the
/// test.
const MARK: &str = "--work-until-killed";
const ARGUMENTS: usize = 8;

/// If this process was started as a child: passes the further arguments to `prepare`, and works.
/// Returns false in any other process.
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
    // Not `stdout`, which would buffer the reports.
    let pipe = Mutex::new(File::options().write(true).open("/proc/self/fd/1").unwrap());
    let report = |thread: u64, index: u64, result: i64| {
        let mut bytes = [0; REPORT];
        bytes[..8].copy_from_slice(&thread.to_le_bytes());
        bytes[8..16].copy_from_slice(&index.to_le_bytes());
        bytes[16..].copy_from_slice(&result.to_le_bytes());
        pipe.lock().unwrap().write_all(&bytes).unwrap();
    };
    // A clear concerns the keys of all threads. It takes this lock exclusively, so that the witness
    // knows which operations came before it.
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
            // `add` takes typed values; this type is stored as raw bytes.
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
                // The entry was evicted meanwhile.
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

/// The content of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Nothing,
    Value(u64),
    Count(i64),
}

/// The result of a child.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) acknowledged: u64,
    /// Operations found in effect that were not acknowledged.
    pub(crate) unacknowledged_in_effect: u64,
    pub(crate) status: ExitStatus,
}

/// A directory, and the operations that were acknowledged in it.
pub(crate) struct Witness {
    home: TempDir,
    /// The possible contents of each key; a key that is missing here must be absent. Beside the
    /// acknowledged content, this has the results of unacknowledged operations while the entry is
    /// evicted, because a recovery may bring it back.
    possible: BTreeMap<String, Vec<Content>>,
    /// The possible values of `cull_frequency`.
    frequencies: Vec<u64>,
}

impl Witness {
    pub(crate) fn new(home: TempDir) -> Self {
        Self { home, possible: BTreeMap::new(), frequencies: Vec::new() }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    /// Starts a child, calls `end_it`, waits until the child has ended, and checks that all
    /// acknowledged operations are in effect: in the directory itself, which is closed cleanly
    /// afterwards, or, with `on_a_copy`, in a copy of it. `extra` goes to the child's `prepare`;
    /// `end_it` reads the child's reports.
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
        self.check(plan, &reports.received, status, on_a_copy)
    }

    fn check(
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
                "{plan:?}: thread {thread} reports out of order"
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
            // An early kill may come before the child has created the directory.
            if self.dir().exists() {
                copy_as_killed(&self.dir(), copy.path());
            }
            self.check_directory(plan, &begun, copy.path())
        } else {
            self.check_directory(plan, &begun, &self.dir())
        };
        Ended { acknowledged: received.len() as u64, unacknowledged_in_effect: in_effect, status }
    }

    fn possible(&self, key: &str) -> &[Content] {
        self.possible.get(key).map_or(&[Content::Nothing], |possible| possible)
    }

    /// The possible results of adding `delta` to a counter.
    fn sums(&self, plan: Plan, key: &str, delta: i64) -> Vec<i64> {
        let before = self.possible(key).iter().map(|content| match content {
            Content::Count(n) => *n,
            _ => 0,
        });
        // An evicted counter starts again from zero.
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

    /// The possible contents of `key` after an operation that began and was not acknowledged.
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

    /// Opens the directory and compares its content with what is possible. The content found is the
    /// starting point of the next round. Returns how many unacknowledged operations are in effect.
    fn check_directory(&mut self, plan: Plan, begun: &[Operation], dir: &Path) -> u64 {
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
        // An unacknowledged clear took effect as a whole or not at all.
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
                        "{key:?} holds {seen:?}; the acknowledged operations allow {possible:?}, \
                         the unacknowledged ones {begun:?} allow {outcomes:?}"
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

/// The content of the cache; all values must be complete and unchanged.
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
                    "{key:?} holds bytes that were never stored under it"
                );
                Content::Value(nonce)
            })
        };
        let content = content.unwrap_or_else(|| panic!("{key:?} is listed and is absent"));
        assert!(contents.insert(key.clone(), content).is_none(), "{key:?} is listed twice");
    }
    contents
}

/// The reports of a child.
pub(crate) struct Reports {
    pipe: std::process::ChildStdout,
    received: Vec<[u64; 3]>,
}

impl Reports {
    /// Waits for the next report. Returns `false` once the child has ended and all its reports were
    /// read.
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
