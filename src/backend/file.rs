//! The backend on disk: the storage engine in a directory.

use std::any::TypeId;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::Guard;

use super::{
    Backend, Change, CheckReport, Claim, ClaimKey, Claimed, Condition, Decoded, Expiry, Item,
    Limits, NewLimits, Outcome, ProcessStats, SharedValue, Spool, Stats, Stored, Streamed,
};
use crate::engine::lifecycle::directory::{check_there, may_write};
use crate::engine::{Attached, AttachmentCell, Spooled, empty};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::sys::storage::{SYSTEM, Storage};

/// A directory, attached to while it is used.
pub(crate) struct FileBackend {
    storage: &'static dyn Storage,
    dir: PathBuf,
    options: Options,
    /// In a process that was forked since, it is the parent's.
    attached: Arc<AttachmentCell>,
}

impl FileBackend {
    /// Opens the directory `dir`, which is made if there is none.
    ///
    /// # Errors
    /// If the operating system refuses, or the directory is not a cache.
    pub(crate) fn open(dir: &Path, options: &Options) -> Result<Self> {
        Self::open_on(SYSTEM, dir, options)
    }

    /// The same, with all files behind `storage`.
    pub(crate) fn open_on(
        storage: &'static dyn Storage,
        dir: &Path,
        options: &Options,
    ) -> Result<Self> {
        let attached = Self::attach(storage, dir, options)?;
        let place = Arc::new(AttachmentCell::empty());
        attached.note_holder(&place);
        place.store(Some(attached));
        // So that a later change of the working directory does not matter.
        let dir = std::path::absolute(dir).map_err(|e| Error::io("open", dir, e))?;
        Ok(Self { storage, dir, options: options.clone(), attached: place })
    }

    fn attach(
        storage: &'static dyn Storage,
        dir: &Path,
        options: &Options,
    ) -> Result<Arc<Attached>> {
        if options.read_only {
            check_there(storage, dir)?;
            let options = Options { keep_limits: true, ..options.clone() };
            return if may_write(storage, dir)? {
                Attached::open(storage, dir, &options)
            } else {
                Attached::open_read_only(storage, dir, &options)
            };
        }
        Attached::open(storage, dir, options)
    }

    /// The engine, for a call that changes something.
    fn engine_to_write(&self) -> Result<Held> {
        if self.options.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "change"));
        }
        self.engine()
    }

    fn engine(&self) -> Result<Held> {
        match self.attached() {
            Some(guard) => Ok(Held::Shared(guard)),
            None => self.attach_again(),
        }
    }

    /// The current attachment.
    #[inline]
    fn attached(&self) -> Option<Guard<Option<Arc<Attached>>>> {
        let guard = self.attached.load();
        guard.as_ref().is_some_and(|attached| attached.is_usable()).then_some(guard)
    }

    // Keeps invariant I6.
    #[cold]
    fn attach_again(&self) -> Result<Held> {
        // With the limits that the directory has now; they may have been configured.
        let options = Options { keep_limits: true, salvage: false, ..self.options.clone() };
        // First, because the process that rebuilds the index may need the space that the old
        // attachment holds.
        empty(&self.attached, |before| before.is_ours() && !before.is_usable());
        let attached = Self::attach(self.storage, &self.dir, &options)?;
        attached.note_holder(&self.attached);
        self.replace(Some(attached.clone()));
        Ok(Held::Own(attached))
    }

    fn replace(&self, attached: Option<Arc<Attached>>) {
        if let Some(inherited) = self.attached.swap(attached).filter(|before| !before.is_ours()) {
            Attached::forget(inherited);
        }
    }
}

impl FileBackend {
    fn scan_engine(
        &self,
        cursor: u64,
        with_values: bool,
        visit: &mut dyn FnMut(&str, Item<'_>),
    ) -> Result<Option<u64>> {
        self.engine()?.get()?.scan(cursor, with_values, &mut |key, item| {
            // Keys are stored from `&str`; one that is not has come from a damaged file.
            if let Ok(key) = std::str::from_utf8(key) {
                visit(key, item);
            }
        })
    }

    /// What the engine shows; nothing if the directory was closed and cannot be opened again.
    fn gauge<T: Default>(&self, read: impl FnOnce(&Attached) -> T) -> T {
        match self.engine().and_then(|held| Ok(read(held.get()?))) {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(%error, "there is nothing to show");
                T::default()
            }
        }
    }
}

