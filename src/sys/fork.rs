//! What a process that was forked does not share with its parent: descriptors, and whatever a thread that is not there
//! may have locked.
//!
//! `fork` gives the child a copy of the memory, with the thread alone that called it, and the same open file
//! descriptions. A lock on a file belongs to the description, so a child that kept it would keep the parent's locks when
//! the parent is dead. So each descriptor of ours is an [`OwnFile`], on a list; a handler of `pthread_atfork` closes them
//! all in the child before `fork` returns there, and begins an [`Epoch`]. What was made in an earlier one is not used any
//! more.
//!
//! The handler may only do what is safe in a signal handler, as any thread may have been anywhere: it walks the list,
//! which has no lock and whose entries are never freed, and calls `close`.
#![expect(
    unsafe_code,
    reason = "the handler is called from C, and walks a list that no lock guards"
)]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64};
use std::time::{Duration, Instant};

use nix::libc;

use super::lock;

/// How many forks lie between the first process and this one.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// How many forks this process made that are over, and how many threads are in the midst of one.
static FORKS: AtomicU64 = AtomicU64::new(0);
static FORKING: AtomicU64 = AtomicU64::new(0);

/// The process that something was made in; by default this one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(u64);

impl Default for Epoch {
    fn default() -> Self {
        Self::now()
    }
}

impl Epoch {
    pub(crate) fn now() -> Self {
        // Where it fails, attaching does, too.
        let _ = watch();
        Self(EPOCH.load(Relaxed))
    }

    /// Whether this process was forked since.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.0 != EPOCH.load(Relaxed)
    }

    /// That of the parent, as a test sees it.
    #[cfg(test)]
    pub(crate) fn before(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// Makes sure that forks are noticed from now on.
///
/// # Errors
/// If there is no memory for it.
pub(crate) fn watch() -> io::Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.load(Acquire) {
        return Ok(());
    }
    // Threads that come here at the same time each do it, which does no harm; none goes on before it is done.
    // SAFETY: the handlers are functions that live as long as the program, and do what such handlers may.
    match unsafe { libc::pthread_atfork(Some(begin), Some(end), Some(in_child)) } {
        0 => {
            WATCHED.store(true, Release);
            Ok(())
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

unsafe extern "C" fn begin() {
    FORKING.fetch_add(1, SeqCst);
}

unsafe extern "C" fn end() {
    FORKS.fetch_add(1, SeqCst);
    FORKING.fetch_sub(1, SeqCst);
}

unsafe extern "C" fn in_child() {
    EPOCH.fetch_add(1, SeqCst);
    FORKING.store(0, SeqCst);
    for entry in entries() {
        let fd = entry.fd.swap(NONE, SeqCst);
        if fd != NONE {
            // SAFETY: the descriptor was an `OwnFile`'s, which does not use or close it in this epoch.
            unsafe { libc::close(fd) };
        }
    }
}

/// A descriptor on the list. Never freed; one of no descriptor is used again.
#[derive(Debug)]
struct Entry {
    fd: AtomicI32,
    next: *const Entry,
}

// SAFETY: `next` never changes once the entry is on the list, and what it points to is never freed.
unsafe impl Sync for Entry {}

const NONE: RawFd = -1;
static LIST: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = LIST.load(Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or an entry of the list, which is never freed.
        let entry = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// Puts a descriptor on the list.
fn enter(fd: RawFd) -> &'static Entry {
    let take = |entry: &&Entry| entry.fd.compare_exchange(NONE, fd, AcqRel, Relaxed).is_ok();
    if let Some(entry) = entries().find(take) {
        return entry;
    }
    let entry = Box::leak(Box::new(Entry { fd: AtomicI32::new(fd), next: ptr::null() }));
    let mut first = LIST.load(Acquire);
    loop {
        entry.next = first;
        match LIST.compare_exchange(first, entry, AcqRel, Acquire) {
            Ok(_) => return entry,
            Err(now) => first = now,
        }
    }
}

/// An open file that a child does not inherit: in one it is closed before `fork` returns, and must not be used. Whatever
/// is locked belongs into one.
#[derive(Debug)]
pub(crate) struct OwnFile {
    file: ManuallyDrop<File>,
    entry: &'static Entry,
    epoch: Epoch,
    /// Whether closing it is to give back what is locked.
    unlocks: bool,
}

impl OwnFile {
    /// A file on which no lock will be taken.
    pub(crate) fn new(file: File) -> Self {
        let epoch = Epoch::now();
        let entry = enter(file.as_raw_fd());
        Self { file: ManuallyDrop::new(file), entry, epoch, unlocks: false }
    }

    /// A file on which locks may be taken. It is opened again if another thread forked meanwhile: that child may have
    /// the descriptor, and would keep what is locked later.
    ///
    /// # Errors
    /// Those of `open`.
    pub(crate) fn to_lock(mut open: impl FnMut() -> io::Result<File>) -> io::Result<Self> {
        /// A fork takes some milliseconds. One that waits for us, in a handler of the program's, is not waited for.
        const PATIENCE: Duration = Duration::from_secs(1);
        watch()?;
        let started = Instant::now();
        loop {
            let forks = FORKS.load(SeqCst);
            let mut file = Self::new(open()?);
            file.unlocks = true;
            let any_fork = FORKING.load(SeqCst) > 0 || FORKS.load(SeqCst) != forks;
            if !any_fork || started.elapsed() > PATIENCE {
                return Ok(file);
            }
            drop(file);
            std::thread::yield_now();
        }
    }

    /// Closes it, and leaves what is locked to a map of it, which keeps the file open.
    pub(crate) fn leave_to_map(mut self) {
        self.unlocks = false;
    }

    /// Fails in a process that was forked since.
    pub(crate) fn check_ours(&self) -> io::Result<()> {
        let why = "it belongs to the process that this one was forked from";
        if self.is_ours() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::Interrupted, why)) }
    }

    /// Whether this process has it, and not the one that it was forked from.
    pub(crate) fn is_ours(&self) -> bool {
        !self.epoch.is_over()
    }
}

