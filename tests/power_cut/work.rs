//! The work during which the power is cut: random operations through the public API, by one thread
//! or several. A recorder captures the content of memory and disk at random moments: between
//! operations, and at the named points of the source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Clock, Durability, ManualClock, Swap, Timeout, Timestamp};
use serde_bytes::ByteBuf;

use crate::disk::{Disk, Image};
use crate::history::{Content, End, Held, Histories, NOTHING, Tally};
use crate::home::home;
use crate::points;
use crate::rng::Rng;

/// How a directory is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The seed, which repeats all of it.
    pub(crate) seed: u64,
    /// Whether the limits are so low that entries are evicted and segments are removed.
    pub(crate) tight: bool,
    pub(crate) durability: Durability,
    pub(crate) threads: u64,
    /// Operations of each thread in each run.
    pub(crate) operations: u64,
    /// The largest size of most values, in bytes.
    pub(crate) most_bytes: u64,
}

impl Plan {
    fn open(&self, root: &Path, clock: &ManualClock) -> keepwarm::Result<Cache> {
        let builder: Builder = Cache::builder(root.join(DIRECTORY))
            .default_timeout(Timeout::Never)
            .durability(self.durability)
            .clock(clock.clone())
            .hot_bytes(0);
        let bounded = if self.tight {
            builder.max_bytes(1 << 20).max_entries(40).cull_frequency(4)
        } else {
            builder.max_bytes(4 << 20).max_entries(500)
        };
        bounded.open()
    }
}

/// The name of the cache directory. Its parent is on the disk from the beginning.
const DIRECTORY: &str = "cache";
/// The size of the log from which a directory without evictions is not used any more.
const LOG_BYTES: u64 = 2 << 20;

/// The content of memory and disk at one moment, and what may be found after it.
pub(crate) struct Capture {
    image: Image,
    /// The histories before and after the capture: what is surely there, and what may be there.
    before: Histories,
    after: Histories,
}

impl Capture {
    /// What may be found if the run ends like this at this moment.
    fn histories(&self, end: End) -> Histories {
        match end {
            End::PowerCut => self.after.clone().with_floors_of(&self.before),
            End::Kill => self.after.clone().with_all_of(&self.before),
        }
    }
}

/// The totals of a test.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) cuts: u64,
    kills: u64,
    operations: u64,
    evictions: u64,
    tally: Tally,
}

impl Totals {
    fn add(&mut self, end: End, tally: Tally) {
        match end {
            End::PowerCut => self.cuts += 1,
            End::Kill => self.kills += 1,
        }
        self.tally.keys += tally.keys;
        self.tally.older += tally.older;
        self.tally.torn += tally.torn;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, kills, operations, evictions, tally: Tally { keys, older, torn } } = self;
        write!(
            f,
            "{cuts} power cuts and {kills} kills in {operations} operations \
             ({evictions} evictions): {keys} keys checked, {older} had an older value, \
             {torn} were lost while they changed, 0 wrong"
        )
    }
}

/// The recorder that captures at the named points of the source, if there is one.
static AT_POINTS: Mutex<Option<Arc<Recorder>>> = Mutex::new(None);
/// The number of the point of the next capture; the number of points stands for any point.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// How many times the target is reached until the capture.
static COUNTDOWN: AtomicU64 = AtomicU64::new(0);

/// Records the captures of one run.
struct Recorder {
    disk: Arc<Disk>,
    histories: Mutex<Histories>,
    captures: Mutex<Vec<Capture>>,
    rng: Mutex<Rng>,
    /// The number of named points.
    points: u64,
}

impl Recorder {
    const CAPTURES: usize = 4;

    fn histories(&self) -> std::sync::MutexGuard<'_, Histories> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capture(&self) {
        let (image, before, after) = self.disk.image(|| self.histories().clone());
        let capture = Capture { image, before, after };
        let mut captures = self.captures.lock().unwrap_or_else(PoisonError::into_inner);
        captures.push(capture);
        if captures.len() < Self::CAPTURES {
            self.choose_next_point();
        }
    }

    /// Chooses where to capture next. Half of the captures are at any point, half at a chosen one,
    /// as most points are rarely reached.
    fn choose_next_point(&self) {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = rng.below(2 * self.points).min(self.points);
        let magnitude = if chosen == self.points { 4 + rng.below(8) } else { rng.below(4) };
        TARGET.store(chosen, Ordering::SeqCst);
        COUNTDOWN.store(1 + rng.below(1 << magnitude), Ordering::SeqCst);
    }

    /// If all acknowledged operations are on the disk, records that.
    fn record_if_synced(&self) {
        let acknowledged = self.histories().acknowledged();
        if self.disk.has_all_below(&Path::new(DIRECTORY).join("segments")) {
            self.histories().is_synced(&acknowledged);
        }
    }
}

