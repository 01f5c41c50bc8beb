//! What is kept from run to run, in two levels of one keepwarm directory.
//!
//!     stat:    (device, inode, size, mtime)  →  digest of the content      spares reading the file
//!     result:  digest, analysis version      →  result of the analysis     spares the analysis
//!
//! A file that was moved within its file system is found at the first level. One that was touched or copied is
//! read once more, and found at the second. Nothing is ever out of date, so nothing has a timeout: what is no
//! longer asked for is evicted when the cache needs the room.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use std::{env, fmt, fs, io};

use keepwarm::{Cache, ErrorKind, Timeout};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::analysis::Analysis;
use crate::{Failure, Result};

/// The names of the two levels: prefixes of their keys.
const STAT: &str = "stat";
const RESULT: &str = "result";

/// Both levels. Shared by all threads.
pub(crate) struct Store {
    cache: Cache,
    stats: Cache,
    results: Cache,
    /// The contents that were analysed in this run, to tell copies of them from what was known before.
    fresh: Mutex<HashSet<Digest>>,
}

impl Store {
    /// The store in `dir`, which is made if it is not there, for results of this version of the analysis.
    pub(crate) fn open(dir: &Path, analysis_version: i64) -> Result<Self> {
        let refused = |e: &dyn fmt::Display| {
            Failure::new(format!("cannot use the cache {}: {e}", dir.display()))
        };
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(|e| refused(&e))?;
        }
        let cache = Cache::open(dir).map_err(|e| refused(&e))?;
        // Two views of the one cache, which share everything but the way they make keys.
        let stats = cache.with_prefix(STAT);
        let results = cache.with_prefix(RESULT).with_version(analysis_version);
        Ok(Self { cache, stats, results, fresh: Mutex::default() })
    }

    /// What is known of each of these files: the digests in one go, then the results for those in another.
    pub(crate) fn known(&self, stats: &[Option<Stat>]) -> Result<Vec<Option<Analysis>>> {
        let mut known: Vec<Option<Analysis>> = stats.iter().map(|_| None).collect();
        let (of, keys): (Vec<usize>, Vec<String>) = stats
            .iter()
            .enumerate()
            .filter_map(|(i, stat)| Some((i, stat.as_ref()?.key())))
            .unzip();
        let digests = self.stats.get_many::<Digest, _>(&keys);
        let (of, keys): (Vec<usize>, Vec<String>) = of
            .into_iter()
            .zip(digests)
            .filter_map(|(i, digest)| {
                Some(present(digest).transpose()?.map(|digest| (i, digest.to_string())))
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        for (i, analysis) in of.into_iter().zip(self.results.get_many(&keys)) {
            known[i] = present(analysis)?;
        }
        Ok(known)
    }

    /// The result for the content with this digest; computed if there is none, once even if several threads
    /// come upon the same content at the same time.
    pub(crate) fn result(
        &self,
        digest: Digest,
        compute: impl FnOnce() -> Analysis,
    ) -> Result<(Analysis, Origin)> {
        let key = digest.to_string();
        let mut computed = false;
        let analysis = self.results.get_or_set(&key, Timeout::Never, || {
            computed = true;
            self.fresh().insert(digest);
            compute()
        })?;
        // A value that could not be stored, as on a full disk, is still a value; but only what is in the
        // cache may be called kept.
        let origin = match computed {
            false if self.fresh().contains(&digest) => Origin::Copy,
            false => Origin::Cache,
            true if self.results.contains_key(&key)? => Origin::Computed,
            true => Origin::ComputedNotKept,
        };
        Ok((analysis, origin))
    }

    /// Notes that the file with this `stat` has the content with this digest. A failure costs the next run a
    /// look at the file, nothing more.
    pub(crate) fn note(&self, stat: &Stat, digest: Digest) {
        let _ = self.stats.set(&stat.key(), &digest, Timeout::Never);
    }

    fn fresh(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self) -> Result<()> {
        Ok(self.cache.close()?)
    }
}

/// Where a result comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Cache,
    /// Another file with the same content was analysed in this run.
    Copy,
    Computed,
    ComputedNotKept,
}

/// A value of another type, of an older version of this program perhaps, is as good as none. Other errors are
/// errors.
fn present<T>(got: keepwarm::Result<Option<T>>) -> Result<Option<T>> {
    match got {
        Ok(value) => Ok(value),
        Err(e) if e.kind() == ErrorKind::Decode => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Stands for the content of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the file system says of a file without opening it; while it says the same, the content is the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
}

impl Stat {
    /// Of the file at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::from(&metadata))
    }

    fn key(&self) -> String {
        format!("{:x}-{:x}-{}-{}", self.device, self.inode, self.size, self.mtime_ns)
    }
}

impl From<&Metadata> for Stat {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
        }
    }
}

/// As coarse as the time stamps of file systems get: FAT counts in steps of two seconds.
const COARSEST_MTIME: Duration = Duration::from_secs(2);

/// The content of a file, and its [`Stat`] if that will tell when the content changes.
///
/// It does not tell if the file was changed a moment ago: another change within the same tick of the file
/// system's clock, of the same size, leaves the time stamp as it is (git calls such files "racily clean").
/// So the stat of a file is not to be trusted unless the file had rested for longer than a tick before it
/// was read. Until then it is read in every run, though not analysed again. Nor is it to be trusted if the
/// file changed while it was read; nor if its time stamp lies in the future, as clocks that disagree must not
/// make a recent change look like an old one.
///
/// What stays undetected is a change that keeps the size and sets the time stamp back on purpose.
pub(crate) fn read(path: &Path) -> io::Result<(Vec<u8>, Option<Stat>)> {
    let started = SystemTime::now();
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    let mut content = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0));
    file.read_to_end(&mut content)?;
    let after = file.metadata()?;

    let rested = started.duration_since(before.modified()?).is_ok_and(|age| age > COARSEST_MTIME);
    let stat = Stat::from(&before);
    let whole = u64::try_from(content.len()).is_ok_and(|len| len == stat.size);
    Ok((content, (rested && whole && stat == Stat::from(&after)).then_some(stat)))
}

/// `keepwarm-analyze` in the user's cache directory, as the XDG specification has it.
pub(crate) fn default_dir() -> Result<PathBuf> {
    let absolute =
        |name| env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let caches =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    match caches {
        Some(caches) => Ok(caches.join("keepwarm-analyze")),
        None => {
            Err(Failure::new("neither XDG_CACHE_HOME nor HOME is set; say where with --cache DIR"))
        }
    }
}
