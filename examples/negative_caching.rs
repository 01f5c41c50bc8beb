//! Negative caching: the cache also remembers that something does not exist.
//!
//!     cargo run --example negative_caching [-- DIR]
//!
//! Without it, every request for something absent reaches the database, and there may be many:
//! mistyped addresses, deleted pages, a client that tries all numbers.

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

use std::cell::Cell;
use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use keepwarm::{Cache, ManualClock};

/// Stands for a slow database. Counts its queries.
struct Database {
    users: Vec<(u32, &'static str)>,
    queries: Cell<u32>,
}

impl Database {
    fn user(&self, id: u32) -> Option<String> {
        self.queries.set(self.queries.get() + 1);
        self.users.iter().find(|(known, _)| *known == id).map(|(_, name)| (*name).to_owned())
    }
}

/// Long, because users change rarely.
const FOUND: Duration = Duration::from_secs(3600);
/// Short, because an absent user may sign up at any moment and should soon be found.
const ABSENT: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    // A clock that moves only when told to, so that this example need not wait.
    let clock = ManualClock::new();
    let cache = Cache::builder(dir).clock(clock.clone()).open()?;
    cache.clear()?;

    let mut database = Database { users: vec![(1, "Ada"), (2, "Grace")], queries: Cell::new(0) };
    let user = |database: &Database, id: u32| {
        cache.get_or_set_option(&format!("user {id}"), FOUND, ABSENT, || database.user(id))
    };

    for id in [1, 3] {
        let before = database.queries.get();
        for _ in 0..1000 {
            user(&database, id)?;
        }
        let queries = database.queries.get() - before;
        println!("user {id}, 1000 lookups: {:?}, {queries} query", user(&database, id)?);
    }
    println!("user 1 is kept for {:?}", cache.ttl("user 1")?);
    println!("user 3 is kept for {:?}", cache.ttl("user 3")?);

    // A plain `get` distinguishes "known not to exist" from "not known".
    println!("\nuser 3: {:?}", cache.get::<Option<String>>("user 3")?);
    println!("user 4: {:?}", cache.get::<Option<String>>("user 4")?);

    database.users.push((3, "Katherine"));
    println!("\nuser 3 signs up; the cached absence is still served: {:?}", user(&database, 3)?);
    clock.advance(ABSENT);
    println!("{} seconds later: {:?}", ABSENT.as_secs(), user(&database, 3)?);

    // Alternatively, the code that adds a user deletes the cached absence.
    println!("\nuser 5: {:?}", user(&database, 5)?);
    database.users.push((5, "Hedy"));
    cache.delete("user 5")?;
    println!("user 5, added and its entry deleted: {:?}", user(&database, 5)?);
    Ok(())
}