fn pass_point(point: u64, points: u64) {
    let target = TARGET.load(Ordering::Relaxed);
    if (target != point && target != points) || COUNTDOWN.load(Ordering::Relaxed) == 0 {
        return;
    }
    if COUNTDOWN.fetch_sub(1, Ordering::SeqCst) == 1 {
        let recorder = AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(recorder) = recorder {
            recorder.capture();
        }
    }
}

/// The runs on one directory: each starts with the content that the end of the previous one left.
pub(crate) struct CrashRuns {
    plan: Plan,
    points: u64,
    rng: Rng,
    clock: ManualClock,
}

impl CrashRuns {
    pub(crate) fn new(plan: Plan) -> Self {
        static POINTS: OnceLock<u64> = OnceLock::new();
        let points = *POINTS.get_or_init(|| {
            let names = points::all();
            let points = names.len() as u64;
            for (name, point) in names.into_iter().zip(0..) {
                fail::cfg_callback(name, move || pass_point(point, points)).unwrap();
            }
            points
        });
        Self { plan, points, rng: Rng::new(plan.seed), clock: ManualClock::new() }
    }

    fn fail(&self, root: &Path, what: &str) -> ! {
        panic!("{what}\n  in {}\n  {:?}", root.display(), self.plan)
    }

    /// Opens the directory in `root`, and compares its content with the histories.
    fn open(
        &self,
        root: &Path,
        histories: &Histories,
        end: End,
        totals: &mut Totals,
    ) -> (Cache, BTreeMap<String, Held>) {
        let cache =
            self.plan.open(root, &self.clock).unwrap_or_else(|e| self.fail(root, &e.to_string()));
        let found = contents(&cache, &histories.keys()).unwrap_or_else(|e| self.fail(root, &e));
        match histories.check(&found, end, self.clock.now()) {
            Ok(tally) => totals.add(end, tally),
            Err(what) => self.fail(root, &format!("after {end:?}: {what}")),
        }
        let report = cache.check().unwrap();
        if !report.is_sound() {
            self.fail(root, &format!("after {end:?}: {:?}", report.problems));
        }
        (cache, found)
    }

    /// One run after the other, until the time is over.
    pub(crate) fn run(&mut self, runs: usize, until: Instant, totals: &mut Totals) {
        let mut last: Option<(Capture, End)> = None;
        for _ in 0..runs {
            let mut captures = self.one_run(last.take(), totals);
            for capture in &captures {
                for _ in 0..3 {
                    let home = home();
                    capture.image.cut(home.path(), &mut self.rng);
                    self.open(
                        home.path(),
                        &capture.histories(End::PowerCut),
                        End::PowerCut,
                        totals,
                    );
                }
            }
            let capture = captures.swap_remove(self.rng.below(captures.len() as u64) as usize);
            if Instant::now() > until {
                return;
            }
            if !self.plan.tight
                && capture.image.bytes_below(&Path::new(DIRECTORY).join("segments")) > LOG_BYTES
            {
                return;
            }
            let end = if self.rng.below(4) == 0 { End::Kill } else { End::PowerCut };
            last = Some((capture, end));
        }
    }

