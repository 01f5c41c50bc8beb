//! A parent is killed while its child lives: nothing of the parent's stays locked.
//!
//! Shows invariants I22 and I31.

use std::path::Path;
use std::time::{Duration, Instant};

use keepwarm::{Cache, Timeout};

use crate::family::{Child, Line, child};
use crate::harness::Verdict;
use crate::inherited::builder;
use crate::locks::first_held;

/// Longer than anything takes on a busy machine, and shorter than a process waits for another one that was stopped.
const MOST: Duration = Duration::from_secs(20);
/// Longer than any test takes.
const FOR_EVER: Duration = Duration::from_secs(600);

/// A process that has a child, and the child's life: it is told how to end.
struct Parent {
    process: Option<Child>,
    ends_child: Line,
    child_said: Line,
}

impl Parent {
    /// Opens the directory and does `before`, then forks a child, which does `inherited`, then does `after`.
    fn start(
        dir: &Path,
        before: impl FnOnce(&Cache),
        inherited: impl FnOnce(&Cache),
        after: impl FnOnce(&Cache),
    ) -> Self {
        let [is_ready, ends_child, child_said] = [(); 3].map(|()| Line::new());
        let process = child(|| {
            let cache = builder(dir).open().unwrap();
            before(&cache);
            let forked = child(|| {
                inherited(&cache);
                child_said.say(1);
                ends_child.hear();
                // It could still use what it has.
                cache.set("the child's", &1, Timeout::Never).unwrap();
                child_said.say(2);
            });
            is_ready.say(1);
            after(&cache);
            forked.finish();
        });
        is_ready.hear();
        Self { process: Some(process), ends_child, child_said }
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn end_child(&self) {
        self.ends_child.say(1);
        assert_eq!(self.child_said.hear(), 2, "the child was alive, and its cache works");
    }
}

pub(crate) fn a_killed_parent_holds_nothing() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    // The lease is kept by the parent for good.
    let hold = |cache: &Cache| {
        std::mem::forget(cache.lease("lease", Duration::from_secs(600)).unwrap().unwrap());
        cache.set("key", &1, Timeout::Never).unwrap();
    };
    let mut parent = Parent::start(&dir, hold, |_| {}, |_| std::thread::sleep(FOR_EVER));
    assert_eq!(parent.child_said.hear(), 1);
    assert_eq!(first_held(&dir.join("locks")), Some(1), "the parent's number");
    assert!(first_held(&dir.join("flights")).is_some(), "the parent's lease");
    parent.kill();
    for file in ["locks", "flights"] {
        assert_eq!(first_held(&dir.join(file)), None, "{file}: the child keeps nothing");
    }
    let cache = builder(&dir).open().unwrap();
    assert_eq!(first_held(&dir.join("locks")), Some(1), "the number is another's");
    assert_eq!(cache.get("key").unwrap(), Some(1));
    let lease = cache.lease("lease", Duration::from_secs(600)).unwrap();
    assert!(lease.is_some(), "the lease is free");
    parent.end_child();
    assert_eq!(cache.get("the child's").unwrap(), Some(1));
    assert!(cache.check().unwrap().is_sound());
    Ok(())
}

pub(crate) fn a_child_goes_on() -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let asks = Line::new();
    let compute = |cache: &Cache| {
        asks.say(1);
        let value = cache.get_or_set("slow", Timeout::Never, || "the child's".to_owned()).unwrap();
        assert_eq!(value, "the child's");
    };
    // The parent has computed nothing when it is killed.
    let never = |cache: &Cache| {
        cache
            .get_or_set("slow", Timeout::Never, || {
                std::thread::sleep(FOR_EVER);
                String::new()
            })
            .unwrap();
    };
    let begun = Line::new();
    let inherited = |cache: &Cache| {
        begun.hear();
        compute(cache);
    };
    let mut parent = Parent::start(&dir, |_| {}, inherited, never);
    // It has the claim.
    while !dir.join("flights").exists() || first_held(&dir.join("flights")).is_none() {
        std::thread::yield_now();
    }
    begun.say(1);
    asks.hear();
    parent.kill();
    let started = Instant::now();
    assert_eq!(parent.child_said.hear(), 1);
    assert!(started.elapsed() < MOST, "it computed after {:?}", started.elapsed());
    parent.end_child();
    Ok(())
}

#[cfg(feature = "failpoints")]
pub(crate) fn buckets_are_taken_over() -> Verdict {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("cache");
    let cache = builder(&dir).open().unwrap();
    cache.set("key", &1, Timeout::Never).unwrap();
    // Dies with the bucket locked.
    let die = |cache: &Cache| {
        fail::cfg_callback("commit::stamped", || kill(Pid::this(), Signal::SIGKILL).unwrap())
            .unwrap();
        cache.set("key", &2, Timeout::Never).unwrap();
    };
    let mut parent = Parent::start(&dir, |_| {}, |_| {}, die);
    assert_eq!(parent.child_said.hear(), 1);
    parent.process.take().unwrap().see_killed();
    let started = Instant::now();
    assert_eq!(cache.get("key").unwrap(), Some(1));
    cache.set("key", &3, Timeout::Never).unwrap();
    assert!(started.elapsed() < MOST, "the bucket was taken over after {:?}", started.elapsed());
    parent.end_child();
    assert_eq!(cache.get("key").unwrap(), Some(3));
    assert!(cache.check().unwrap().is_sound());
    Ok(())
}
