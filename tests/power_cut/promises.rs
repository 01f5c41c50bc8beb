//! Promises about what is on the disk at a certain moment, each with a power cut at that moment.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keepwarm::observe::{self, Step};
use keepwarm::{Cache, Durability, Swap, Timeout};

use crate::alone;
use crate::disk::{Disk, Image};
use crate::home::home;
use crate::rng::{self, Rng};

/// Each cut leaves other sectors and names.
const CUTS: usize = 30;

fn open(root: &Path, durability: Durability) -> Cache {
    let builder = Cache::builder(root.join("cache")).max_bytes(4 << 20).max_entries(500);
    builder.hot_bytes(0).durability(durability).open().unwrap()
}

fn set(cache: &Cache, value: i64) {
    cache.set("a", &value, Timeout::Never).unwrap();
}

/// Opens the directory as power cuts at the moment of `image` leave it.
fn after_cuts(image: &Image, check: impl Fn(&Cache)) {
    let mut rng = Rng::new(rng::seed());
    for _ in 0..CUTS {
        let home = home();
        image.cut(home.path(), &mut rng);
        check(&open(home.path(), Durability::Buffered));
    }
}

/// A call that reports what it found and changes nothing.
struct Report {
    name: &'static str,
    prepare: fn(&Cache),
    /// What another thread changes meanwhile.
    change: fn(&Cache),
    /// Whether the call found the change.
    call: fn(&Cache) -> bool,
    /// What was reported.
    expected: Option<i64>,
}

const REPORTS: &[Report] = &[
    Report {
        name: "delete",
        prepare: |cache| set(cache, 1),
        change: |cache| assert!(cache.delete("a").unwrap()),
        call: |cache| !cache.delete("a").unwrap(),
        expected: None,
    },
    Report {
        name: "touch",
        prepare: |cache| set(cache, 1),
        change: |cache| assert!(cache.delete("a").unwrap()),
        call: |cache| !cache.touch("a", Timeout::Never).unwrap(),
        expected: None,
    },
    Report {
        name: "delete after a clear",
        prepare: |cache| set(cache, 1),
        change: |cache| cache.clear().unwrap(),
        call: |cache| !cache.delete("a").unwrap(),
        expected: None,
    },
    Report {
        name: "add",
        prepare: |_| (),
        change: |cache| set(cache, 1),
        call: |cache| !cache.add("a", &2, Timeout::Never).unwrap(),
        expected: Some(1),
    },
    Report {
        name: "compare_and_swap",
        prepare: |_| (),
        change: |cache| set(cache, 1),
        call: |cache| {
            let swap = cache.compare_and_swap("a", None, &2, Timeout::Never).unwrap();
            !matches!(swap, Swap::Stored(_))
        },
        expected: Some(1),
    },
];

// Shows invariant I36.
#[test]
fn what_a_sync_call_reports_is_on_the_disk() {
    let _alone = alone();
    for report in REPORTS {
        let home = home();
        let root = home.path().canonicalize().unwrap();
        let disk = Disk::new(&root);
        disk.watch(0);
        let cache = open(&root, Durability::Sync);
        (report.prepare)(&cache);
        let (image, has_begun) = (Arc::new(Mutex::new(None)), AtomicBool::new(false));
        let (other, taken, at_disk) = (cache.clone(), image.clone(), disk.clone());
        disk.watch_and(move |step| {
            // The change is published, and its sync has begun. A call in between must not return
            // before the sync has ended.
            if !matches!(step, Step::Syncing(_)) || has_begun.swap(true, Ordering::SeqCst) {
                return;
            }
            let (tell, told) = mpsc::channel();
            let (call, other) = (report.call, other.clone());
            std::thread::spawn(move || tell.send(call(&other)));
            if told.recv_timeout(Duration::from_millis(300)) == Ok(true) {
                *taken.lock().unwrap() = Some(at_disk.image(|| ()).0);
            }
        });
        (report.change)(&cache);
        observe::observe(None);
        assert!((report.call)(&cache), "{}", report.name);
        if let Some(image) = image.lock().unwrap().take() {
            after_cuts(&image, |cache| {
                let found = cache.get::<i64>("a").unwrap();
                assert_eq!(found, report.expected, "{} had reported otherwise", report.name);
            });
        }
    }
}

// Shows invariant I37.
#[test]
fn what_a_killed_process_wrote_is_synced_by_the_next() {
    let _alone = alone();
    let (first, second) = (home(), home());
    let seldom = Durability::Interval(Duration::from_secs(3600));
    let key = |n: u8| format!("key {n}");
    let root = first.path().canonicalize().unwrap();
    let disk = Disk::new(&root);
    disk.watch(0);
    let cache = open(&root, seldom);
    // In more segments than the one that the next process continues.
    for n in 0..50 {
        cache.set_bytes(&key(n), &[n; 5000], Timeout::Never).unwrap();
    }
    assert!(!disk.has_all_below(Path::new("cache/segments")), "the test must find it unsynced");
    let (killed, ..) = disk.image(|| ());
    let root = second.path().canonicalize().unwrap();
    killed.kill(&root);
    let disk = Disk::after_kill(&root, &killed);
    disk.watch(0);
    let next = open(&root, seldom);
    let begun = Instant::now();
    while !disk.has_all_below(Path::new("cache/segments")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not synced");
        std::thread::yield_now();
    }
    let (image, ..) = disk.image(|| ());
    observe::observe(None);
    drop((cache, next));
    after_cuts(&image, |cache| {
        for n in 0..50 {
            let found = cache.get_bytes(&key(n)).unwrap();
            assert!(found.as_deref() == Some(&[n; 5000]), "{} is lost", key(n));
        }
    });
}
