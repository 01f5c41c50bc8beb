//! The backend on disk: the storage engine in a directory.

use std::any::TypeId;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::Guard;

use super::{
    Backend, Change, CheckReport, Claim, ClaimKey, Claimed, Condition, Decoded, Expiry, Item,
    Limits, NewLimits, Outcome, ProcessStats, SharedValue, Spool, Stats, Stored, Streamed,
};
use crate::engine::lifecycle::directory::{check_there, may_write};
use crate::engine::{Attached, AttachmentCell, Spooled};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::sys::mount;
use crate::sys::storage::{CONTAINED, SYSTEM, Storage};

/// A directory, attached to while it is used.
pub(crate) struct FileBackend {
    storage: &'static dyn Storage,
    dir: PathBuf,
    options: Options,
    /// In a process that was forked since, it is the parent's. An observer, if the index was lost
    /// and the disk is too full to open the directory to write.
    attached: Arc<AttachmentCell>,
    /// When such a disk is tried again.
    next_try: Mutex<Instant>,
}

/// How long writes are refused after the directory could not be opened to write: a try reads the
/// log.
const RETRY: Duration = Duration::from_secs(1);

impl FileBackend {
    /// Opens the directory `dir`, which is made if there is none.
    ///
    /// # Errors
    /// If the operating system refuses, or the directory is not a cache.
    pub(crate) fn open(dir: &Path, options: &Options) -> Result<Self> {
        // A store into a map may need a block there, and the disk may be full.
        let is_contained = options.handle_sigbus || mount::copies_on_write(dir);
        let storage = if is_contained { CONTAINED } else { SYSTEM };
        Self::open_on(storage, dir, options)
    }

    /// The same, with all files behind `storage`.
    pub(crate) fn open_on(
        storage: &'static dyn Storage,
        dir: &Path,
        options: &Options,
    ) -> Result<Self> {
        let attached = Self::attach(storage, dir, options)?;
        let place = Arc::new(AttachmentCell::default());
        attached.note_holder(&place);
        place.swap(Some(attached));
        // So that a later change of the working directory does not matter.
        let dir = std::path::absolute(dir).map_err(|e| Error::io("open", dir, e))?;
        let next_try = Mutex::new(Instant::now());
        Ok(Self { storage, dir, options: options.clone(), attached: place, next_try })
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
        match self.engine()? {
            held if held.get()?.is_read_only() => {
                drop(held);
                self.attach_to_write()
            }
            held => Ok(held),
        }
    }

    /// The engine to write, in place of an observer that only served reads.
    #[cold]
    fn attach_to_write(&self) -> Result<Held> {
        let mut next_try = self.next_try.lock().unwrap_or_else(PoisonError::into_inner);
        if *next_try > Instant::now() {
            let why = "the disk was full a moment ago; reads go on";
            return Err(Error::new(ErrorKind::NoSpace, "open")
                .with_path(&self.dir)
                .with_source(why));
        }
        let options = Options { keep_limits: true, salvage: false, ..self.options.clone() };
        let opened = Attached::open(self.storage, &self.dir, &options);
        // After the try: it may take long.
        *next_try = Instant::now() + RETRY;
        drop(next_try);
        let attached = opened?;
        attached.note_holder(&self.attached);
        self.replace(Some(attached.clone()));
        Ok(Held::Own(attached))
    }

    fn engine(&self) -> Result<Held> {
        match self.attached() {
            Some(guard) => Ok(Held::Shared(guard)),
            None => self.attach_again(),
        }
    }

    /// The result of `call` with the engine. If the index was lost before it was over, what the
    /// call found may be wrong, and it is repeated.
    #[inline]
    fn with<R>(&self, mut call: impl FnMut(&Attached) -> Result<R>) -> Result<R> {
        let held = self.engine()?;
        let attached = held.get()?;
        let done = call(attached);
        if !attached.has_lost_index() {
            return done;
        }
        drop(held);
        self.engine()?.run(call)
    }

