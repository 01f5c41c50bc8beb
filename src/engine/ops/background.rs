//! The background work: a thread that wakes once a second, or when its bell is rung.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::bell::Calls;
use crate::engine::blob::Haste;
use crate::engine::index::{Role, RoleGuard};
use crate::engine::{Engine, Mode};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::sys::step;

/// The time between two rounds if the bell is not rung.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the thread unmaps segments that other processes removed, while they remove some, and
const UNMAP_INTERVAL: Duration = Duration::from_millis(20);
/// for how long after a removal it keeps doing so.
const STILL_REMOVING: Duration = Duration::from_secs(2);
/// Passes over the hints may take at most one part in this many of the time.
const PASS_SHARE: u32 = 100;

/// The removals of segments that the background has seen.
struct Removals {
    /// The number of removals at the last look.
    seen: u64,
    /// Other processes are expected to remove more segments until then.
    expected_until: Instant,
}

/// The background thread. Dropping it stops and joins it.
pub(crate) struct Maintenance {
    engine: Arc<Engine>,
    thread: Option<JoinHandle<()>>,
}

impl Maintenance {
    pub(crate) fn start(engine: Arc<Engine>) -> Result<Self> {
        let mine = engine.clone();
        let spawned = std::thread::Builder::new().name("keepwarm".into()).spawn(move || {
            if mine.is_read_only() { mine.run_read_only() } else { Rounds::new(&mine).run() }
        });
        let thread = spawned.map_err(|e| Error::io("start a thread for", &engine.dir, e))?;
        Ok(Self { engine, thread: Some(thread) })
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.engine.bell.call(|calls| calls.stop = true);
        if let Some(thread) = self.thread.take()
            // The thread of a read-only attachment may itself drop the attachment. It ends then.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the background thread panicked");
        }
    }
}

/// The work that is left once the engine exists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PostRecovery {
    /// Whether a recovery built the index.
    pub(crate) is_recovered: bool,
    /// Whether a checkpoint is needed so that the next recovery starts from this state.
    pub(crate) wants_checkpoint: bool,
}

/// The loop of the background thread of a read-write attachment, with its state between rounds.
struct Rounds<'a> {
    engine: &'a Engine,
    /// The interval between syncs, if the durability asks for them.
    sync_interval: Option<Duration>,
    removals: Removals,
    next_pass: Instant,
    next_sync: Instant,
    next_publishing: Instant,
    /// Held until the process detaches: the leader does the background work for all processes.
    leadership: Option<RoleGuard<'a>>,
    /// The last round left work.
    has_more: bool,
    /// There were no writers since the rounds began to leave work.
    is_quiet: bool,
    /// There was no room for the next segment.
    lacks_spare: bool,
}

impl<'a> Rounds<'a> {
    fn new(engine: &'a Engine) -> Self {
        let sync_interval = match engine.options.durability {
            Durability::Interval(interval) => Some(interval),
            Durability::Buffered | Durability::Sync => None,
        };
        let removals = Removals { seen: engine.index.drops(), expected_until: Instant::now() };
        let [next_pass, next_sync, next_publishing] = [Instant::now(); 3];
        Self {
            engine,
            sync_interval,
            removals,
            next_pass,
            next_sync,
            next_publishing,
            leadership: None,
            has_more: false,
            is_quiet: false,
            lacks_spare: false,
        }
    }

    /// Does rounds until the thread is told to stop.
    fn run(mut self) {
        loop {
            let calls = self.engine.wait(self.pause(), &mut self.removals);
            if calls.stop {
                return;
            }
            step!("maintenance::woken");
            self.is_quiet = self.engine.is_quiet() && (self.is_quiet || !self.has_more);
            self.sync_if_due();
            self.engine.log.unmap_dropped();
            self.engine.log.seal_oversized();
            self.publish_stats_if_due();
            let needs_spare = self.lacks_spare || self.engine.log.needs_spare();
            self.lacks_spare = needs_spare && !self.engine.provide_ahead();
            self.try_to_lead();
            if self.leadership.is_none() && !calls.work && !calls.sweep && !self.lacks_spare {
                self.has_more = false;
                continue;
            }
            self.do_chores(calls);
            if self.lacks_spare {
                self.lacks_spare = !self.engine.provide_ahead();
            }
        }
    }

    /// How long to wait for a call before the next round.
    fn pause(&self) -> Duration {
        if self.has_more {
            return Duration::ZERO;
        }
        let until_sync = self.sync_interval.unwrap_or(INTERVAL);
        // A pass that is due just after a regular round must not wait for the round after that.
        let until_pass = self.next_pass.checked_duration_since(Instant::now());
        until_pass.unwrap_or(INTERVAL).min(until_sync).min(INTERVAL)
    }

    fn sync_if_due(&mut self) {
        if let Some(interval) = self.sync_interval
            && Instant::now() >= self.next_sync
        {
            warn_of("sync", self.engine.log.sync_own());
            self.next_sync = Instant::now() + interval;
        }
    }

    fn publish_stats_if_due(&mut self) {
        if Instant::now() >= self.next_publishing {
            self.engine.publish_stats();
            self.next_publishing = Instant::now() + INTERVAL;
        }
    }

