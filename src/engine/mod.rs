//! The storage engine: bytes in, bytes out, in a directory that many processes share.
//!
//! Every write is a record that is appended to the [`log`]. The mapped [`index`] holds, for each
//! key, the word that says where its record is. One path, [`ops::commit`], changes it under the
//! lock of one chain. [`ops::read`] takes no lock. [`ops::cull`] keeps `max_entries`,
//! [`ops::reclaim`] `max_bytes`. [`lifecycle::recovery`] rebuilds the index after an unclean end.
//!
//! The folder has floors. A file uses only its own floor and those below:
//!
//! ```text
//! lifecycle    attach, observe, detach; open and recover a directory; values in pieces
//! ops          what an open engine does: read, commit, clear, cull, reclaim, checkpoint, check
//! mod.rs       `Engine`: the parts of an open directory, and small queries on them
//! log  blob    records in segments; large values in files of their own
//! shared  eviction
//!              what processes share beside the index; which entries are evicted
//! hints  hot_tier  bell  counters
//!              state of a process beside the index: hints per slot, values in memory, the
//!              wake-up of the background thread, statistics
//! index        the mapped index: chains, counts, the attach table, roles, the segment table
//! format       the bytes of each file; no I/O
//! ```
//!
//! `tests` has the tests of a whole engine, `fuzz` the entry points of the fuzz targets.
//!
//! `ARCHITECTURE.md` describes each file; `docs/design/overview.md` has the reasons and the
//! invariants.

mod bell;
mod blob;
pub(crate) mod counters;
mod eviction;
pub(crate) mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod hints;
mod hot_tier;
mod index;
pub(crate) mod lifecycle;
pub(crate) mod log;
mod ops;
mod shared;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::bell::Bell;
use self::blob::Blobs;
use self::counters::Counters;
use self::eviction::ghosts::GhostQueue;
use self::format::sizing;
use self::hints::Hints;
use self::hot_tier::HotTier;
use self::index::Index;
pub(crate) use self::lifecycle::attach::empty;
pub(crate) use self::lifecycle::attach::{Attached, AttachmentCell};
pub(crate) use self::lifecycle::stream::Spooled;
use self::log::Log;
use self::shared::checkpoint_files::CheckpointFiles;
pub(crate) use self::shared::claims::Claims;
use self::shared::read_only::ReadOnlyAttachment;
use self::shared::stats_file::StatsFile;
use self::shared::wait_queue::WaitQueue;
use crate::entry::{Claim, ClaimKey, Claimed, Expiry, Stats};
use crate::error::Result;
use crate::hash::KeyHasher;
use crate::options::{Durability, Eviction, INLINE_CULL_ENTRIES, Options, QUICK_CULL_ENTRIES};
use crate::sys::storage::HeldDirectory;

/// An open directory, shared by all threads of the process.
pub(crate) struct Engine {
    dir: PathBuf,
    options: Options,
    hasher: KeyHasher,
    index: Arc<Index>,
    hints: Hints,
    log: Log,
    blobs: Blobs,
    claims: Arc<Claims>,
    hot: HotTier,
    /// The state of `Eviction::Adaptive`; `None` with `Eviction::Lru`.
    ghosts: Option<GhostQueue>,
    counters: Counters,
    stats_file: StatsFile,
    /// Held by the thread that culls, so that two inserts at the bound do not both evict.
    culling: WaitQueue<()>,
    /// Among threads what [`Role::Count`](index::Role::Count) is among processes.
    counting: Mutex<()>,
    /// Held by the thread that holds the role *space* for this process.
    space_queue: WaitQueue<()>,
    mode: Mode,
    /// How many bytes the log had taken when the background thread last ran.
    seen_appended: AtomicU64,
    /// Held by the background thread while it works, so that a check does not see half of a change.
    chores: Mutex<()>,
    bell: Bell,
    /// The bucket at which the next insert that must evict starts to search for cold entries.
    next_few: AtomicU32,
    /// The last generation before which this process has swept everything, except for chains that
    /// were locked.
    passed_over: AtomicU32,
    /// Whether it was logged that the bound on entries evicts.
    has_logged_entries: AtomicBool,
    /// Whether it was logged that the bound on bytes evicts.
    has_logged_bytes: AtomicBool,
}

/// How this process uses the directory.
pub(crate) enum Mode {
    /// It is attached, and shares the directory with other processes.
    ReadWrite(Box<Mutex<CheckpointFiles>>),
    /// It is an [observer](lifecycle::observer), and changes nothing.
    ReadOnly(ReadOnlyAttachment),
}

