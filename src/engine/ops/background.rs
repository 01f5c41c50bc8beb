//! The background work: a thread that wakes once a second, or when somebody rings.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::bell::Calls;
use crate::engine::blob::Haste;
use crate::engine::index::Role;
use crate::engine::{Engine, Mode};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::sys::step;

/// How often the thread looks around when nobody rings.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks whether others wait for it to let go of segments that they removed, while they remove some,
const LETTING_GO: Duration = Duration::from_millis(20);
/// and for how long after they did.
const STILL_REMOVING: Duration = Duration::from_secs(2);
/// A pass over the hints may take this part of the time at most.
const PASS_SHARE: u32 = 100;

/// What the background knows of segments being removed.
struct Removals {
    /// How many were when it last looked.
    seen: u64,
    /// It is to be expected that others go on with it until then.
    go_on_until: Instant,
}

/// The background thread. Dropping it stops and joins it.
pub(crate) struct Maintenance {
    engine: Arc<Engine>,
    thread: Option<JoinHandle<()>>,
}

impl Maintenance {
    pub(crate) fn start(engine: Arc<Engine>) -> Result<Self> {
        let mine = engine.clone();
        let spawned = std::thread::Builder::new().name("keepwarm".into()).spawn(move || mine.run());
        let thread = spawned.map_err(|e| Error::io("start a thread for", &engine.dir, e))?;
        Ok(Self { engine, thread: Some(thread) })
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.engine.bell.call(|calls| calls.stop = true);
        if let Some(thread) = self.thread.take()
            // That of an onlooker may be the one that lets go of it; it ends then.
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the maintenance thread panicked");
        }
    }
}

/// What is left to do once the engine is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PostRecovery {
    /// Whether the index is what a recovery made.
    pub(crate) is_recovered: bool,
    /// Whether only a checkpoint makes this what the next recovery begins with.
    pub(crate) wants_checkpoint: bool,
}

impl Engine {
    fn run(&self) {
        if self.is_read_only() {
            while !self.bell.wait(INTERVAL).stop {
                if self.is_outdated() { self.release_outdated() } else { self.log.unmap_dropped() }
            }
            return;
        }
        let interval = match self.options.durability {
            Durability::Interval(interval) => Some(interval),
            Durability::Buffered | Durability::Sync => None,
        };
        let mut removals = Removals { seen: self.index.drops(), go_on_until: Instant::now() };
        let [mut next_pass, mut next_sync, mut next_publishing] = [Instant::now(); 3];
        let pause = interval.map_or(INTERVAL, |i| i.min(INTERVAL));
        // Had until the process leaves: it looks after the directory for all.
        let mut leadership = None;
        // Whether the last round left something to do, and whether nobody wrote while there was.
        let (mut more, mut quiet) = (false, false);
        // Whether there was no room for the next segment.
        let mut lacked_spare = false;
        loop {
            let calls = self.wait(if more { Duration::ZERO } else { pause }, &mut removals);
            if calls.stop {
                return;
            }
            step!("maintenance::woken");
            quiet = self.is_quiet() && (quiet || !more);
            if let Some(interval) = interval
                && Instant::now() >= next_sync
            {
                warn_of("sync", self.log.sync_own());
                next_sync = Instant::now() + interval;
            }
            self.log.unmap_dropped();
            self.log.seal_oversized();
            if Instant::now() >= next_publishing {
                self.publish_stats();
                next_publishing = Instant::now() + INTERVAL;
            }
            let lacks_spare = (lacked_spare || self.log.needs_spare()) && !self.provide_ahead();
            if leadership.is_none() {
                leadership = self.index.try_acquire(Role::Leader).unwrap_or_default();
            }
            lacked_spare = lacks_spare;
            if leadership.is_none() && !calls.work && !calls.sweep && !lacks_spare {
                more = false;
                continue;
            }
            let chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
            let started = Instant::now();
            if calls.sweep || (started >= next_pass && self.has_expired_entries()) {
                self.reap_all();
                next_pass = Instant::now() + INTERVAL.max(started.elapsed() * PASS_SHARE);
            }
            warn_of("end a clear", self.end_clear_of_dead());
            let kept = self.keep_entries().and_then(|()| self.keep_space(quiet));
            more = *kept.as_ref().unwrap_or(&false);
            warn_of("make room", kept.map(drop));
            drop(chores);
            if lacks_spare {
                lacked_spare = !self.provide_ahead();
            }
        }
    }

    /// Releases what an outdated read-only attachment has mapped: now, or when the calls that use it
    /// are over.
    fn release_outdated(&self) {
        let Mode::ReadOnly(read_only) = &self.mode else { return };
        read_only.release_outdated();
        self.log.unmap_all();
    }

    /// Waits for a call, or for `pause`, and lets go meanwhile of what others remove: they may need the space.
    fn wait(&self, pause: Duration, removals: &mut Removals) -> Calls {
        let started = Instant::now();
        loop {
            let left = pause.saturating_sub(started.elapsed());
            let at_most = if removals.go_on_until > Instant::now() { LETTING_GO } else { left };
            let calls = self.bell.wait(at_most.min(left));
            self.log.unmap_new_drops();
            let count = self.index.drops();
            if count != removals.seen {
                let is_shared = self.index.attached_processes() > 1;
                let still = if is_shared { STILL_REMOVING } else { Duration::ZERO };
                *removals = Removals { seen: count, go_on_until: Instant::now() + still };
            }
            if calls.is_any() || started.elapsed() >= pause {
                return calls;
            }
        }
    }

    /// Makes the next segment ahead of the writers, if there is room. Says whether there is one.
    fn provide_ahead(&self) -> bool {
        let provided = self.provide(0, true);
        let is_there = *provided.as_ref().unwrap_or(&false);
        warn_of("make a segment ahead", provided.map(drop));
        is_there
    }

    /// Does the background's work now, all of it.
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

    /// What the first process to open the directory does before others come.
    pub(crate) fn settle(
        &self,
        PostRecovery { is_recovered, wants_checkpoint }: PostRecovery,
    ) -> Result<()> {
        if is_recovered && self.culls_inline() {
            // A write beside a clear may have left a word that does not count. Where the bound is exact, so is the count.
            self.count_again();
        }
        self.keep_entries()?;
        if wants_checkpoint {
            self.checkpoint(&self.space_role()?)?;
        }
        drop(self.make_space(0)?);
        Ok(())
    }

    /// Takes over what processes left that died: their numbers and their segments. The caller has the turn to empty segments.
    pub(crate) fn clean_up_after_dead(&self) {
        if self.index.reap_dead() {
            tracing::debug!(dir = %self.dir.display(), "a process died; what it left is looked after");
            self.index.set_wants_recount(true);
            // It may have died before it noted when what it wrote, or saw in a pass, is to be reaped.
            self.index.note_expiry(0);
            self.log.abort_segments_of_dead();
            // What they wrote is as durable as they promised, a little later.
            warn_of("sync what a dead process wrote", self.log.sync(false));
            // A blob that was about to be counted may never be.
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

    /// Evicts as many entries as there are beyond `most`.
    pub(crate) fn evict_beyond(&self, most: u64) {
        if self.index.count() > most {
            // What a clear left behind is cold and does not count: evicting it would make no room.
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
