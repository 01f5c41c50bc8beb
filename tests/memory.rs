//! A cache larger than the memory that its process may use: a get reads little more from the disk
//! than what it returns.
//!
//! `KEEPWARM_MEMORY_MIB` sets the memory in MiB; the values take two and a half times as much.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use harness::Verdict;
use keepwarm::{Cache, Timeout};

/// Set for the child that runs with little memory: the directory.
const DIR: &str = "KEEPWARM_MEMORY_DIR";
/// The gets that are measured, after as many that are not.
const GETS: u64 = 2000;
/// The most bytes that a get of a kilobyte may read from the disk, on average. Without advice it is
/// megabytes.
const MOST_READ: u64 = 64 << 10;

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(DIR) {
        in_child(Path::new(&dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[("a_cache_larger_than_memory_reads_little", larger_than_memory)])
}

fn mib() -> u64 {
    std::env::var("KEEPWARM_MEMORY_MIB").map_or(64, |mib| mib.parse().unwrap())
}

fn keys() -> u64 {
    (mib() << 10) * 5 / 2
}

/// A control group for one process. Dropping it removes it.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Result<Self, &'static str> {
        let name = format!("keepwarm-{}", std::process::id());
        let kinds =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (mount, limit) in kinds {
            let group = Path::new(mount).join(&name);
            if fs::create_dir(&group).is_ok() {
                let group = Self(group);
                if fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                    return Ok(group);
                }
            }
        }
        Err("needs root and control groups of memory")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir(&self.0) {
            println!("cannot remove {}: {e}", self.0.display());
        }
    }
}

fn open(dir: &Path) -> Cache {
    let bytes = (mib() << 20) * 4;
    Cache::builder(dir).max_bytes(bytes).max_entries(2 * keys()).hot_bytes(0).open().unwrap()
}

fn larger_than_memory() -> Verdict {
    let group = Group::new(mib() << 20)?;
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for key in 0..keys() {
        cache.set_bytes(&key.to_string(), &[key as u8; 1024], Timeout::Never).unwrap();
    }
    cache.flush().unwrap();
    drop(cache);
    // What is in memory now counts for the group of this process.
    for segment in fs::read_dir(dir.path().join("segments")).unwrap() {
        let file = fs::File::open(segment.unwrap().path()).unwrap();
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }
    let enter = "echo $$ > \"$0\"/cgroup.procs && exec \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter]).arg(&group.0).arg(std::env::current_exe().unwrap());
    let status = command.env(DIR, dir.path()).status().unwrap();
    assert!(status.success(), "{status}");
    Ok(())
}

/// The bytes that this process has caused to be read from the disk.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse().unwrap()
}

fn in_child(dir: &Path) {
    let cache = open(dir);
    let mut at = 0;
    let mut get = || {
        for _ in 0..GETS {
            // Every key is asked for once, in an order that is none.
            at = (at + 7_368_787) % keys();
            let found = cache.get_bytes(&at.to_string()).unwrap().unwrap();
            assert_eq!(found[..], [at as u8; 1024]);
        }
    };
    get();
    let (before, started) = (bytes_read(), Instant::now());
    get();
    let (read, seconds) = (bytes_read() - before, started.elapsed().as_secs_f64());
    println!("{:.0} gets a second, {} bytes read for each", GETS as f64 / seconds, read / GETS);
    assert!(read / GETS <= MOST_READ, "{} bytes were read for a get", read / GETS);
}
