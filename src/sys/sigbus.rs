//! Contains SIGBUS in mapped files: a file that was truncated, a disk that refuses to read or to
//! give a block, a file system that was shut down.
//!
//! The maps that ask for it are [`Region`]s of a list. The handler looks the faulting address up
//! there. If it finds it, it notes the fault in the region, puts a page of zeros in place of the
//! one that faulted, and returns: the access is repeated and succeeds. So a reader finds zeros,
//! which fail every check, and a writer finds the note and does not acknowledge what it stored. In
//! one map a page goes from the file's bytes to zeros and never back: bytes that are sound now were
//! sound before.
//!
//! A fault anywhere else is for the handler that was installed before, which is called as the
//! system would call it.
//!
//! The handler may interrupt any code, so it does only what is async-signal-safe: it walks the
//! list, which has no lock and whose regions are never freed, and calls `mmap`. That is one system
//! call without a lock, also if POSIX does not list it. A forked child inherits the maps, the list
//! and the handler.
#![expect(unsafe_code, reason = "a signal handler, which changes mappings")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, siginfo_t};

/// The mapped bytes of one file. Never freed; a free one (which begins at 0) is used again.
#[derive(Debug)]
struct Region {
    /// Odd while `start` and `end` change.
    version: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    has_faulted: AtomicBool,
    next: *const Region,
}

// SAFETY: `next` never changes once the region is in the list, and the region it points to is
// never freed.
unsafe impl Sync for Region {}

static REGIONS: AtomicPtr<Region> = AtomicPtr::new(ptr::null_mut());
/// What handled SIGBUS before; null until it is known.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// The size of a page; set before the handler is installed.
static PAGE: AtomicUsize = AtomicUsize::new(0);

fn regions() -> impl Iterator<Item = &'static Region> {
    let mut next = REGIONS.load(Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: null, or a region of the list, which is never freed.
        let region = unsafe { next.as_ref() }?;
        next = region.next;
        Some(region)
    })
}

impl Region {
    /// Changes the range, if it is free and no other thread changes it.
    fn take(&self, start: usize, end: usize) -> bool {
        let version = self.version.load(SeqCst);
        let is_mine = self.start.load(SeqCst) == 0
            && version.is_multiple_of(2)
            && self.version.compare_exchange(version, version + 1, SeqCst, SeqCst).is_ok();
        if is_mine {
            self.has_faulted.store(false, SeqCst);
            self.end.store(end, SeqCst);
            self.start.store(start, SeqCst);
            self.version.store(version + 2, SeqCst);
        }
        is_mine
    }

    /// Whether `address` lies in it. A region that changes meanwhile is not the one that the
    /// faulting thread uses.
    fn contains(&self, address: usize) -> bool {
        let version = self.version.load(SeqCst);
        let range = self.start.load(SeqCst)..self.end.load(SeqCst);
        version.is_multiple_of(2)
            && self.version.load(SeqCst) == version
            && range.start != 0
            && range.contains(&address)
    }
}

