//! A parent that is killed while its child lives: none of the parent's locks stays held.
//!
//! Shows invariants I22 and I31.

use std::path::Path;
use std::time::{Duration, Instant};

use keepwarm::{Cache, Timeout};

use crate::child::{Child, Pipe, child};
use crate::harness::Verdict;
use crate::inherited::builder;
use crate::locks::first_held;

/// Longer than an operation takes on a busy machine, and shorter than a process waits for one that
/// is stopped.
const MOST: Duration = Duration::from_secs(20);
/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_secs(600);

/// A process that has a child, and the pipes to and from that child.
struct Parent {
    process: Option<Child>,
    ends_child: Pipe,
    child_said: Pipe,
}

impl Parent {
    /// Starts a process that opens the directory, runs `before`, forks a child that runs
    /// `inherited`, and then runs `after`.
    fn start(
        dir: &Path,
        before: impl FnOnce(&Cache),
        inherited: impl FnOnce(&Cache),
        after: impl FnOnce(&Cache),
    ) -> Self {
        let [is_ready, ends_child, child_said] = [(); 3].map(|()| Pipe::new());
        let process = child(|| {
            let cache = builder(dir).open().unwrap();
            before(&cache);
            let forked = child(|| {
                inherited(&cache);
                child_said.send(1);
                ends_child.receive();
                // The inherited cache still works.
                cache.set("the child's", &1, Timeout::Never).unwrap();
                child_said.send(2);
            });
            is_ready.send(1);
            after(&cache);
            forked.finish();
        });
        is_ready.receive();
        Self { process: Some(process), ends_child, child_said }
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn end_child(&self) {
        self.ends_child.send(1);
        assert_eq!(self.child_said.receive(), 2, "the child was alive, and its cache works");
    }
}

pub(crate) fn holds_nothing() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    // The parent never releases the lease.
    let hold = |cache: &Cache| {
        std::mem::forget(cache.lease("lease", Duration::from_secs(600)).unwrap().unwrap());
        cache.set("key", &1, Timeout::Never).unwrap();
    };
    let mut parent = Parent::start(&dir, hold, |_| {}, |_| std::thread::sleep(FOR_EVER));
    assert_eq!(parent.child_said.receive(), 1);
    assert_eq!(first_held(&dir.join("locks")), Some(1), "the parent's slot");
    assert!(first_held(&dir.join("flights")).is_some(), "the parent's lease");
    parent.kill();
    for file in ["locks", "flights"] {
        assert_eq!(first_held(&dir.join(file)), None, "{file}: the child holds no lock");
    }
    let cache = builder(&dir).open().unwrap();
    assert_eq!(first_held(&dir.join("locks")), Some(1), "this process reuses the slot");
    assert_eq!(cache.get("key").unwrap(), Some(1));
    let lease = cache.lease("lease", Duration::from_secs(600)).unwrap();
    assert!(lease.is_some(), "the lease is free");
    parent.end_child();
    assert_eq!(cache.get("the child's").unwrap(), Some(1));
    assert!(cache.check().unwrap().is_sound());
    Ok(())
}

pub(crate) fn computation() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let asks = Pipe::new();
    let compute = |cache: &Cache| {
        asks.send(1);
        let value = cache.get_or_set("slow", Timeout::Never, || "the child's".to_owned()).unwrap();
        assert_eq!(value, "the child's");
    };
    // The parent is killed before its computation ends.
    let never = |cache: &Cache| {
        cache
            .get_or_set("slow", Timeout::Never, || {
                std::thread::sleep(FOR_EVER);
                String::new()
            })
            .unwrap();
    };
    let begun = Pipe::new();
    let inherited = |cache: &Cache| {
        begun.receive();
        compute(cache);
    };
    let mut parent = Parent::start(&dir, |_| {}, inherited, never);
    // Wait until the parent holds the claim.
    while !dir.join("flights").exists() || first_held(&dir.join("flights")).is_none() {
        std::thread::yield_now();
    }
    begun.send(1);
    asks.receive();
    parent.kill();
    let started = Instant::now();
    assert_eq!(parent.child_said.receive(), 1);
    assert!(started.elapsed() < MOST, "the child computed after {:?}", started.elapsed());
    parent.end_child();
    Ok(())
}

#[cfg(feature = "failpoints")]
pub(crate) fn bucket_lock() -> Verdict {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    cache.set("key", &1, Timeout::Never).unwrap();
    // Kills the parent while it holds the chain lock.
    let die = |cache: &Cache| {
        fail::cfg_callback("commit::stamped", || kill(Pid::this(), Signal::SIGKILL).unwrap())
            .unwrap();
        cache.set("key", &2, Timeout::Never).unwrap();
    };
    let mut parent = Parent::start(&dir, |_| {}, |_| {}, die);
    assert_eq!(parent.child_said.receive(), 1);
    parent.process.take().unwrap().wait_killed();
    let started = Instant::now();
    assert_eq!(cache.get("key").unwrap(), Some(1));
    cache.set("key", &3, Timeout::Never).unwrap();
    assert!(started.elapsed() < MOST, "the lock was taken over after {:?}", started.elapsed());
    parent.end_child();
    assert_eq!(cache.get("key").unwrap(), Some(3));
    assert!(cache.check().unwrap().is_sound());
    Ok(())
}