/// The parameters of [`Engine::new`].
pub(crate) struct Parts {
    options: Options,
    hasher: KeyHasher,
    index: Arc<Index>,
    hints: Hints,
    log: Log,
    blobs: Blobs,
    stats_file: StatsFile,
    mode: Mode,
}

impl Engine {
    fn new(parts: Parts, dir: PathBuf, held: &HeldDirectory) -> Self {
        let Parts { options, hasher, index, hints, log, blobs, stats_file, mode } = parts;
        let claims = Arc::new(Claims::new(held, dir.clone(), hasher));
        Self {
            dir,
            ghosts: (options.eviction == Eviction::Adaptive)
                .then(|| GhostQueue::new(index.max_entries())),
            hot: HotTier::new(options.hot_bytes),
            options,
            hasher,
            index,
            hints,
            log,
            blobs,
            claims,
            counters: Counters::default(),
            stats_file,
            culling: WaitQueue::default(),
            counting: Mutex::new(()),
            space_queue: WaitQueue::default(),
            mode,
            seen_appended: AtomicU64::new(0),
            chores: Mutex::new(()),
            bell: Bell::default(),
            next_few: AtomicU32::new(0),
            passed_over: AtomicU32::new(0),
            has_logged_entries: AtomicBool::new(false),
            has_logged_bytes: AtomicBool::new(false),
        }
    }
}

impl Engine {
    /// The bound on entries: `max_entries`, or fewer if `max_bytes` is too small for so many.
    fn max_entries(&self) -> u64 {
        self.index.max_entries()
    }

    fn has_passed(&self, expires_at: Expiry) -> bool {
        expires_at.is_some_and(|end| end <= self.options.clock.now())
    }

    /// Whether this process is an observer.
    fn is_read_only(&self) -> bool {
        matches!(self.mode, Mode::ReadOnly(_))
    }

    /// Whether this process is an observer of an index that was retired.
    #[inline]
    fn is_outdated(&self) -> bool {
        matches!(&self.mode, Mode::ReadOnly(attachment) if attachment.is_outdated())
    }

    /// See [`Claims::claim`]. The claims of an observer are not visible to other processes.
    pub(crate) fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        if self.is_read_only() { Claimed::Mine(Claim::default()) } else { self.claims.claim(key) }
    }

    /// The number of entries, including expired ones that were not reaped yet.
    pub(crate) fn len(&self) -> u64 {
        if self.is_read_only() { self.index.count() } else { self.index.settled_count() }
    }

    /// Whether `max_entries` is enforced in the inserting call, with exact counts.
    /// Keeps invariant I3.
    fn culls_inline(&self) -> bool {
        // If the limit of a large index was lowered, a pass over all its buckets still takes long.
        self.max_entries() <= INLINE_CULL_ENTRIES
            && self.index.geometry().most_entries() <= 4 * INLINE_CULL_ENTRIES
    }

    /// Waits until all acknowledged writes are on the disk.
    pub(crate) fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        // Emptied segments too: a recovery needs their tombstones until the next checkpoint.
        self.log.sync(true)
    }

    /// The bytes that the directory takes, counted against `max_bytes`.
    fn bytes(&self) -> u64 {
        self.log.space().settled_bytes() + sizing::index_bytes(self.index.geometry())
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.counters.totals();
        stats.entries = self.len();
        stats.bytes = self.bytes();
        stats.pinned_bytes = self.log.space().pinned_bytes();
        stats.written_bytes = self.log.appended();
        stats.hot_bytes = self.hot.bytes();
        stats
    }

    /// Whether the next commit waits for the disk, or may have to evict many entries.
    pub(crate) fn commits_take_long(&self) -> bool {
        let culls = self.culls_inline() || self.index.limits().cull_frequency == 0;
        self.syncs_each_write()
            || (culls && self.len() >= self.max_entries().max(QUICK_CULL_ENTRIES))
    }

    fn syncs_each_write(&self) -> bool {
        self.options.durability == Durability::Sync
    }

    /// Logs, the first time, that `bound` evicts entries.
    fn tell_once(&self, told: &AtomicBool, bound: &'static str) {
        if !told.load(Ordering::Relaxed) && !told.swap(true, Ordering::Relaxed) {
            let dir = self.dir.display();
            tracing::info!(%dir, bound, "the cache is full; entries are evicted from now on");
        }
    }
}

#[cfg(test)]
#[path = "tests/publication.rs"]
mod publication;
#[cfg(test)]
mod tests;