    /// The result of a `call` that changes something, unless the index was lost before it was over:
    /// what it did may be lost.
    #[inline]
    fn with_to_write<R>(&self, call: impl FnOnce(&Attached) -> Result<R>) -> Result<R> {
        self.engine_to_write()?.run(call)
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
        // Once, so that the program learns of it.
        if let Some(error) = self.attached.take_error() {
            return Err(error);
        }
        // The attachment needs the time, and takes locks.
        self.options.clock.read();
        // With the limits that the directory has now; they may have been configured.
        let options = Options { keep_limits: true, salvage: false, ..self.options.clone() };
        // First, because the process that rebuilds the index may need the space that the old
        // attachment holds.
        self.attached.empty(|before| before.is_ours() && !before.is_usable());
        let attached = match Self::attach(self.storage, &self.dir, &options) {
            // To read, no block is needed.
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                let dir = self.dir.display();
                tracing::warn!(%dir, %error, "the disk is full; the directory is only read");
                *self.next_try.lock().unwrap_or_else(PoisonError::into_inner) =
                    Instant::now() + RETRY;
                let seen = Attached::open_read_only(self.storage, &self.dir, &options);
                // The first error says what is wrong.
                seen.map_err(|_| error)?
            }
            attached => attached?,
        };
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
        // Not repeated: it has visited entries.
        self.engine()?.run(|engine| {
            engine.scan(cursor, with_values, &mut |key, item| {
                // Keys are stored from `&str`; one that is not has come from a damaged file.
                if let Ok(key) = std::str::from_utf8(key) {
                    visit(key, item);
                }
            })
        })
    }

    /// The same as [`with`](Self::with) for a call that cannot return an error: one that must be
    /// returned is left to the next call.
    fn look<R>(&self, call: impl FnMut(&Attached) -> Result<R>) -> Result<R> {
        match self.attached.error() {
            Some(error) => Err(error),
            None => self.with(call),
        }
    }

    /// What the engine shows; nothing if the directory was closed and cannot be opened again.
    fn gauge<T: Default>(&self, read: impl Fn(&Attached) -> T) -> T {
        match self.look(|engine| Ok(read(engine))) {
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

    /// The result of `call`, unless the index was lost meanwhile.
    #[inline]
    fn run<R>(&self, call: impl FnOnce(&Attached) -> Result<R>) -> Result<R> {
        let attached = self.get()?;
        let done = call(attached);
        attached.check_index()?;
        done
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
        self.with(|engine| {
            Ok(engine.read(key.as_bytes(), |source| visit(source.item()))?.is_some())
        })
    }

    fn get(&self, key: &str) -> Result<Option<Stored>> {
        self.with(|engine| engine.read(key.as_bytes(), |source| source.into_stored()))
    }

    fn get_decoded(
        &self,
        key: &str,
        wanted: TypeId,
        decode: &mut dyn FnMut(Item<'_>) -> Option<Decoded>,
    ) -> Result<Option<SharedValue>> {
        self.with(|engine| engine.read_decoded(key.as_bytes(), wanted, decode))
    }

    fn expiry_of(&self, key: &str) -> Result<Option<Expiry>> {
        self.with(|engine| engine.expiry_of(key.as_bytes()))
    }

    fn stream(&self, key: &str) -> Result<Option<Streamed>> {
        let attached = self.engine()?.into_attached()?;
        let found = attached.stream(key.as_bytes());
        attached.check_index()?;
        found
    }

    fn spool(&self) -> Result<Option<Box<dyn Spool>>> {
        let attached = self.engine_to_write()?.into_attached()?;
        Ok(Some(Box::new(Spooled::new(attached))))
    }

    fn copy(&self, from: &str, to: &str) -> Result<Option<u64>> {
        self.with_to_write(|engine| engine.copy_entry(from.as_bytes(), to.as_bytes()))
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
        self.with_to_write(|engine| engine.commit(key.as_bytes(), condition, change))
    }

    fn claim(&self, key: ClaimKey<'_>) -> Claimed {
        match self.look(|engine| Ok(engine.claim(key))) {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%error, "no claims: the directory cannot be opened");
                Claimed::Mine(Claim::default())
            }
        }
    }

    fn clear(&self) -> Result<()> {
        self.with_to_write(|engine| engine.clear())
    }

    fn len(&self) -> Result<u64> {
        self.with(|engine| Ok(engine.len()))
    }

    fn scan(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan_engine(cursor, true, visit)
    }

    fn scan_keys(&self, cursor: u64, visit: &mut dyn FnMut(&str, Item<'_>)) -> Result<Option<u64>> {
        self.scan_engine(cursor, false, visit)
    }

    fn maintain(&self) -> Result<()> {
        self.with(|engine| engine.maintain())
    }

    fn flush(&self) -> Result<()> {
        match self.attached().as_deref() {
            // An observer that only serves reads: what was written before the index was lost may
            // not be on the disk.
            Some(Some(attached)) if attached.is_read_only() && !self.options.read_only => {
                self.attach_to_write()?.run(|engine| engine.flush())
            }
            Some(Some(attached)) => attached.flush(),
            _ => match self.attached.take_error() {
                Some(error) => Err(error),
                // Another thread may be closing what this one wrote to.
                None => Attached::flush_at(self.storage, &self.dir),
            },
        }
    }

    fn close(&self) -> Result<()> {
        let flushed = self.flush();
        self.replace(None);
        flushed
    }

    fn limits(&self) -> Limits {
        match self.look(|engine| Ok(engine.limits())) {
            Ok(limits) => limits,
            Err(error) => {
                tracing::warn!(%error, "the directory cannot be asked for its limits");
                self.options.limits()
            }
        }
    }

    fn configure(&self, new: &NewLimits) -> Result<Limits> {
        self.with_to_write(|engine| engine.configure(new))
    }

    fn stats(&self) -> Stats {
        self.gauge(|engine| engine.stats())
    }

    fn total_stats(&self) -> Result<Stats> {
        self.with(|engine| engine.total_stats())
    }

    fn process_stats(&self) -> Result<Option<Vec<ProcessStats>>> {
        self.with(|engine| engine.process_stats().map(Some))
    }

    fn check(&self) -> Result<CheckReport> {
        self.with(|engine| Ok(engine.check()))
    }
}
