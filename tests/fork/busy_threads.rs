//! Forks while other threads of the parent run every operation of the cache, whatever locks they
//! hold at that moment.
//!
//! Shows invariant I31.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use keepwarm::{Cache, Timeout};

use crate::child::child;
use crate::harness::Verdict;
use crate::home::home;
use crate::inherited::builder;

const FORKS: u64 = 200;
/// Increments of each child.
const TIMES: i64 = 20;

/// Repeats `call` until `stop` is set.
fn repeat(stop: &AtomicBool, call: impl Fn(u64)) {
    (0..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(call);
}

/// Stops the threads when the test ends or panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The work of a child. All of it must succeed, whatever the parent's threads were doing.
fn live(cache: &Cache, n: u64) {
    for _ in 0..TIMES {
        cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap();
    }
    let key = format!("child {n}");
    cache.set(&key, &n, Timeout::Never).unwrap();
    assert_eq!(cache.get(&key).unwrap(), Some(n));
    // The parent and other children may be computing it.
    cache.get_or_set(&format!("computed {}", n % 7), Duration::from_millis(1), || n).unwrap();
    let lease = cache.lease(&format!("lease {n}"), Duration::from_secs(60)).unwrap().unwrap();
    assert!(lease.release().unwrap());
    assert!(cache.delete(&key).unwrap());
    match n % 40 {
        0 => cache.maintain().unwrap(),
        1..10 => cache.flush().unwrap(),
        10..20 => cache.close().unwrap(),
        _ => {}
    }
}

pub(crate) fn fork_beside_them() -> Verdict {
    // On a fast file system: the wait for a process that frees space has a time-out, and a slow
    // disk must not exhaust it.
    let home = home();
    let cache = builder(&home.path().join("cache")).open().unwrap();
    cache.set_bytes("held", &[7; 60_000], Timeout::Never).unwrap();
    let (stop, counted) = (AtomicBool::new(false), AtomicI64::new(0));
    let started = Instant::now();
    let count = |_| {
        cache.incr_or_init("count", 1, 0, Timeout::Never).unwrap();
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let write = |n: u64| {
        cache.set_bytes(&format!("value {}", n % 100), &[9; 3000], Timeout::Never).unwrap()
    };
    // Large enough that a read returns a view into the mapped segment.
    let held = || cache.get_bytes("held").unwrap();
    let read = |n: u64| {
        drop(held());
        drop(cache.get_bytes(&format!("value {}", n % 100)).unwrap());
        drop(cache.get_shared::<u64>(&format!("computed {}", n % 7)).unwrap());
    };
    let compute = |n: u64| {
        cache.get_or_set(&format!("computed {}", n % 7), Duration::from_millis(1), || n).unwrap();
        drop(cache.lease("lease", Duration::from_secs(60)).unwrap());
    };
    let look_after = |n: u64| match n % 30 {
        0 => cache.maintain().unwrap(),
        1 => cache.flush().unwrap(),
        // The next call of any thread attaches again.
        _ => cache.close().unwrap(),
    };
    let calls: [&(dyn Fn(u64) + Sync); 5] = [&count, &write, &read, &compute, &look_after];
    let stop = &stop;
    std::thread::scope(|scope| {
        for call in calls {
            scope.spawn(move || repeat(stop, call));
        }
        let _stop = Stop(stop);
        for n in 0..FORKS {
            let mut bytes = held();
            child(|| {
                drop(bytes.take());
                live(&cache, n);
            })
            .finish();
        }
    });
    let all = counted.load(Ordering::Relaxed) + FORKS as i64 * TIMES;
    assert_eq!(
        cache.get("count").unwrap(),
        Some(all),
        "increments of the parent and of all children"
    );
    let report = cache.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.problems);
    println!(
        "{FORKS} forks beside five busy threads in {:.1?}: {all} increments, exact",
        started.elapsed()
    );
    Ok(())
}
