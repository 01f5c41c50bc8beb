//! The operating system: mapped files, file operations, locks. The only place with `unsafe`, and the seam
//! where tests inject faults.
//!
//! Every operation that can fail or that persists something passes a named fail point (feature
//! `failpoints`), so that a test can make it return an error number, or stop the process right there. The same
//! feature has a test told of what is synced, made and removed, so that it can simulate power cuts.

pub(crate) mod atomic;
pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod lock;
pub(crate) mod map;
pub(crate) mod mount;
#[cfg(feature = "failpoints")]
pub mod observe;
pub(crate) mod random;
pub(crate) mod wait;

/// A fail point of a fallible step: `return(ERRNO)` makes the enclosing function return that error.
macro_rules! fault {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name, |errno: Option<String>| Err(std::io::Error::from_raw_os_error(
            errno.and_then(|e| e.parse().ok()).unwrap_or(nix::libc::EIO)
        )));
    };
}
pub(crate) use fault;

/// A fail point of a step that cannot fail: a place to stop or to be killed at.
macro_rules! step {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name);
    };
}
pub(crate) use step;

/// Tells a test of a step that decides what a power cut leaves.
macro_rules! tell {
    ($step:ident($($of:expr),*)) => {
        #[cfg(feature = "failpoints")]
        $crate::sys::observe::tell($crate::sys::observe::Step::$step($($of),*));
    };
}
pub(crate) use tell;