    fn try_to_lead(&mut self) {
        if self.leadership.is_none() {
            self.leadership = self.engine.index.try_acquire(Role::Leader).unwrap_or_default();
        }
    }

    /// The work for the whole directory: reaps expired entries, ends the clear of a dead process,
    /// and keeps the entries and the log within their bounds.
    fn do_chores(&mut self, calls: Calls) {
        let _chores = self.engine.chores.lock().unwrap_or_else(PoisonError::into_inner);
        self.reap_if_due(calls.sweep);
        warn_of("end a clear", self.engine.end_clear_of_dead());
        let kept = self.engine.keep_entries();
        let kept = kept.and_then(|()| self.engine.keep_space(self.is_quiet));
        self.has_more = *kept.as_ref().unwrap_or(&false);
        warn_of("make room", kept.map(drop));
    }

    /// Reaps if a call asks for a `sweep`, or if entries have expired and a pass is due again.
    fn reap_if_due(&mut self, sweep: bool) {
        let started = Instant::now();
        if sweep || (started >= self.next_pass && self.engine.has_expired_entries()) {
            self.engine.reap_all();
            // Hints round an expiry up to a second: what this pass left may be due before long.
            let until_expiry = INTERVAL.min(self.engine.until_next_expiry());
            self.next_pass = Instant::now() + until_expiry.max(started.elapsed() * PASS_SHARE);
        }
    }
}

impl Engine {
    fn run_read_only(&self) {
        while !self.bell.wait(INTERVAL).stop {
            if self.is_outdated() { self.release_outdated() } else { self.log.unmap_dropped() }
        }
    }

    /// Releases what an outdated read-only attachment has mapped: now, or when the calls that use
    /// it are over.
    fn release_outdated(&self) {
        let Mode::ReadOnly(read_only) = &self.mode else { return };
        read_only.release_outdated();
        self.log.unmap_all();
    }

    /// Waits for a call, or for `pause`. Meanwhile unmaps the segments that other processes remove,
    /// because they may need the space.
    fn wait(&self, pause: Duration, removals: &mut Removals) -> Calls {
        let started = Instant::now();
        loop {
            let left = pause.saturating_sub(started.elapsed());
            let is_removing = removals.expected_until > Instant::now();
            let at_most = if is_removing { UNMAP_INTERVAL } else { left };
            let calls = self.bell.wait(at_most.min(left));
            self.log.unmap_new_drops();
            let count = self.index.drops();
            if count != removals.seen {
                let is_shared = self.index.attached_processes() > 1;
                let still = if is_shared { STILL_REMOVING } else { Duration::ZERO };
                *removals = Removals { seen: count, expected_until: Instant::now() + still };
            }
            if calls.is_any() || started.elapsed() >= pause {
                return calls;
            }
        }
    }

    /// Creates the next segment ahead of the writers, if there is room. Returns whether it exists.
    fn provide_ahead(&self) -> bool {
        let provided = self.provide(0, true);
        let is_there = *provided.as_ref().unwrap_or(&false);
        warn_of("make a segment ahead", provided.map(drop));
        is_there
    }

    /// Does all of the background's work now.
    pub(crate) fn maintain(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        let _chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        self.reap_all();
        self.keep_entries()?;
        self.dead_blobs(Haste::Now);
        let quiet = self.is_quiet();
        while self.keep_space(quiet)? {}
        self.remove_emptied()
    }

    /// The last steps of the first process that opens the directory, before others can attach.
    pub(crate) fn settle(
        &self,
        PostRecovery { is_recovered, wants_checkpoint }: PostRecovery,
    ) -> Result<()> {
        if is_recovered && self.culls_inline() {
            // A write concurrent with a clear may have left a word that is not counted. If the
            // bound is exact, the count must be exact too.
            self.count_again();
        }
        self.keep_entries()?;
        if wants_checkpoint {
            self.checkpoint(&self.space_role()?)?;
        }
        drop(self.make_space(0)?);
        Ok(())
    }

    /// Takes over the slots and the segments of dead processes. The caller holds the space role.
    pub(crate) fn clean_up_after_dead(&self) {
        if self.index.reap_dead() {
            tracing::debug!(dir = %self.dir.display(), "took over from a dead process");
            self.index.set_wants_recount(true);
            // It may have died before it noted the expiry of an entry that it wrote or saw in a
            // pass.
            self.index.note_expiry(0);
            self.log.abort_segments_of_dead();
            // Their records become as durable as they promised, a little later.
            warn_of("sync what a dead process wrote", self.log.sync(false));
            // Without a recount, a blob that a dead process had not counted yet would stay
            // uncounted.
            self.recount_blobs(Haste::Now);
        }
    }

    /// Brings the entries within their bound.
    pub(crate) fn keep_entries(&self) -> Result<()> {
        if self.index.wants_recount() {
            self.count_again();
        }
        self.evict_beyond(self.max_entries());
        self.cull_if_crowded()
    }

    /// Evicts the entries in excess of `most`.
    pub(crate) fn evict_beyond(&self, most: u64) {
        if self.index.count() > most {
            // Entries that a clear left behind are cold, and are not counted: evicting them would
            // make no room.
            self.reap_all();
            self.evict_coldest(self.index.count().saturating_sub(most));
        }
    }
}

fn warn_of(what: &'static str, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the background could not {what}");
    }
}