/// The engine, for the length of a call.
enum Held {
    Shared(Guard<Option<Arc<Attached>>>),
    Own(Arc<Attached>),
}

impl Held {
    fn into_attached(self) -> Result<Arc<Attached>> {
        match self {
            Self::Own(attached) => Ok(attached),
            Self::Shared(guard) => guard.clone().ok_or_else(closed_meanwhile),
        }
    }

    fn get(&self) -> Result<&Attached> {
        match self {
            Self::Own(attached) => Ok(attached),
            Self::Shared(guard) => guard.as_deref().ok_or_else(closed_meanwhile),
        }
    }
}

fn closed_meanwhile() -> Error {
    Error::new(ErrorKind::Interrupted, "open")
}

impl Backend for FileBackend {
    fn visit(&self, key: &str, visit: &mut dyn FnMut(Item<'_>)) -> Result<bool> {
        Ok(self.engine()?.get()?.read(key.as_bytes(), |source| visit(source.item()))?.is_some())
    }

    fn get(&self, key: &str) -> Result<Option<Stored>> {
        self.engine()?.get()?.read(key.as_bytes(), |source| source.into_stored())
    }

    fn get_decoded(
        &self,
        key: &str,
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        self.engine()?.get()?.read_decoded(key.as_bytes(), wanted, decode)
    }

    fn expiry_of(&self, key: &str) -> Result<Option<Expiry>> {
        self.engine()?.get()?.expiry_of(key.as_bytes())
    }

    fn stream(&self, key: &str) -> Result<Option<Streamed>> {
        self.engine()?.into_attached()?.stream(key.as_bytes())
    }

    fn spool(&self) -> Result<Option<Box<dyn Spool>>> {
        let attached = self.engine_to_write()?.into_attached()?;
        Ok(Some(Box::new(Spooled::new(attached))))
    }

    fn copy(&self, from: &str, to: &str) -> Result<Option<u64>> {
        self.engine_to_write()?.get()?.copy_entry(from.as_bytes(), to.as_bytes())
    }

    fn weight(&self, key: &str) -> usize {
        // Opens nothing: `reads_take_long` reports a closed directory.
        self.attached()
            .map_or(0, |guard| guard.as_ref().map_or(0, |engine| engine.weight(key.as_bytes())))
    }

    fn reads_take_long(&self) -> bool {
        self.attached().is_none()
    }

    fn commits_take_long(&self) -> bool {
        self.attached()
            .is_none_or(|guard| guard.as_ref().is_none_or(|engine| engine.commits_take_long()))
    }

    fn commit(&self, key: &str, condition: Condition, change: Change<'_>) -> Result<Outcome> {
        self.engine_to_write()?.get()?.commit(key.as_bytes(), condition, change)
    }

    fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        match self.engine().and_then(|held| Ok(held.get()?.claim(key))) {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%error, "no claims: the directory cannot be opened");
                Claimed::Mine(Claim::default())
            }
        }
    }

    fn clear(&self) -> Result<()> {
        self.engine_to_write()?.get()?.clear()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.engine()?.get()?.len())
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan_engine(cursor, true, visit)
    }

    fn scan_keys(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan_engine(cursor, false, visit)
    }

    fn maintain(&self) -> Result<()> {
        self.engine()?.get()?.maintain()
    }

    fn flush(&self) -> Result<()> {
        match self.attached().as_deref() {
            Some(Some(attached)) => attached.flush(),
            // Another thread may be closing what this one wrote to.
            _ => Attached::flush_at(self.storage, &self.dir),
        }
    }

    fn close(&self) -> Result<()> {
        let flushed = self.flush();
        self.replace(None);
        flushed
    }

    fn limits(&self) -> Limits {
        match self.engine().and_then(|held| Ok(held.get()?.limits())) {
            Ok(limits) => limits,
            Err(error) => {
                tracing::warn!(%error, "the directory cannot be asked for its limits");
                self.options.limits()
            }
        }
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        self.engine_to_write()?.get()?.configure(new)
    }

    fn stats(&self) -> Stats {
        self.gauge(|engine| engine.stats())
    }

    fn total_stats(&self) -> Result<Stats> {
        self.engine()?.get()?.total_stats()
    }

    fn process_stats(&self) -> Result<Option<Vec<ProcessStats>>> {
        self.engine()?.get()?.process_stats().map(Some)
    }

    fn check(&self) -> Result<CheckReport> {
        Ok(self.engine()?.get()?.check())
    }
}