impl Deref for OwnFile {
    type Target = File;

    fn deref(&self) -> &File {
        debug_assert!(self.is_ours(), "this descriptor is another file's by now");
        &self.file
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // In this order: what is on the list is surely ours. A child that is forked in between keeps a descriptor,
            // but no lock, as those were given back before.
            if self.unlocks
                && let Err(error) = lock::unlock_all(&self.file)
            {
                tracing::warn!(%error, "cannot unlock a file before it is closed");
            }
            self.entry.fd.store(NONE, Release);
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// Something that each process has anew, and that a child finds as it is at the beginning, whoever had it locked in the
/// parent. That of the parent stays in memory.
pub(crate) struct EachEpoch<T: 'static>(AtomicPtr<(Epoch, T)>);

impl<T: Default + Send + Sync> EachEpoch<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> &'static T {
        let mut there = self.0.load(Acquire);
        loop {
            // SAFETY: null, or made by `Box::into_raw` below and never freed since.
            if let Some((epoch, value)) = unsafe { there.as_ref() }
                && !epoch.is_over()
            {
                return value;
            }
            let new = Box::into_raw(Box::new((Epoch::now(), T::default())));
            match self.0.compare_exchange(there, new, AcqRel, Acquire) {
                Ok(_) => there = new,
                Err(now) => {
                    // SAFETY: made just now, and nobody else has it.
                    drop(unsafe { Box::from_raw(new) });
                    there = now;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_descriptor_is_on_the_list_for_as_long_as_it_is_open() {
        let is_listed = |fd| entries().filter(|entry| entry.fd.load(Acquire) == fd).count();
        let files: Vec<OwnFile> =
            (0..10).map(|_| OwnFile::new(tempfile::tempfile().unwrap())).collect();
        assert!(files.iter().all(|file| file.is_ours() && is_listed(file.as_raw_fd()) == 1));
        drop(files);
        // Other tests may be faster.
        let is_used_again = || {
            let there: Vec<_> = entries().map(ptr::from_ref).collect();
            let again = OwnFile::to_lock(tempfile::tempfile).unwrap();
            assert!(is_listed(again.as_raw_fd()) == 1);
            there.contains(&ptr::from_ref(again.entry))
        };
        assert!((0..100).any(|_| is_used_again()), "entries of no descriptor are used again");
    }

    #[test]
    fn a_child_that_has_a_descriptor_which_is_being_closed_has_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(dir.path().join("locks"))
        };
        let (file, other) = (OwnFile::to_lock(open).unwrap(), open().unwrap());
        assert!(lock::try_lock(&file, 0).unwrap() && lock::try_lock(&file, i64::MAX - 1).unwrap());
        // What a child has that was forked while it was off the list and open.
        let childs = file.try_clone().unwrap();
        drop(file);
        assert!(
            lock::try_lock(&other, 0).unwrap() && lock::try_lock(&other, i64::MAX - 1).unwrap()
        );
        drop((childs, other));
    }

    #[test]
    fn what_was_made_before_a_fork_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let mut inherited = OwnFile::new(file);
        inherited.epoch = inherited.epoch.before();
        let entry = inherited.entry;
        assert!(!inherited.is_ours());
        drop(inherited);
        assert!(nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_GETFD).is_ok());
        assert_eq!(entry.fd.load(Acquire), fd, "neither closed nor taken off the list");
        entry.fd.store(NONE, Release);
    }

    #[test]
    fn each_epoch_has_its_own() {
        static COUNT: EachEpoch<Mutex<u32>> = EachEpoch::new();
        let locked = COUNT.get().lock().unwrap();
        let parents = Box::into_raw(Box::new((Epoch::now().before(), Mutex::new(7))));
        let ours = COUNT.0.swap(parents, AcqRel);
        assert_eq!(*COUNT.get().lock().unwrap(), 0);
        assert!(ptr::eq(COUNT.get(), COUNT.get()) && !ptr::eq(COUNT.0.load(Acquire), ours));
        drop(locked);
    }
}
