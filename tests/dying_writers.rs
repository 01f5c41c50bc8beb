//! The bound on bytes while processes die: three processes stream values, store and evict. One is
//! killed at a named step, then the others, and three more come at once. A thread samples how much
//! is in use on a mount of their own: never more than `max_bytes`.
//!
//! Shows invariant I4.
#![cfg(test)]

#[path = "support/harness.rs"]
mod harness;
#[path = "support/mount.rs"]
#[expect(dead_code, reason = "this suite mounts nothing read-only")]
mod mount;
#[path = "support/points.rs"]
mod points;
#[path = "support/rng.rs"]
mod rng;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::Verdict;
use keepwarm::{Cache, Timeout};
use rng::Rng;

const MAX_BYTES: u64 = 8 << 20;
const PROCESSES: usize = 3;
/// How long the processes of a round work at most.
const ROUND: Duration = Duration::from_millis(800);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["watch", dir] => watch(Path::new(dir)),
        ["write", dir, seed, rest @ ..] => {
            if let [point, nth] = rest {
                die_at(point, nth.parse().unwrap());
            }
            write(Path::new(dir), seed.parse().unwrap());
        }
        _ => {
            return harness::main(&[(
                "the_bound_on_bytes_holds_while_writers_die",
                the_bound_on_bytes_holds_while_writers_die,
            )]);
        }
    }
    ExitCode::SUCCESS
}

fn the_bound_on_bytes_holds_while_writers_die() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    mount::run("mount -t tmpfs -o size=64m keepwarm \"$0\"", dir.path(), "watch")
}

/// The steps at which bytes are taken or given back.
fn steps() -> Vec<String> {
    let is_one = |name: &String| {
        ["blob::", "log::", "segment::", "snapshot::", "checkpoint::", "compact::"]
            .iter()
            .any(|part| name.starts_with(part))
    };
    points::all().into_iter().filter(is_one).collect()
}

/// The child on the mount: starts the writers, kills them, and samples.
fn watch(mount: &Path) {
    let mut rng = Rng::new(rng::seed());
    let (most, samples, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (mut reached, mut rounds) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                let found = nix::sys::statvfs::statvfs(mount).unwrap();
                let used = (found.blocks() - found.blocks_free()) * found.fragment_size();
                most.fetch_max(used, Ordering::AcqRel);
                samples.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let mut before: Vec<Child> = Vec::new();
        for step in steps() {
            let die = [step.clone(), (1 + rng.below(3)).to_string()];
            let mut writers: Vec<Child> = (0..PROCESSES)
                .map(|n| start(mount, rng.next(), (n == 0).then_some(&die)))
                .collect();
            // Those of the last round die while these come.
            before.iter_mut().for_each(end);
            let begun = Instant::now();
            while begun.elapsed() < ROUND && writers[0].try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            reached += u64::from(writers[0].try_wait().unwrap().is_some());
            rounds += 1;
            before = writers;
            let now = most.load(Ordering::Acquire);
            assert!(now <= MAX_BYTES, "{now} bytes of {MAX_BYTES} in use, when killed at {step}");
        }
        before.iter_mut().for_each(end);
        is_over.store(true, Ordering::Release);
    });
    let (most, samples) = (most.into_inner(), samples.into_inner());
    println!(
        "{rounds} rounds, {reached} processes killed at a step: at most {most} bytes of \
         {MAX_BYTES} in use, in {samples} samples"
    );
    assert!(most <= MAX_BYTES && most > MAX_BYTES / 2 && samples > 100 && reached > 0);
    let cache = open(mount);
    cache.maintain().unwrap();
    assert!(cache.check().unwrap().is_sound());
    let left = std::fs::read_dir(mount.join("cache/blobs")).unwrap();
    let is_part = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|e| e == "part");
    assert_eq!(left.map(Result::unwrap).filter(is_part).count(), 0, "unfinished files are left");
}

fn start(mount: &Path, seed: u64, die: Option<&[String; 2]>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("write").arg(mount).arg(seed.to_string());
    command.args(die.into_iter().flatten()).spawn().unwrap()
}

fn end(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn open(mount: &Path) -> Cache {
    Cache::builder(mount.join("cache")).max_bytes(MAX_BYTES).max_entries(2000).open().unwrap()
}

/// Kills this process when it reaches the step for the n-th time.
fn die_at(step: &str, nth: u64) {
    let left = AtomicU64::new(nth);
    let die = move || {
        if left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let me = nix::unistd::Pid::this();
            nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    };
    fail::cfg_callback(step, die).unwrap();
}

/// A writer: streams large values, and stores and replaces small ones, until it is killed.
fn write(mount: &Path, seed: u64) {
    let (mut rng, cache) = (Rng::new(seed), open(mount));
    let piece = vec![7; 50_000];
    loop {
        let key = format!("{}", rng.below(2000));
        // Some are refused: together they ask for more than there is.
        if rng.below(3) > 0 {
            let Ok(mut writer) = cache.writer(&key, Timeout::Never) else { continue };
            let pieces = 2 + rng.below(50);
            let written = (0..pieces).try_for_each(|_| writer.write_all(&piece));
            if written.is_ok() && rng.below(4) > 0 {
                let _ = writer.commit();
            }
        } else {
            for n in 0..20 {
                let _ = cache.set_bytes(&format!("{key} {n}"), &piece[..9000], Timeout::Never);
            }
        }
    }
}