/// A mapped range whose faults are contained. Must be dropped before the range is unmapped: another
/// map may get the same addresses.
#[derive(Debug)]
pub(crate) struct Contained(&'static Region);

impl Contained {
    /// Contains faults in the `len` mapped bytes at `start`, which belong to one map of a file.
    ///
    /// # Errors
    /// If the handler cannot be installed.
    pub(crate) fn new(start: usize, len: usize) -> io::Result<Self> {
        install()?;
        let end = start + len;
        if let Some(region) = regions().find(|region| region.take(start, end)) {
            return Ok(Self(region));
        }
        let region = Box::leak(Box::new(Region {
            version: AtomicU64::new(0),
            start: AtomicUsize::new(start),
            end: AtomicUsize::new(end),
            has_faulted: AtomicBool::new(false),
            next: ptr::null(),
        }));
        let mut first = REGIONS.load(Acquire);
        loop {
            region.next = first;
            match REGIONS.compare_exchange(first, region, AcqRel, Acquire) {
                Ok(_) => return Ok(Self(region)),
                Err(now) => first = now,
            }
        }
    }

    /// Whether any page of it has faulted. A thread sees its own faults at once.
    #[inline]
    pub(crate) fn has_faulted(&self) -> bool {
        self.0.has_faulted.load(Relaxed)
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // A region with a length is changed by its owner alone, so this need not be claimed.
        let version = self.0.version.fetch_add(1, SeqCst);
        self.0.end.store(0, SeqCst);
        self.0.start.store(0, SeqCst);
        self.0.version.store(version + 2, SeqCst);
    }
}

/// Installs the handler, once in the life of the process.
fn install() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.load(Acquire) {
        return Ok(());
    }
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE.store(usize::try_from(page).map_err(|_| io::Error::last_os_error())?, Release);
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks for the action, and writes it to `before`, for which zeros are valid.
    let before = unsafe {
        Errno::result(libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()))?;
        before.assume_init()
    };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    if before.sa_sigaction == handler as usize {
        // Another thread has installed it at this moment.
        return Ok(());
    }
    // Never freed: the handler may read it at any time.
    PREVIOUS.store(Box::leak(Box::new(before)), SeqCst);
    let mut action = before;
    action.sa_sigaction = handler as usize;
    // The previous handler may need more than the alternative stack has.
    let kept = match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => libc::SA_ONSTACK,
        _ => before.sa_flags & (libc::SA_ONSTACK | libc::SA_RESTART),
    };
    action.sa_flags = libc::SA_SIGINFO | kept;
    // SAFETY: the handler is a function of the type that `SA_SIGINFO` says, lives as long as the
    // program, and is async-signal-safe. It blocks the signals that the previous one blocked.
    unsafe { Errno::result(libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()))? };
    INSTALLED.store(true, Release);
    Ok(())
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the system passes a valid description of the signal. Only a fault (a code above 0,
    // and not that of an unaligned access) has an address.
    let address = unsafe {
        ((*info).si_code > 0 && (*info).si_code != libc::BUS_ADRALN)
            .then(|| (*info).si_addr() as usize)
    };
    if !address.is_some_and(contain) {
        pass_on(signal, info, context);
    }
    Errno::set_raw(errno);
}

/// Puts zeros in place of the page at `address`, if it is in a region.
fn contain(address: usize) -> bool {
    let Some(region) = regions().find(|region| region.contains(address)) else { return false };
    // Before the page is replaced: a thread that stores into the new page finds this.
    region.has_faulted.store(true, SeqCst);
    let page = PAGE.load(Acquire);
    let start = ptr::without_provenance_mut::<c_void>(address & !(page - 1));
    // SAFETY: the page is one of a map of ours. The map exists: the faulting thread has a reference
    // to it, and a region is dropped before its map. Whatever points into the map stays valid: the
    // page is mapped, readable and writable, before and after. Its bytes change as if another
    // process had stored zeros, for which the users of a map are prepared.
    let mapped = unsafe {
        libc::mmap(
            start,
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Does with a signal what would be done with it without this handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.load(SeqCst);
    // SAFETY: null, or an action that is never freed and never changed.
    let action = unsafe { previous.as_ref() };
    match action {
        Some(action) if !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            if action.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: an action with this flag has a function of this type.
                let call: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { mem::transmute(action.sa_sigaction) };
                call(signal, info, context);
            } else {
                // SAFETY: an action without the flag, and neither of the two numbers above, has a
                // function of this type.
                let call: extern "C" fn(c_int) = unsafe { mem::transmute(action.sa_sigaction) };
                call(signal);
            }
        }
        _ => {
            // SAFETY: zeros are a valid action: the default.
            let default = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
            let action = action.unwrap_or(&default);
            // SAFETY: reads the code of the valid description of a signal.
            let is_sent = unsafe { (*info).si_code <= 0 };
            if is_sent && action.sa_sigaction == libc::SIG_IGN {
                return;
            }
            // A fault comes again when this returns. A signal that was sent is sent again; it is
            // blocked until this returns.
            // SAFETY: both are async-signal-safe, and the action is valid.
            unsafe {
                libc::sigaction(signal, action, ptr::null_mut());
                if is_sent {
                    libc::raise(signal);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_used_again_and_forgets_its_fault() {
        let first = Contained::new(0x1000, 0x2000).unwrap();
        first.0.has_faulted.store(true, SeqCst);
        let (address, region) = (0x2fff, ptr::from_ref(first.0));
        assert!(first.has_faulted() && first.0.contains(address) && !first.0.contains(0x3000));
        drop(first);
        assert!(!regions().any(|region| region.contains(address)));
        let again = Contained::new(0x1000, 0x1000).unwrap();
        assert!(!again.has_faulted() && again.0.contains(0x1fff) && !again.0.contains(address));
        // Other tests use the list at the same time.
        assert!(regions().any(|other| ptr::eq(other, region)));
    }
}
