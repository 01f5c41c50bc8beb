//! Mapped files that cannot be read or written any more: files that another program truncates, and
//! file systems that are shut down. With `handle_sigbus` the process lives, reads no wrong value,
//! loses no write that it acknowledged afterwards, and passes on what is not its own.
//!
//! Each case runs in a process of its own, which SIGBUS would end.
//!
//! Shows invariant I5.
#![cfg(test)]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/harness.rs"]
mod harness;

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use disk::Disk;
use harness::Verdict;
use keepwarm::{Cache, ErrorKind, Timeout};
use nix::libc::{self, c_int, c_void, siginfo_t};

/// Set for a child: its case and its directory.
const CASE: &str = "KEEPWARM_SIGBUS_CASE";
const DIR: &str = "KEEPWARM_SIGBUS_DIR";
/// What the handler of the program exits with.
const HANDLED: i32 = 42;
const KEYS: u32 = 400;

fn main() -> ExitCode {
    if let Ok(case) = std::env::var(CASE) {
        let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
        in_child(&case, &dir);
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_truncated_segment_is_misses_and_is_retired", || lives("segment")),
        ("a_segment_that_is_being_written_may_be_truncated", || lives("appended")),
        ("a_truncated_index_is_an_error_and_opened_again", || lives("index")),
        ("a_cut_end_of_the_index_is_found_within_seconds", || lives("end of index")),
        ("an_observer_opens_a_truncated_index_again", || lives("observer")),
        ("truncated_hints_change_nothing", || lives("hints")),
        ("a_truncated_blob_is_a_miss_and_bytes_stay", || lives("blob")),
        ("bytes_from_a_segment_outlive_its_truncation", || lives("bytes")),
        ("two_processes_survive_a_truncated_index", two_processes),
        ("without_the_option_sigbus_ends_the_process", dies_without),
        ("faults_elsewhere_end_the_process_as_before", || dies("elsewhere")),
        ("a_signal_that_was_sent_ends_the_process_as_before", || dies("sent")),
        ("the_handler_of_the_program_is_called", handler_of_the_program),
        ("a_shut_down_ext4_does_not_end_the_process", || shut_down(&["mkfs.ext4", "-q", "-F"])),
        ("a_shut_down_xfs_does_not_end_the_process", || shut_down(&["mkfs.xfs", "-q", "-f"])),
    ])
}

