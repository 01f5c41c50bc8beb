//! The work that is cut off: random operations through the public API, by one thread or several, and a camera that
//! catches what memory and disk have at random moments, between operations and at the named points of the source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use keepwarm::{Builder, Cache, Clock, Durability, ManualClock, Swap, Timeout, Timestamp};
use serde_bytes::ByteBuf;

use crate::disk::{Disk, Moment};
use crate::history::{Content, End, Held, Histories, NOTHING, Tally};
use crate::home::home;
use crate::points;
use crate::rng::Rng;

/// How a directory is worked with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// What repeats it.
    pub(crate) seed: u64,
    /// Whether the bounds are so tight that entries are evicted and segments go.
    pub(crate) tight: bool,
    pub(crate) durability: Durability,
    pub(crate) threads: u64,
    /// Of each thread in each life.
    pub(crate) operations: u64,
    /// Most bytes of a value, in most cases.
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

/// The name of the cache directory, in a directory that is on the disk from the beginning.
const DIRECTORY: &str = "cache";
/// What the log of a directory in which nothing may be evicted has room for.
const LOG_BYTES: u64 = 2 << 20;

/// What memory and disk had at one moment, and what may be found after it.
pub(crate) struct Shot {
    moment: Moment,
    /// What is surely there, and what may be.
    before: Histories,
    after: Histories,
}

impl Shot {
    /// What may be found if it all ends so at this moment.
    fn histories(&self, end: End) -> Histories {
        match end {
            End::PowerCut => self.after.clone().with_floors_of(&self.before),
            End::Kill => self.after.clone().with_all_of(&self.before),
        }
    }
}

/// What was tried.
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
            "{cuts} power cuts and {kills} kills in {operations} operations ({evictions} evictions): {keys} keys \
             looked at, {older} as they were before, {torn} gone while they were being changed, 0 wrong"
        )
    }
}

/// The camera that the named points of the source are looked at by, while it is there.
static AT_POINTS: Mutex<Option<Arc<Film>>> = Mutex::new(None);
/// The number of the point at which the next shot is taken; the number of points for any.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// How many times it is passed by until then.
static COUNTDOWN: AtomicU64 = AtomicU64::new(0);

/// Where the shots of one life go.
struct Film {
    disk: Arc<Disk>,
    histories: Mutex<Histories>,
    shots: Mutex<Vec<Shot>>,
    rng: Mutex<Rng>,
    /// How many named points there are.
    points: u64,
}

impl Film {
    const SHOTS: usize = 4;

    fn histories(&self) -> std::sync::MutexGuard<'_, Histories> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shoot(&self) {
        let (moment, before, after) = self.disk.moment(|| self.histories().clone());
        let shot = Shot { moment, before, after };
        let mut shots = self.shots.lock().unwrap_or_else(PoisonError::into_inner);
        shots.push(shot);
        if shots.len() < Self::SHOTS {
            self.wind();
        }
    }

    /// Half of the shots are taken at some point or other, half at one that was chosen: most points are seldom come by.
    fn wind(&self) {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = rng.below(2 * self.points).min(self.points);
        let magnitude = if chosen == self.points { 4 + rng.below(8) } else { rng.below(4) };
        TARGET.store(chosen, Ordering::SeqCst);
        COUNTDOWN.store(1 + rng.below(1 << magnitude), Ordering::SeqCst);
    }

    /// Notes that all that is acknowledged is on the disk, if it is.
    fn note_synced(&self) {
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
        let film = AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(film) = film {
            film.shoot();
        }
    }
}

/// Lives of one directory.
pub(crate) struct Lives {
    plan: Plan,
    points: u64,
    rng: Rng,
    clock: ManualClock,
}

impl Lives {
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

