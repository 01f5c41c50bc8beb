//! A copy of a whole cache in a new directory, made through the ordinary calls of two stores.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::context::about;
use super::{Builder, Cache};
use crate::backend::{Backend, Change, Condition, Item};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_BYTES_LEAST, MAX_BYTES_LIMIT, MAX_ENTRIES_LIMIT};
use crate::options::Durability;

/// What an entry may take in the new directory beyond its bytes in a store of another kind.
const MORE_PER_ENTRY: u64 = 256;

impl Cache {
    /// Copies all entries of the cache, whatever their prefix and version, to the new directory
    /// `to`, and returns how many it copied. Any number of threads and processes may use the cache
    /// meanwhile. `to` is a cache directory like any other: open it, or copy it back into place.
    ///
    /// Each entry is copied as it is at one moment during the call, with its expiry and its stale
    /// window; different entries may be of different moments. An entry that exists during the
    /// whole call is in the copy. An entry that was deleted before the call is not, however the
    /// processes that use the cache end. Damaged entries are left out.
    ///
    /// `to` must be absent or an empty directory; its parent must exist. The copy is written beside
    /// it under a temporary name, synced, and renamed at the end. So `to` is complete, or is what
    /// it was. The copy has the limits of the cache, or higher ones if the cache is more than four
    /// fifths full, so that nothing is evicted.
    ///
    /// Costs a pass over all entries and a write of their bytes. Of a large value, only the pages
    /// of its file are in memory, which the system can take back. It does not count as a use of the
    /// entries.
    ///
    /// ```
    /// # use keepwarm::{Cache, Timeout};
    /// # let parent = tempfile::tempdir().unwrap();
    /// # let (dir, copy) = (parent.path().join("cache"), parent.path().join("copy"));
    /// let cache = Cache::open(dir)?;
    /// cache.set("a", &1, Timeout::Never)?;
    /// assert_eq!(cache.backup(&copy)?, 1);
    /// assert_eq!(Cache::open(&copy)?.get::<i32>("a")?, Some(1));
    /// # Ok::<(), keepwarm::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Io` if `to` is not empty, or the disk fails. `NoSpace` if the disk is full. `Unsupported`
    /// on a system other than Linux. Then `to` is what it was.
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<u64> {
        let to = to.as_ref();
        let failed = |e| Error::io("back up to", to, e);
        let to = match fs::read_dir(to).map(|mut names| names.next().is_some()) {
            Ok(true) => {
                let why = "the directory is not empty; choose a new one, or move this one away";
                return Err(failed(io::Error::new(io::ErrorKind::DirectoryNotEmpty, why)));
            }
            // A link to a directory cannot be replaced by one.
            Ok(false) => fs::canonicalize(to).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::path::absolute(to).map_err(failed)?
            }
            Err(e) => return Err(failed(e)),
        };
        let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let prefix = format!(".{}.", name.display());
        // Removed when it is dropped.
        let beside = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(failed)?;
        let made = beside.path().join("cache");
        let copied = self.copy_to_new(&made)?;
        sync_all(&made)
            .and_then(|()| fs::rename(&made, &to))
            .and_then(|()| File::open(parent)?.sync_all())
            .map_err(failed)?;
        Ok(copied)
    }

    /// Copies all entries to a new cache in the directory `made`, and closes it.
    fn copy_to_new(&self, made: &Path) -> Result<u64> {
        let from = &*self.shared.backend;
        let (limits, stats) = (from.limits(), from.stats());
        let with_slack = |n: u64| n.saturating_add(n / 4);
        let bytes = stats.bytes.saturating_add(stats.entries.saturating_mul(MORE_PER_ENTRY));
        let copy = Builder::new(made)
            .max_entries(limits.max_entries.max(with_slack(stats.entries)).min(MAX_ENTRIES_LIMIT))
            .max_bytes(
                limits.max_bytes.max(with_slack(bytes)).clamp(MAX_BYTES_LEAST, MAX_BYTES_LIMIT),
            )
            .cull_frequency(limits.cull_frequency)
            .durability(Durability::Buffered)
            .hot_bytes(0)
            .same_clock(&self.shared.clock)
            .open()?;
        let copied = copy_all(from, &*copy.shared.backend)?;
        if copy.total_stats()?.evicted > 0 {
            let why = "the cache grew while it was copied";
            return Err(Error::new(ErrorKind::NoSpace, "backup").with_path(made).with_source(why));
        }
        copy.close()?;
        Ok(copied)
    }
}

/// Copies all entries of one store to another. Returns their number.
fn copy_all(from: &dyn Backend, to: &dyn Backend) -> Result<u64> {
    let (mut cursor, mut copied, mut failed) = (Some(0), 0, None);
    while let Some(at) = cursor {
        let scanned = from.scan(at, &mut |key: &str, item: Item<'_>| {
            if failed.is_some() {
                return;
            }
            let Item { value, codec, expires_at, soft, .. } = item;
            let change = Change::Store { value, codec, expires_at, soft };
            match to.commit(key, Condition::Always, change) {
                Ok(_) => copied += 1,
                Err(error) => failed = Some(about(error, "backup", Some(key))),
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        cursor = scanned.map_err(|error| about(error, "backup", None))?;
    }
    Ok(copied)
}

/// Syncs the files below `dir`, and their names.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync_all(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(dir)?.sync_all()
}
