//! The operating system: mapped files, file operations, locks, forks, waits. The only module with
//! `unsafe` code, and the seam where tests inject faults.
//!
//! Every operation that can fail, or that makes something durable, passes a named fail point
//! (feature `failpoints`). A test can make it return an error number, or kill the process there.
//! With the same feature a test can observe what is synced, created and removed, to
//! simulate power cuts.

#[cfg(target_os = "linux")]
pub(crate) mod atomic;
#[cfg(target_os = "linux")]
pub(crate) mod fork;
#[cfg(not(target_os = "linux"))]
#[path = "fork_elsewhere.rs"]
pub(crate) mod fork;
#[cfg(target_os = "linux")]
pub(crate) mod lock;
#[cfg(target_os = "linux")]
pub(crate) mod map;
#[cfg(target_os = "linux")]
pub(crate) mod mount;
#[cfg(all(feature = "failpoints", target_os = "linux"))]
pub mod observe;
#[cfg(target_os = "linux")]
pub(crate) mod random;
#[cfg(target_os = "linux")]
pub(crate) mod storage;
#[cfg(target_os = "linux")]
pub(crate) mod wait;

/// A fail point in a step that can fail: `return(ERRNO)` makes the enclosing function return that
/// error.
#[cfg(target_os = "linux")]
macro_rules! fault {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name, |errno: Option<String>| Err(std::io::Error::from_raw_os_error(
            errno.and_then(|e| e.parse().ok()).unwrap_or(nix::libc::EIO)
        )));
    };
}
#[cfg(target_os = "linux")]
pub(crate) use fault;

/// A fail point in a step that cannot fail: a test can stop or kill the process there.
#[cfg(target_os = "linux")]
macro_rules! step {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        ::fail::fail_point!($name);
    };
}
#[cfg(target_os = "linux")]
pub(crate) use step;

/// Reports a step that decides what a power cut leaves to the observer of a test.
#[cfg(target_os = "linux")]
macro_rules! tell {
    ($step:ident($($of:expr),*)) => {
        #[cfg(feature = "failpoints")]
        $crate::sys::observe::tell($crate::sys::observe::Step::$step($($of),*));
    };
}
#[cfg(target_os = "linux")]
pub(crate) use tell;