    /// Opens what is in `root`, and compares.
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
        match histories.judge(&found, end, self.clock.now()) {
            Ok(tally) => totals.add(end, tally),
            Err(what) => self.fail(root, &format!("after {end:?}: {what}")),
        }
        let report = cache.check().unwrap();
        if !report.is_sound() {
            self.fail(root, &format!("after {end:?}: {:?}", report.problems));
        }
        (cache, found)
    }

    /// One life after the other, each beginning with what the end of the last one left, until the time is over.
    pub(crate) fn live(&mut self, lives: usize, until: Instant, totals: &mut Totals) {
        let mut last: Option<(Shot, End)> = None;
        for _ in 0..lives {
            let mut shots = self.life(last.take(), totals);
            for shot in &shots {
                for _ in 0..3 {
                    let home = home();
                    shot.moment.cut(home.path(), &mut self.rng);
                    self.open(home.path(), &shot.histories(End::PowerCut), End::PowerCut, totals);
                }
            }
            let shot = shots.swap_remove(self.rng.below(shots.len() as u64) as usize);
            if Instant::now() > until {
                return;
            }
            if !self.plan.tight
                && shot.moment.bytes_below(&Path::new(DIRECTORY).join("segments")) > LOG_BYTES
            {
                return;
            }
            let end = if self.rng.below(4) == 0 { End::Kill } else { End::PowerCut };
            last = Some((shot, end));
        }
    }

    /// One life: opening, work, and perhaps closing. Returns the moments that were caught.
    fn life(&mut self, last: Option<(Shot, End)>, totals: &mut Totals) -> Vec<Shot> {
        let home = home();
        let root = home.path().canonicalize().unwrap();
        let disk = match &last {
            Some((shot, End::Kill)) => {
                shot.moment.kill(&root);
                Disk::after_kill(&root, &shot.moment)
            }
            Some((shot, End::PowerCut)) => {
                shot.moment.cut(&root, &mut self.rng);
                Disk::new(&root)
            }
            None => Disk::new(&root),
        };
        let nothing = Histories::new(self.plan.tight);
        let (synced, possible, end) = match last {
            Some((shot, end)) => (shot.histories(End::PowerCut), shot.histories(end), end),
            None => (nothing.clone(), nothing, End::PowerCut),
        };
        disk.watch(if self.plan.threads > 1 { 4 } else { 0 });
        let film = Arc::new(Film {
            disk,
            histories: Mutex::new(synced.unsettled(&possible)),
            shots: Mutex::default(),
            rng: Mutex::new(Rng::new(self.rng.next())),
            points: self.points,
        });
        *AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner) = Some(film.clone());
        film.wind();
        let (cache, found) = self.open(&root, &possible, end, totals);
        film.histories().settle(&found, end, self.clock.now());
        let clearing = RwLock::new(());
        let seed = self.rng.next();
        std::thread::scope(|scope| {
            for thread in 0..self.plan.threads {
                let (cache, film, clearing, clock) = (cache.clone(), &film, &clearing, &self.clock);
                let (plan, rng) = (self.plan, Rng::new(seed ^ thread << 56));
                scope.spawn(move || {
                    Worker { thread, plan, cache, film, clock, clearing, rng }.work()
                });
            }
        });
        totals.operations += self.plan.threads * self.plan.operations;
        totals.evictions += cache.stats().evicted;
        if !self.plan.tight && cache.stats().evicted > 0 {
            self.fail(&root, "the test stores more than its own bounds allow");
        }
        match self.rng.below(3) {
            0 => film.shoot(),
            1 => {
                drop(cache);
                film.shoot();
            }
            _ => {
                cache.close().unwrap();
                film.note_synced();
                film.shoot();
            }
        }
        COUNTDOWN.store(0, Ordering::SeqCst);
        *AT_POINTS.lock().unwrap_or_else(PoisonError::into_inner) = None;
        std::mem::take(&mut *film.shots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is stored under `key` for `nonce`.
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

/// Everything in the cache, listed or asked for by name; values must be whole.
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
                return Err(format!("{key:?} holds what was never stored there"));
            }
            Some((Content::Value(nonce), entry.expires_at))
        };
        held.map(|held| contents.insert(key.clone(), held));
    }
    Ok(contents)
}

/// One thread at work. It alone changes its keys, except that one of them clears.
struct Worker<'a> {
    thread: u64,
    plan: Plan,
    cache: Cache,
    film: &'a Film,
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
                0 => self.film.shoot(),
                1..4 => self.film.disk.write_back(&mut self.rng),
                4..10 => self.film.note_synced(),
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

    /// What the key holds, as far as this thread knows.
    fn last(&self, key: &str) -> Held {
        self.film.histories().last(key, self.clock.now())
    }

    /// Does `change`, which may give `key` any of `possible`, and says what it gave.
    fn change(
        &self,
        key: &str,
        possible: &[Held],
        change: impl FnOnce() -> keepwarm::Result<Option<Held>>,
    ) {
        self.film.histories().begin(key, possible);
        let done = change().unwrap_or_else(|e| panic!("{e}, {:?}", self.plan));
        let mut histories = self.film.histories();
        histories.end(key, done);
        if self.plan.durability == Durability::Sync && done.is_some() {
            histories.key_is_synced(key);
        }
    }

    /// Whether the result fits what this thread knows; where entries are evicted it cannot know.
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
                let acknowledged = self.film.histories().acknowledged();
                cache.flush().unwrap();
                self.film.histories().is_synced(&acknowledged);
            }
            // The second time nothing has changed, and what the first has emptied goes.
            190..194 => (0..2).for_each(|_| cache.maintain().unwrap()),
            194..197 => {
                let acknowledged = self.film.histories().acknowledged();
                cache.close().unwrap();
                self.film.histories().is_synced(&acknowledged);
            }
            _ => {
                // What is there now was the last that this thread stored.
                let found = cache.get_entry::<ByteBuf>(&key).unwrap();
                assert!(found.is_none() || is_there, "{key:?} is there, {:?}", self.plan);
                assert!(
                    found.is_some() || !is_there || self.plan.tight,
                    "{key:?} is gone, {:?}",
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
        // One that was evicted begins anew.
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

    /// Alone, as it changes everybody's keys.
    fn clear(&self) {
        let keys = self.film.histories().keys();
        keys.iter().for_each(|key| self.film.histories().begin(key, &[NOTHING]));
        self.cache.clear().unwrap();
        let mut histories = self.film.histories();
        for key in &keys {
            histories.end(key, Some(NOTHING));
            if self.plan.durability == Durability::Sync {
                histories.key_is_synced(key);
            }
        }
    }
}
