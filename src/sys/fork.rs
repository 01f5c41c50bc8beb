//! What a forked child must not share with its parent: file descriptors, and state that a thread
//! which does not exist in the child may have locked.
//!
//! `fork` gives the child a copy of the memory, only the thread that called it, and the same open
//! file descriptions. A file lock belongs to its description: a child that kept the descriptor
//! would keep the locks of the parent after the parent is dead. So each descriptor of ours is an
//! [`OwnFile`], registered in a list. A `pthread_atfork` handler closes all of them in the child
//! before `fork` returns there, and starts a new [`Epoch`]. Objects of an earlier epoch are not
//! used any more.
//!
//! Other threads may be anywhere when the fork happens, so the handler may only do what is
//! async-signal-safe. It walks the list, which has no lock and whose slots are never freed, and
//! calls `close`.
#![expect(unsafe_code, reason = "C calls the handlers, and they walk a list without a lock")]

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
use super::storage::File;

/// How many forks lie between the first process of the program and this one.
static EPOCH: AtomicU64 = AtomicU64::new(0);
/// How many forks this process has completed.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// How many forks of this process are in progress.
static FORKING: AtomicU64 = AtomicU64::new(0);

/// The process in which an object was created. The default is the current one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch(u64);

impl Default for Epoch {
    fn default() -> Self {
        Self::now()
    }
}

impl Epoch {
    pub(crate) fn now() -> Self {
        // If this fails, attaching to a directory fails, too.
        let _ = watch();
        Self(EPOCH.load(Relaxed))
    }

    /// Whether this process was forked since, so that the object belongs to an ancestor.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.0 != EPOCH.load(Relaxed)
    }

    /// The epoch of the parent, for tests.
    #[cfg(test)]
    pub(crate) fn before(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// Installs the fork handlers, once.
///
/// # Errors
/// If the system has no memory for the handlers.
pub(crate) fn watch() -> io::Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.load(Acquire) {
        return Ok(());
    }
    // Several threads may install them at the same time, which is harmless; none continues before
    // they are installed.
    // SAFETY: the handlers are functions that live as long as the program, and are
    // async-signal-safe.
    match unsafe {
        libc::pthread_atfork(
            Some(before_fork),
            Some(after_fork_in_parent),
            Some(after_fork_in_child),
        )
    } {
        0 => {
            WATCHED.store(true, Release);
            Ok(())
        }
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

unsafe extern "C" fn before_fork() {
    FORKING.fetch_add(1, SeqCst);
}

unsafe extern "C" fn after_fork_in_parent() {
    FORKS.fetch_add(1, SeqCst);
    FORKING.fetch_sub(1, SeqCst);
}

// Keeps invariant I31.
unsafe extern "C" fn after_fork_in_child() {
    EPOCH.fetch_add(1, SeqCst);
    FORKING.store(0, SeqCst);
    for slot in fd_slots() {
        let fd = slot.fd.swap(NONE, SeqCst);
        if fd != NONE {
            // SAFETY: the descriptor belonged to an `OwnFile` of the earlier epoch, which neither
            // uses nor closes it in this one.
            unsafe { libc::close(fd) };
        }
    }
}

/// A slot of the list: a registered descriptor, or [`NONE`]. Never freed; a free one is reused.
#[derive(Debug)]
struct FdSlot {
    fd: AtomicI32,
    next: *const FdSlot,
}

// SAFETY: `next` never changes once the slot is in the list, and the slot it points to is never
// freed.
unsafe impl Sync for FdSlot {}

const NONE: RawFd = -1;
static FD_SLOTS: AtomicPtr<FdSlot> = AtomicPtr::new(ptr::null_mut());

fn fd_slots() -> impl Iterator<Item = &'static FdSlot> {
    let mut next = FD_SLOTS.load(Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or a slot of the list, which is never freed.
        let slot = unsafe { next.as_ref() }?;
        next = slot.next;
        Some(slot)
    })
}

/// Registers a descriptor: in a free slot, or in a new one.
fn register(fd: RawFd) -> &'static FdSlot {
    let take = |slot: &&FdSlot| slot.fd.compare_exchange(NONE, fd, AcqRel, Relaxed).is_ok();
    if let Some(slot) = fd_slots().find(take) {
        return slot;
    }
    let slot = Box::leak(Box::new(FdSlot { fd: AtomicI32::new(fd), next: ptr::null() }));
    let mut first = FD_SLOTS.load(Acquire);
    loop {
        slot.next = first;
        match FD_SLOTS.compare_exchange(first, slot, AcqRel, Acquire) {
            Ok(_) => return slot,
            Err(now) => first = now,
        }
    }
}

/// An open file that a child does not inherit: it is closed in the child before `fork` returns, and
/// must not be used there. Every file with locks must be one.
#[derive(Debug)]
pub(crate) struct OwnFile {
    file: ManuallyDrop<File>,
    slot: &'static FdSlot,
    epoch: Epoch,
    /// Whether to unlock the whole file before it is closed.
    unlocks: bool,
}

