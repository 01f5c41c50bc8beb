//! The program that `scripts/instructions` runs under callgrind to count the instructions of calls.
//!
//! `instructions OPERATION` loads a cache on disk and then makes 20,000 calls of one operation in
//! the function [`measured`], the only one whose instructions are counted. Without an argument it
//! lists the operations. Instructions are nearly the same in each run, so a difference of one per
//! cent shows, which no clock on a shared machine can tell.

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::hint::black_box;
use std::process::ExitCode;

use keepwarm::{Cache, Durability, Timeout};

const CALLS: usize = 20_000;

/// One operation: its name, what is done for each key beforehand, and the calls that are counted.
struct Operation {
    name: &'static str,
    prepare: fn(&Cache, &str),
    call: fn(&Cache, &str),
}

const VALUE: &str = "a hundred bytes of text, which are enough for a small value and go into one \
                     record in the log. .";

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "get",
        prepare: set,
        call: |cache, key| assert!(cache.get::<String>(black_box(key)).unwrap().is_some()),
    },
    Operation {
        name: "get_bytes",
        prepare: |cache, key| cache.set_bytes(key, VALUE.as_bytes(), Timeout::Never).unwrap(),
        call: |cache, key| assert!(cache.get_bytes(black_box(key)).unwrap().is_some()),
    },
    Operation {
        name: "miss",
        prepare: |_, _| (),
        call: |cache, key| assert!(cache.get::<String>(black_box(key)).unwrap().is_none()),
    },
    Operation { name: "set, overwrite", prepare: set, call: set },
    Operation { name: "set, new key", prepare: |_, _| (), call: set },
    Operation {
        name: "incr",
        prepare: |cache, key| cache.set(key, &1, Timeout::Never).unwrap(),
        call: |cache, key| assert_eq!(cache.incr(black_box(key), 1).unwrap(), 2),
    },
    Operation {
        name: "delete + add",
        prepare: set,
        call: |cache, key| {
            assert!(cache.delete(black_box(key)).unwrap());
            assert!(cache.add(black_box(key), VALUE, Timeout::Never).unwrap());
        },
    },
];

fn set(cache: &Cache, key: &str) {
    cache.set(black_box(key), VALUE, Timeout::Never).unwrap();
}

/// `scripts/instructions` names this function to callgrind.
#[inline(never)]
fn measured(cache: &Cache, keys: &[String], call: fn(&Cache, &str)) {
    keys.iter().for_each(|key| call(cache, key));
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let name = std::env::args().skip(1).find(|argument| argument != "--bench");
    let Some(name) = name else {
        OPERATIONS.iter().for_each(|operation| println!("{}", operation.name));
        return ExitCode::SUCCESS;
    };
    let Some(operation) = OPERATIONS.iter().find(|operation| operation.name == name) else {
        println!("no operation {name}");
        return ExitCode::FAILURE;
    };

    let home = tempfile::tempdir().unwrap();
    let cache = Cache::builder(home.path())
        .max_bytes(256 << 20)
        .max_entries(100_000)
        .durability(Durability::Buffered)
        .open()
        .unwrap();
    let key = |n: usize| format!("key:{n:012}");
    // Neighbours, so that the index is as full for a new key as for one that is there.
    (0..CALLS).for_each(|n| set(&cache, &key(CALLS + n)));
    // Not in the order of the keys.
    let keys: Vec<String> = (0..CALLS).map(|n| key(n * 7919 % CALLS)).collect();
    keys.iter().for_each(|key| (operation.prepare)(&cache, key));
    measured(&cache, &keys, operation.call);
    ExitCode::SUCCESS
}