    /// One run: open, work, and in some runs close. Returns the captures.
    fn one_run(&mut self, last: Option<(Capture, End)>, totals: &mut Totals) -> Vec<Capture> {
        let home = home();
        let root = home.path().canonicalize().unwrap();
        let disk = match &last {
            Some((capture, End::Kill)) => {
                capture.image.kill(&root);
                Disk::after_kill(&root, &capture.image)
            }
            Some((capture, End::PowerCut)) => {
                capture.image.cut(&root, &mut self.rng);
                Disk::new(&root)
            }
            None => Disk::new(&root),
        };
        let nothing = Histories::new(self.plan.tight);
        let (synced, possible, end) = match last {
            Some((capture, end)) => (capture.histories(End::PowerCut), capture.histories(end), end),
            None => (nothing.clone(), nothing, End::PowerCut),
        };
        disk.watch(if self.plan.threads > 1 { 4 } else { 0 });
        let recorder = Arc::new(Recorder {
            disk,
            histories: Mutex::new(synced.unsettled(&possible)),
            captures: Mutex::default(),
            rng: Mutex::new(Rng::new(self.rng.next())),
            points: self.points,
        });
        *AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner) = Some(recorder.clone());
        recorder.choose_next_point();
        let (cache, found) = self.open(&root, &possible, end, totals);
        recorder.histories().settle(&found, end, self.clock.now());
        let clearing = RwLock::new(());
        let seed = self.rng.next();
        std::thread::scope(|scope| {
            for thread in 0..self.plan.threads {
                let (cache, recorder, clearing, clock) =
                    (cache.clone(), &recorder, &clearing, &self.clock);
                let (plan, rng) = (self.plan, Rng::new(seed ^ thread << 56));
                scope.spawn(move || {
                    Worker { thread, plan, cache, recorder, clock, clearing, rng }.work()
                });
            }
        });
        totals.operations += self.plan.threads * self.plan.operations;
        totals.evictions += cache.stats().evicted;
        if !self.plan.tight && cache.stats().evicted > 0 {
            self.fail(&root, "the test stores more than its own bounds allow");
        }
        match self.rng.below(3) {
            0 => recorder.capture(),
            1 => {
                drop(cache);
                recorder.capture();
            }
            _ => {
                cache.close().unwrap();
                recorder.record_if_synced();
                recorder.capture();
            }
        }
        COUNTDOWN.store(0, Ordering::SeqCst);
        *AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner) = None;
        std::mem::take(&mut *recorder.captures.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The value for `key` and `nonce`.
fn value(key: &str, nonce: u64, most_bytes: u64) -> Vec<u8> {
    let mut rng = Rng::new(nonce);
    let len = match rng.below(40) {
        0 => rng.below(40_000),
        1..8 => rng.below(most_bytes * 4),
        _ => rng.below(most_bytes),
    };
    let mut bytes = nonce.to_le_bytes().to_vec();
    bytes.extend(most_bytes.to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend((0..len).map(|_| rng.next() as u8));
    bytes
}

/// The content of the cache, from its listing and from `keys`; all values must be complete and
/// unchanged.
fn contents(cache: &Cache, keys: &[String]) -> Result<BTreeMap<String, Held>, String> {
    let mut contents = BTreeMap::new();
    let listed: Vec<String> = cache.keys().map(Result::unwrap).collect();
    for key in listed.iter().chain(keys) {
        let held = if key.contains("counter") {
            cache
                .get_entry::<i64>(key)
                .unwrap()
                .map(|entry| (Content::Count(entry.value), entry.expires_at))
        } else {
            let Some(entry) = cache.get_entry::<ByteBuf>(key).unwrap() else { continue };
            let word =
                |at: usize| entry.value.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
            let (nonce, most) = (word(0).unwrap_or_default(), word(8).unwrap_or_default());
            if entry.value != value(key, nonce, most.clamp(1, 1 << 20)) {
                return Err(format!("{key:?} holds bytes that were never stored under it"));
            }
            Some((Content::Value(nonce), entry.expires_at))
        };
        held.map(|held| contents.insert(key.clone(), held));
    }
    Ok(contents)
}

/// One working thread. It alone changes its keys, except that thread 0 clears the keys of all.
struct Worker<'a> {
    thread: u64,
    plan: Plan,
    cache: Cache,
    recorder: &'a Recorder,
    clock: &'a ManualClock,
    clearing: &'a RwLock<()>,
    rng: Rng,
}

impl Worker<'_> {
    fn work(mut self) {
        for _ in 0..self.plan.operations {
            if self.thread == 0 && self.rng.below(60) == 0 {
                let _alone = self.clearing.write().unwrap();
                self.clear();
                self.clock.advance(Duration::from_secs(self.rng.below(20)));
            } else {
                let _shared = self.clearing.read().unwrap();
                self.operate();
            }
            match self.rng.below(64) {
                0 => self.recorder.capture(),
                1..4 => self.recorder.disk.write_back(&mut self.rng),
                4..10 => self.recorder.record_if_synced(),
                _ => {}
            }
        }
    }

    fn timeout(&mut self) -> Timeout {
        match self.rng.below(8) {
            0 => Timeout::After(Duration::from_secs(1 + self.rng.below(30))),
            1 => Timeout::After(Duration::from_secs(100_000)),
            _ => Timeout::Never,
        }
    }

    fn expiry(&self, timeout: Timeout) -> Option<Timestamp> {
        match timeout {
            Timeout::After(duration) => self.clock.now().checked_add(duration),
            _ => None,
        }
    }

    /// The last acknowledged content of the key.
    fn last(&self, key: &str) -> Held {
        self.recorder.histories().last(key, self.clock.now())
    }

    /// Calls `change`, which may give `key` any of the contents in `possible`, and records its
    /// result.
    fn change(
        &self,
        key: &str,
        possible: &[Held],
        change: impl FnOnce() -> keepwarm::Result<Option<Held>>,
    ) {
        self.recorder.histories().begin(key, possible);
        let done = change().unwrap_or_else(|e| panic!("{e}, {:?}", self.plan));
        let mut histories = self.recorder.histories();
        histories.end(key, done);
        if self.plan.durability == Durability::Sync && done.is_some() {
            histories.key_is_synced(key);
        }
    }

    /// Asserts the result that this thread expects; with evictions, no result can be predicted.
    fn expect(&self, what: &str, key: &str, result: bool, expected: bool) {
        assert!(
            self.plan.tight || result == expected,
            "{what} of {key:?} was {result}, {:?}",
            self.plan
        );
    }

    fn operate(&mut self) {
        let nonce = self.rng.next();
        let key = format!(
            "{} value {}",
            self.thread,
            self.rng.below(if self.plan.tight { 60 } else { 20 })
        );
        let counter = format!("{} counter {}", self.thread, self.rng.below(6));
        let (cache, most) = (self.cache.clone(), self.plan.most_bytes);
        let bytes = value(&key, nonce, most);
        let timeout = self.timeout();
        let new = (Content::Value(nonce), self.expiry(timeout));
        let (is_there, last) = (self.last(&key) != NOTHING, self.last(&key));
        match self.rng.below(200) {
            0..80 => {
                self.change(&key, &[new], || {
                    cache.set_bytes(&key, &bytes, timeout).map(|()| Some(new))
                });
            }
            80..95 => self.change(&key, &[new], || {
                let added = cache.add(&key, &ByteBuf::from(bytes), timeout)?;
                self.expect("add", &key, added, !is_there);
                Ok(added.then_some(new))
            }),
            95..110 => self.change(&key, &[new], || {
                let token = cache.get_entry::<ByteBuf>(&key)?.map(|entry| entry.token);
                let swap = cache.compare_and_swap(&key, token, &ByteBuf::from(bytes), timeout)?;
                Ok(matches!(swap, Swap::Stored(_)).then_some(new))
            }),
            110..140 => self.change(&key, &[NOTHING], || {
                self.expect("delete", &key, cache.delete(&key)?, is_there);
                Ok(Some(NOTHING))
            }),
            140..150 => self.change(&key, &[(last.0, new.1)], || {
                let touched = cache.touch(&key, timeout)?;
                self.expect("touch", &key, touched, is_there);
                Ok(touched.then_some((last.0, new.1)))
            }),
            150..185 => self.count(&counter),
            185..190 => {
                let acknowledged = self.recorder.histories().acknowledged();
                cache.flush().unwrap();
                self.recorder.histories().is_synced(&acknowledged);
            }
            // The second call removes the segments that the first one emptied.
            190..194 => (0..2).for_each(|_| cache.maintain().unwrap()),
            194..197 => {
                let acknowledged = self.recorder.histories().acknowledged();
                cache.close().unwrap();
                self.recorder.histories().is_synced(&acknowledged);
            }
            _ => {
                // An entry found here must be the last that this thread stored.
                let found = cache.get_entry::<ByteBuf>(&key).unwrap();
                assert!(found.is_none() || is_there, "{key:?} is present, {:?}", self.plan);
                assert!(
                    found.is_some() || !is_there || self.plan.tight,
                    "{key:?} is absent, {:?}",
                    self.plan
                );
            }
        }
    }

    fn count(&mut self, key: &str) {
        let delta = self.rng.below(9) as i64 - 2;
        let last = match self.last(key).0 {
            Content::Count(n) => n,
            _ => 0,
        };
        // An evicted counter starts again from zero.
        let sums: Vec<Held> =
            [last, 0].map(|n| (Content::Count(n + delta), None)).into_iter().collect();
        let possible = if self.plan.tight { &sums[..] } else { &sums[..1] };
        self.change(key, possible, || {
            let held =
                (Content::Count(self.cache.incr_or_init(key, delta, 0, Timeout::Never)?), None);
            assert!(
                possible.contains(&held),
                "{key:?} counts {held:?}, not one of {possible:?}, {:?}",
                self.plan
            );
            Ok(Some(held))
        });
    }

    /// Clears the cache. The caller holds the lock exclusively, as this changes the keys of all
    /// threads.
    fn clear(&self) {
        let keys = self.recorder.histories().keys();
        keys.iter().for_each(|key| self.recorder.histories().begin(key, &[NOTHING]));
        self.cache.clear().unwrap();
        let mut histories = self.recorder.histories();
        for key in &keys {
            histories.end(key, Some(NOTHING));
            if self.plan.durability == Durability::Sync {
                histories.key_is_synced(key);
            }
        }
    }
}