fn spawn(case: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CASE, case).env(DIR, dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn run(case: &str) -> ExitStatus {
    let dir = tempfile::tempdir().unwrap();
    spawn(case, dir.path()).wait_with_output().unwrap().status
}

fn lives(case: &str) -> Verdict {
    let status = run(case);
    assert!(status.success(), "{case}: {status}");
    Ok(())
}

fn dies(case: &str) -> Verdict {
    let status = run(case);
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{case}: {status}");
    Ok(())
}

fn dies_without() -> Verdict {
    dies("segment, not handled")?;
    dies("index, not handled")
}

fn handler_of_the_program() -> Verdict {
    for case in ["handler", "handler, plain"] {
        let status = run(case);
        assert_eq!(status.code(), Some(HANDLED), "{case}: {status}");
    }
    Ok(())
}

fn meet_parent() {
    use std::io::{Read, Write};
    std::io::stdout().write_all(b"x").unwrap();
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

fn shut_down(make: &[&str]) -> Verdict {
    let disk = Disk::new(make, 400)?;
    let dir = disk.path().join("cache");
    let mut child = spawn("shut down", &dir);
    {
        use std::io::Read;
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }
    let shut = shut_down_without_log(disk.path());
    {
        use std::io::Write;
        let _ = child.stdin.as_mut().unwrap().write_all(b"x");
    }
    let status = child.wait().unwrap();
    shut?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// Shuts a file system down without writing its log: from now on it refuses everything.
fn shut_down_without_log(disk: &Path) -> Verdict {
    let output = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(disk).output();
    let is_down = output.is_ok_and(|output| output.status.success());
    is_down.then_some(()).ok_or("needs xfs_io (xfsprogs)")
}

fn two_processes() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()));
    let mut both = [spawn("one of two", dir.path()), spawn("one of two", dir.path())];
    for child in &mut both {
        use std::io::Read;
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }
    truncate(&dir.path().join("index"), 0);
    for child in &mut both {
        use std::io::Write;
        let _ = child.stdin.as_mut().unwrap().write_all(b"x");
    }
    for mut child in both {
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
    all_there(&open(dir.path()));
    Ok(())
}

// --- in the child -------------------------------------------------------------------------------

fn open_with(dir: &Path, handle: bool) -> Cache {
    Cache::builder(dir).max_bytes(64 << 20).hot_bytes(0).handle_sigbus(handle).open().unwrap()
}

fn open(dir: &Path) -> Cache {
    open_with(dir, true)
}

fn key(number: u32) -> String {
    format!("key {number}")
}

/// A value that is nowhere zero, and different for each key.
fn value(number: u32) -> Vec<u8> {
    number.to_le_bytes().iter().map(|byte| byte | 1).cycle().take(9000).collect()
}

fn fill(cache: &Cache) {
    for number in 0..KEYS {
        cache.set_bytes(&key(number), &value(number), Timeout::Never).unwrap();
    }
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Reads all keys. Returns how many have no value; no value is wrong.
fn missing(cache: &Cache) -> keepwarm::Result<u32> {
    let mut missing = 0;
    for number in 0..KEYS {
        match cache.get_bytes(&key(number))? {
            Some(found) => assert_eq!(found, value(number), "a wrong value"),
            None => missing += 1,
        }
    }
    Ok(missing)
}

/// Repeats a call until it succeeds; each of its errors is that a file cannot be used.
fn soon<R>(mut call: impl FnMut() -> keepwarm::Result<R>) -> R {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match call() {
            Ok(result) => return result,
            Err(e) => {
                let expected = matches!(
                    e.kind(),
                    ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Corrupt | ErrorKind::Busy
                );
                assert!(expected && Instant::now() < end, "{e}");
            }
        }
        std::thread::yield_now();
    }
}

fn all_there(cache: &Cache) {
    assert_eq!(soon(|| missing(cache)), 0);
}

/// New values can be stored, and are there: in this process, and in the next one.
fn works_again(cache: &Cache) {
    for number in 0..KEYS {
        soon(|| cache.set_bytes(&key(number), &value(number), Timeout::Never));
    }
    all_there(cache);
}

fn in_child(case: &str, dir: &Path) {
    match case {
        "segment" | "segment, not handled" => {
            let cache = open_with(dir, case == "segment");
            fill(&cache);
            cache.close().unwrap();
            assert_eq!(missing(&cache).unwrap(), 0);
            segments(dir).iter().for_each(|path| truncate(path, 4096));
            let lost = soon(|| missing(&cache));
            assert!(lost > KEYS - 4, "{lost}");
            assert_eq!(cache.stats().corrupt, u64::from(lost));
            works_again(&cache);
            drop(cache);
            all_there(&open(dir));
        }
        "appended" => {
            let cache = open(dir);
            fill(&cache);
            segments(dir).iter().for_each(|path| truncate(path, 4096));
            works_again(&cache);
            cache.clear().unwrap();
            works_again(&cache);
            drop(cache);
            all_there(&open(dir));
        }
        "index" | "index, not handled" => {
            let cache = open_with(dir, case == "index");
            fill(&cache);
            truncate(&dir.join("index"), 0);
            // A read is repeated.
            assert_eq!(missing(&cache).unwrap(), 0);
            truncate(&dir.join("index"), 0);
            assert!(cache.set("a", &1, Timeout::Never).is_err());
            works_again(&cache);
            drop(cache);
            all_there(&open(dir));
        }
        "end of index" => {
            let cache = open(dir);
            fill(&cache);
            // Only the background reads there.
            let index = dir.join("index");
            truncate(&index, fs::metadata(&index).unwrap().len() - 4096);
            let end = Instant::now() + Duration::from_secs(60);
            while fs::metadata(&index).unwrap().len().is_multiple_of(8192) {
                soon(|| missing(&cache));
                assert!(Instant::now() < end);
            }
            works_again(&cache);
        }
        "observer" => {
            let cache = open(dir);
            fill(&cache);
            drop(cache);
            let reader = Cache::builder(dir)
                .hot_bytes(0)
                .read_only(true)
                .handle_sigbus(true)
                .open()
                .unwrap();
            all_there(&reader);
            truncate(&dir.join("index"), 0);
            all_there(&reader);
        }
        "hints" => {
            let cache = open(dir);
            fill(&cache);
            truncate(&dir.join("hints"), 0);
            assert_eq!(missing(&cache).unwrap(), 0);
            fill(&cache);
            assert_eq!(missing(&cache).unwrap(), 0);
            drop(cache);
            all_there(&open(dir));
        }
        "blob" => {
            let cache = open(dir);
            let large = vec![7; 6 << 20];
            cache.set_bytes("large", &large, Timeout::Never).unwrap();
            let held = cache.get_bytes("large").unwrap().unwrap();
            let mut blobs = fs::read_dir(dir.join("blobs")).unwrap();
            truncate(&blobs.next().unwrap().unwrap().path(), 5000);
            assert_eq!(cache.get_bytes("large").unwrap(), None);
            assert!(held == large, "bytes in the hands of the program changed");
        }
        "bytes" => {
            let cache = open(dir);
            fill(&cache);
            let held: Vec<_> =
                (0..KEYS).map(|n| cache.get_bytes(&key(n)).unwrap().unwrap()).collect();
            segments(dir).iter().for_each(|path| truncate(path, 4096));
            soon(|| missing(&cache));
            assert!((0..).zip(&held).all(|(number, held)| *held == value(number)));
        }
        "one of two" => {
            let cache = open(dir);
            all_there(&cache);
            meet_parent();
            all_there(&cache);
            works_again(&cache);
        }
        "shut down" => {
            let cache = open(dir);
            fill(&cache);
            drop(cache);
            // Nothing of it is in memory.
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let cache = open(dir);
            meet_parent();
            for number in 0..KEYS {
                if let Ok(Some(found)) = cache.get_bytes(&key(number)) {
                    assert_eq!(found, value(number));
                }
                let _ = cache.set_bytes(&key(number), &value(number), Timeout::Never);
                if let Ok(Some(found)) = cache.get_bytes(&key(number)) {
                    assert_eq!(found, value(number));
                }
            }
        }
        "elsewhere" => {
            let _cache = open(dir);
            fault_in_own_file(dir);
        }
        "sent" => {
            let _cache = open(dir);
            // At the first one, the handler of Rust's library only removes itself.
            for _ in 0..2 {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap();
            }
        }
        "handler" | "handler, plain" => {
            install_own_handler(case == "handler");
            let cache = open(dir);
            fill(&cache);
            segments(dir).iter().for_each(|path| truncate(path, 4096));
            soon(|| missing(&cache));
            fault_in_own_file(dir);
        }
        _ => panic!("no such case: {case}"),
    }
}

extern "C" fn own_handler(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    assert!(signal == libc::SIGBUS && !info.is_null());
    plain_handler(signal);
}

#[expect(unsafe_code, reason = "a handler for SIGBUS ends the process")]
extern "C" fn plain_handler(_: c_int) {
    // SAFETY: may be called in a handler.
    unsafe { libc::_exit(HANDLED) }
}

#[expect(unsafe_code, reason = "the program has a handler for SIGBUS")]
fn install_own_handler(with_info: bool) {
    // SAFETY: zeros are a valid action, and the function is of the type that the flags say.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if with_info {
            let own: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = own_handler;
            (action.sa_sigaction, action.sa_flags) = (own as usize, libc::SA_SIGINFO);
        } else {
            let own: extern "C" fn(c_int) = plain_handler;
            action.sa_sigaction = own as usize;
        }
        assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Reads a mapped page that is behind the end of its file.
#[expect(unsafe_code, reason = "the program maps a file of its own")]
fn fault_in_own_file(dir: &Path) {
    use std::os::fd::AsRawFd;
    let own = dir.with_extension("own");
    fs::write(&own, "").unwrap();
    let file = fs::File::open(&own).unwrap();
    fs::remove_file(&own).unwrap();
    // SAFETY: a new mapping, of a page that is read once.
    unsafe {
        let fd = file.as_raw_fd();
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
        assert_ne!(page, libc::MAP_FAILED);
        std::hint::black_box(page.cast::<u8>().read_volatile());
    }
}
