//! The store: what is kept between runs, in two levels of one keepwarm directory.
//!
//!     stat:    (device, inode, size, mtime)  →  digest of the content   saves reading the file
//!     result:  digest, analysis version      →  result of the analysis  saves the analysis
//!
//! A file that was moved within its file system is found at the first level. A file that was
//! touched or copied is read once more, and found at the second. Entries never become stale, so
//! they have no timeout: entries that are no longer used are evicted when the cache needs the
//! space.

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
    /// The contents analysed in this run, to distinguish copies of them from earlier results.
    fresh: Mutex<HashSet<Digest>>,
}

impl Store {
    /// Opens the store in `dir`, which is created if it is missing, for results of this version of
    /// the analysis.
    pub(crate) fn open(dir: &Path, analysis_version: i64) -> Result<Self> {
        let refused = |e: &dyn fmt::Display| {
            Failure::new(format!("cannot use the cache {}: {e}", dir.display()))
        };
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(|e| refused(&e))?;
        }
        let cache = Cache::open(dir).map_err(|e| refused(&e))?;
        // Two views of one cache. They differ only in the prefix and version of their keys.
        let stats = cache.with_prefix(STAT);
        let results = cache.with_prefix(RESULT).with_version(analysis_version);
        Ok(Self { cache, stats, results, fresh: Mutex::default() })
    }

    /// The stored results of these files: one call reads all digests, a second the results.
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

    /// The result for the content with this digest, computed if there is none. Several threads with
    /// the same content at the same time compute it once.
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
        // `get_or_set` also returns a value that could not be stored, as on a full disk. Only a
        // value in the cache counts as kept.
        let origin = match computed {
            false if self.fresh().contains(&digest) => Origin::Copy,
            false => Origin::Cache,
            true if self.results.contains_key(&key)? => Origin::Computed,
            true => Origin::ComputedNotKept,
        };
        Ok((analysis, origin))
    }

    /// Stores the digest of the file with this `stat`. If that fails, the next run reads the file
    /// again.
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

/// The origin of a result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Cache,
    /// Another file with the same content was analysed in this run.
    Copy,
    Computed,
    ComputedNotKept,
}

/// Treats a value of another type, maybe from an older version of this program, as missing. Other
/// errors stay errors.
fn present<T>(got: keepwarm::Result<Option<T>>) -> Result<Option<T>> {
    match got {
        Ok(value) => Ok(value),
        Err(e) if e.kind() == ErrorKind::Decode => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The SHA-256 digest of a file's content.
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

/// The metadata of a file, which needs no open. While it is unchanged, the content is unchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
}

impl Stat {
    /// The stat of the file at `path`, if there is one.
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

/// The coarsest resolution of time stamps in file systems: FAT counts in steps of two seconds.
const COARSEST_MTIME: Duration = Duration::from_secs(2);

/// The content of a file, and its [`Stat`] if the stat will change with the content.
///
/// The stat is not reliable if the file was modified a moment ago: another change of the same size
/// within the same tick of the file system's clock does not change the time stamp (git calls such
/// files "racily clean"). So a stat is returned only if the file was last modified more than a tick
/// before the read; until then every run reads the file, but does not analyse it again. Nor is a
/// stat returned if the file changed during the read, or if its time stamp is in the future: clocks
/// that disagree must not make a recent change look like an old one.
///
/// A change that keeps the size and sets the time stamp back on purpose is not detected.
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

/// `keepwarm-analyze` in the user's cache directory, as defined by the XDG specification.
pub(crate) fn default_dir() -> Result<PathBuf> {
    let absolute =
        |name| env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
    let caches =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    match caches {
        Some(caches) => Ok(caches.join("keepwarm-analyze")),
        None => Err(Failure::new("neither XDG_CACHE_HOME nor HOME is set; use --cache DIR")),
    }
}
