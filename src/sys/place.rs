//! Where a directory is: on which disk, and in which page cache.
//!
//! A process that is killed loses no store into a map: the page cache keeps it. A power cut, or the
//! end of a mount by force, loses what was not written back. A recovery must know which of the two
//! it comes after, so it compares the page caches of then and now.
#![expect(unsafe_code, reason = "statx is a call of C")]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc;

/// Where a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Identifies the boot of the machine and the mount. As long as it is the same, every store is
    /// still there. `None` if that is unknown.
    pub(crate) page_cache: Option<u64>,
    /// The inode of the directory; `None` if it says nothing.
    pub(crate) inode: Option<u64>,
}

impl Place {
    /// The place of a directory, which is open and has this inode.
    pub(crate) fn of(directory: &File, inode: u64) -> Self {
        #[cfg(feature = "failpoints")]
        if let Some(boot) = crate::sys::observe::boot() {
            return Self { page_cache: Some(boot), inode: None };
        }
        let page_cache = boot().map(|boot| boot ^ mount(directory).rotate_left(32));
        Self { page_cache: page_cache.filter(|id| *id != 0), inode: Some(inode) }
    }
}

/// 64 bits of the random number of this boot.
fn boot() -> Option<u64> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(digits.get(..16)?, 16).ok()
}

/// The number of the mount in which the directory is: one that is never used again (Linux 6.8), or
/// one that a later mount may get; 0 if the kernel gives none.
fn mount(directory: &File) -> u64 {
    /// From `linux/stat.h`.
    const UNIQUE_MOUNT: libc::c_uint = 0x4000;
    const MOUNT: libc::c_uint = 0x1000;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string, and `found` has room for the
    // result.
    let result = unsafe {
        libc::statx(
            directory.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            UNIQUE_MOUNT | MOUNT,
            found.as_mut_ptr(),
        )
    };
    // SAFETY: all bytes of the plain struct are initialized: as zeros, or by the kernel.
    let found = unsafe { found.assume_init() };
    let has_mount = result == 0 && found.stx_mask & (UNIQUE_MOUNT | MOUNT) != 0;
    if has_mount { found.stx_mnt_id } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let place = || Place::of(&File::open(dir.path()).unwrap(), 7);
        assert_eq!(place(), place());
        assert!(place().page_cache.is_some() && place().inode == Some(7));
    }
}
