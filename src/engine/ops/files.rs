//! Whether this process may go on using the files that it has open, and their times.

use std::io;
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::engine::Engine;
use crate::engine::shared::file_watch::{Change, Changed, FileWatch};

/// The files of a directory in use get new times when they are older than this, in seconds:
/// cleaners of temporary directories remove what nothing has used for days.
const REFRESH: i64 = 6 * 60 * 60;

impl Engine {
    /// Whether files that this process has open were removed or replaced.
    #[inline]
    pub(crate) fn is_displaced(&self) -> bool {
        self.displaced.get().is_some()
    }

    pub(crate) fn displacement(&self) -> Option<&Change> {
        self.displaced.get()
    }

    /// Looks whether files were removed or replaced. If so, no process uses this index any more:
    /// others may have opened the directory with other files.
    pub(crate) fn find_displacement(&self) -> Option<&Change> {
        if self.displaced.get().is_none()
            && let Some(change) = self.find_change()
        {
            let (dir, error) = (self.dir.display(), change.error());
            tracing::error!(%dir, %error, "stopped using the files");
            // An observer has mapped it to read only.
            if !self.is_read_only() {
                self.index.abandon();
            }
            let _ = self.displaced.set(change);
        }
        self.displaced.get()
    }

    /// The same; all handles release this attachment then, and attach again.
    pub(crate) fn check_files(&self) {
        if self.find_displacement().is_some() {
            self.holders.release_unusable();
        }
    }

    fn find_change(&self) -> Option<Change> {
        // A test turns the check off, and must find that it is missed.
        #[cfg(feature = "failpoints")]
        fail::fail_point!("files::unwatched", |_| None);
        let found = self.change_of_index().or_else(|| {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            let found = files.find_change().and_then(|found| match found {
                None => self.claims.find_change(),
                found => Ok(found),
            });
            let found = found.and_then(|found| match found {
                None => self.log.find_change(),
                found => Ok(found),
            });
            found.unwrap_or_else(|error| {
                // The next look is in half a second.
                let dir = self.dir.display();
                tracing::debug!(%dir, %error, "cannot tell whether files were replaced");
                None
            })
        });
        // An index of which a page faulted reads as zeros, and is opened again for that reason.
        found.filter(|_| !self.has_lost_index())
    }

    /// Whether another process abandoned the index, or something was written over it.
    fn change_of_index(&self) -> Option<Change> {
        let path = self.dir.join("index");
        if self.index.is_abandoned() {
            return Some(Change::new(&path, Changed::FoundByOther));
        }
        let is_intact = self.is_read_only() || self.index.is_entered();
        (!is_intact).then(|| Change::new(&path, Changed::Replaced))
    }

    /// Gives all files of the directory new times, if those of `meta` are old.
    pub(crate) fn refresh_times(&self) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let is_due = files.refreshed_at().is_ok_and(|at| at.abs_diff(now as i64) > REFRESH as u64);
        if is_due && let Err(error) = self.touch_all(&files) {
            // A cleaner may remove files that cannot be refreshed; that is noticed then.
            tracing::warn!(dir = %self.dir.display(), %error, "cannot refresh the times of files");
        }
    }

    fn touch_all(&self, files: &FileWatch) -> io::Result<()> {
        let storage = files.storage();
        let subdirectories = ["segments", "blobs"].map(|name| self.dir.join(name));
        // `meta` last: its time says that all were refreshed.
        for dir in subdirectories.iter().chain([&self.dir]) {
            for name in storage.names(dir)?.into_iter().filter(|name| name != "meta") {
                match storage.touch(&dir.join(name)) {
                    // Another process removed it.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    touched => touched?,
                }
            }
        }
        storage.touch(&self.dir)?;
        storage.touch(&self.dir.join("meta"))
    }
}