impl OwnFile {
    /// A file that will never be locked.
    pub(crate) fn new(file: File) -> Self {
        let epoch = Epoch::now();
        let slot = register(file.os().as_raw_fd());
        Self { file: ManuallyDrop::new(file), slot, epoch, unlocks: false }
    }

    /// A file that may be locked. If another thread forks meanwhile, this opens it again: that
    /// child may have inherited the descriptor before it was registered, and would keep locks that
    /// are taken later.
    ///
    /// # Errors
    /// Those of `open`.
    pub(crate) fn to_lock(mut open: impl FnMut() -> io::Result<File>) -> io::Result<Self> {
        /// A fork takes some milliseconds. This does not wait longer: a fork may itself wait for
        /// this thread, in another handler of the program.
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

    /// Closes the descriptor and leaves its locks to a map of the file, which keeps the description
    /// open.
    pub(crate) fn leave_to_map(mut self) {
        self.unlocks = false;
    }

    /// Fails in a process that was forked since.
    ///
    /// # Errors
    /// `Interrupted`.
    pub(crate) fn check_ours(&self) -> io::Result<()> {
        let why = "it belongs to the process that forked this one";
        if self.is_ours() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::Interrupted, why)) }
    }

    /// Whether this process created it, and not an ancestor.
    pub(crate) fn is_ours(&self) -> bool {
        !self.epoch.is_over()
    }
}

impl Deref for OwnFile {
    type Target = File;

    fn deref(&self) -> &File {
        debug_assert!(self.is_ours(), "the descriptor now belongs to another file");
        &self.file
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // In this order: a registered descriptor must always be ours. A child that is forked
            // after the store keeps the descriptor, but no lock, because the file was unlocked
            // before.
            if self.unlocks
                && let Err(error) = lock::unlock_all(&self.file)
            {
                tracing::warn!(%error, "cannot unlock a file before it is closed");
            }
            self.slot.fd.store(NONE, Release);
            // SAFETY: the file is not used again.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// A value that each process creates for itself. A child finds a new default value, whatever thread
/// held a lock in that of its parent. The value of the parent is leaked.
pub(crate) struct EachEpoch<T: 'static>(AtomicPtr<(Epoch, T)>);

impl<T: Default + Send + Sync> EachEpoch<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> &'static T {
        let mut there = self.0.load(Acquire);
        loop {
            // SAFETY: null, or created by `Box::into_raw` below and never freed since.
            if let Some((epoch, value)) = unsafe { there.as_ref() }
                && !epoch.is_over()
            {
                return value;
            }
            let new = Box::into_raw(Box::new((Epoch::now(), T::default())));
            match self.0.compare_exchange(there, new, AcqRel, Acquire) {
                Ok(_) => there = new,
                Err(now) => {
                    // SAFETY: created just now, and not shared.
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
    use crate::sys::storage::SYSTEM;

    #[test]
    fn a_descriptor_is_registered_while_it_is_open() {
        let is_registered = |fd| fd_slots().filter(|slot| slot.fd.load(Acquire) == fd).count();
        let files: Vec<OwnFile> =
            (0..10).map(|_| OwnFile::new(File::nameless().unwrap())).collect();
        assert!(
            files.iter().all(|file| file.is_ours() && is_registered(file.os().as_raw_fd()) == 1)
        );
        drop(files);
        // Other tests may take the free slots first.
        let is_reused = || {
            let there: Vec<_> = fd_slots().map(ptr::from_ref).collect();
            let again = OwnFile::to_lock(File::nameless).unwrap();
            assert!(is_registered(again.os().as_raw_fd()) == 1);
            there.contains(&ptr::from_ref(again.slot))
        };
        assert!((0..100).any(|_| is_reused()), "free slots are reused");
    }

    #[test]
    fn a_child_with_a_closing_descriptor_has_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let open = || SYSTEM.open_or_create(&dir.path().join("locks")).map(|(file, _)| file);
        let (file, other) = (OwnFile::to_lock(open).unwrap(), open().unwrap());
        assert!(lock::try_lock(&file, 0).unwrap() && lock::try_lock(&file, i64::MAX - 1).unwrap());
        // The descriptor of a child that was forked after the slot was freed and before the close.
        let childs = file.try_clone().unwrap();
        drop(file);
        assert!(
            lock::try_lock(&other, 0).unwrap() && lock::try_lock(&other, i64::MAX - 1).unwrap()
        );
        drop((childs, other));
    }

    #[test]
    fn an_inherited_file_is_not_closed() {
        let file = File::nameless().unwrap();
        let fd = file.os().as_raw_fd();
        let mut inherited = OwnFile::new(file);
        inherited.epoch = inherited.epoch.before();
        let slot = inherited.slot;
        assert!(!inherited.is_ours());
        drop(inherited);
        assert!(nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::FcntlArg::F_GETFD).is_ok());
        assert_eq!(slot.fd.load(Acquire), fd, "neither closed nor unregistered");
        slot.fd.store(NONE, Release);
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
