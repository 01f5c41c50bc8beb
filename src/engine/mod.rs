//! The storage engine: bytes in, bytes out, in a directory that many processes share.
//!
//! Every write is a record that is appended to the [`log`]. The mapped [`index`] holds, for each key,
//! the word that says where its record is. One path, [`ops::commit`], changes it under the lock of
//! one chain. [`ops::read`] takes no lock. [`ops::cull`] keeps `max_entries`, [`ops::reclaim`]
//! `max_bytes`. [`lifecycle::recovery`] rebuilds the index after an unclean end.
//!
//! `ARCHITECTURE.md` is the map of this folder; `docs/design/overview.md` has the reasons and the
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
    /// What `Eviction::Adaptive` goes by; nothing for `Eviction::Lru`.
    ghosts: Option<GhostQueue>,
    counters: Counters,
    stats_file: StatsFile,
    /// Held by whoever culls, so that two inserts at the bound do not both make room.
    culling: WaitQueue<()>,
    /// Taken with [`Role::Count`], which is for processes.
    counting: Mutex<()>,
    /// Held by the thread that has the process's turn to empty segments.
    emptying: WaitQueue<()>,
    mode: Mode,
    /// What the log had taken when the background last looked.
    seen_appended: AtomicU64,
    /// Held by the background while it works, so that a check does not see its work half done.
    chores: Mutex<()>,
    bell: Bell,
    /// The bucket at which the next insert that has to make room looks for the coldest entries.
    next_few: AtomicU32,
    /// The last generation of which this process has swept what is older, but for what it had to leave.
    passed_over: AtomicU32,
    told_of_entries: AtomicBool,
    told_of_bytes: AtomicBool,
}

/// What part this process has in the directory.
pub(crate) enum Mode {
    /// It is one of those that share it.
    ReadWrite(Box<Mutex<CheckpointFiles>>),
    /// It is an [`onlooker`], who changes nothing.
    ReadOnly(ReadOnlyAttachment),
}

/// What an engine is made of.
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
            emptying: WaitQueue::default(),
            mode,
            seen_appended: AtomicU64::new(0),
            chores: Mutex::new(()),
            bell: Bell::default(),
            next_few: AtomicU32::new(0),
            passed_over: AtomicU32::new(0),
            told_of_entries: AtomicBool::new(false),
            told_of_bytes: AtomicBool::new(false),
        }
    }
}

impl Engine {
    /// The bound on entries: `max_entries`, or fewer where `max_bytes` could not hold them.
    fn max_entries(&self) -> u64 {
        self.index.max_entries()
    }

    fn has_passed(&self, expires_at: Expiry) -> bool {
        expires_at.is_some_and(|end| end <= self.options.clock.now())
    }

    /// Whether this process only reads what is there.
    fn is_read_only(&self) -> bool {
        matches!(self.mode, Mode::ReadOnly(_))
    }

    /// Whether this process looks on, at an index that does not count any more.
    #[inline]
    fn is_outdated(&self) -> bool {
        matches!(&self.mode, Mode::ReadOnly(looking) if looking.is_outdated())
    }

    /// See [`Claims::claim`]. Nobody sees what an onlooker claims.
    pub(crate) fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        if self.is_read_only() { Claimed::Mine(Claim::default()) } else { self.claims.claim(key) }
    }

    /// The number of entries, expired ones that were not reaped yet included.
    pub(crate) fn len(&self) -> u64 {
        if self.is_read_only() { self.index.count() } else { self.index.settled_count() }
    }

    /// Whether `max_entries` is enforced in the inserting call, with exact counts.
    /// Keeps invariant I3.
    fn culls_inline(&self) -> bool {
        // The limit of an index that was made for far more may have been lowered; going through all of it takes long.
        self.max_entries() <= INLINE_CULL_ENTRIES
            && self.index.geometry().most_entries() <= 4 * INLINE_CULL_ENTRIES
    }

    /// Waits until every acknowledged write is on the disk.
    pub(crate) fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        // Emptied segments too: their tombstones count until the next checkpoint.
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

    /// Whether the next commit waits for the disk, or may have to remove many entries by itself.
    pub(crate) fn commits_take_long(&self) -> bool {
        let culls = self.culls_inline() || self.index.limits().cull_frequency == 0;
        self.syncs_each_write()
            || (culls && self.len() >= self.max_entries().max(QUICK_CULL_ENTRIES))
    }

    fn syncs_each_write(&self) -> bool {
        self.options.durability == Durability::Sync
    }

    /// Says, the first time, that `bound` makes entries go.
    fn tell_once(&self, told: &AtomicBool, bound: &'static str) {
        if !told.load(Ordering::Relaxed) && !told.swap(true, Ordering::Relaxed) {
            tracing::info!(dir = %self.dir.display(), bound, "the cache is full; entries are evicted from now on");
        }
    }
}

#[cfg(test)]
#[path = "tests/publication.rs"]
mod publication;
#[cfg(test)]
mod tests;
