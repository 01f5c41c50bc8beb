//! A cache that is still warm after a restart.
//!
//! keepwarm is embedded in a program and stores its entries in a directory. It has the low-level
//! cache API that Django made familiar (get, set, add, touch, incr, versions, many), for values of
//! any type that [serde](https://serde.rs) can serialize. Use it where you would use a map in
//! memory, if that survived the process, and where you do not want to run a server:
//!
//! - **Warm at once.** Acknowledged writes survive the death of the process, `kill -9` included,
//!   and a cache need not be closed. A power cut costs at most what [`Durability`] allows.
//! - **Bounded.** Neither [`max_entries`](Builder::max_entries) nor
//!   [`max_bytes`](Builder::max_bytes) is ever exceeded. At `max_entries` the least recently used
//!   entries are evicted.
//! - **Shared.** Up to 1,024 processes open the same directory, without a server. What one of them
//!   stores or deletes, all others see. A process that dies blocks no other.
//! - **Computed once.** [`get_or_set`](Cache::get_or_set) calls its closure once, however many
//!   threads of all these processes miss the key at the same time.
//! - **Exact.** Counters, [`add`](Cache::add), [leases](Cache::lease) and
//!   [`compare_and_swap`](Cache::compare_and_swap) are atomic across all of them.
//! - **Safe to read.** Values are MessagePack: reading one runs no code, and a damaged record is a
//!   miss.
//!
//! # Quick start
//!
//! ```
//! use keepwarm::{Cache, Timeout};
//! use serde::{Deserialize, Serialize};
//! use std::time::Duration;
//!
//! #[derive(Serialize, Deserialize)]
//! struct User {
//!     name: String,
//!     logins: u64,
//! }
//!
//! # fn main() -> keepwarm::Result<()> {
//! let cache = Cache::in_memory(); // or Cache::open("/var/cache/app")?, which survives a restart
//!
//! cache.set("user 7", &User { name: "Ada".into(), logins: 1 }, Duration::from_secs(60))?;
//! let user: Option<User> = cache.get("user 7")?;
//! assert_eq!(user.unwrap().name, "Ada");
//!
//! let report = cache.get_or_set("report", Timeout::Default, || "a slow computation".to_owned())?;
//! assert_eq!(report.len(), 18);
//!
//! cache.incr_or_init("visits", 1, 0, Timeout::Never)?;
//! assert_eq!(cache.get::<u64>("visits")?, Some(1));
//! # Ok(())
//! # }
//! ```
//!
//! # Which cache
//!
//! | | stored in | for |
//! |---|---|---|
//! | [`Cache::open`] | a directory | production |
//! | `Builder::sled` | a [sled](https://docs.rs/sled/0.34.7) tree (feature `sled`) | programs that already store their data in sled |
//! | [`Cache::in_memory`] | this process | tests, and entries that need not survive |
//! | [`Cache::dummy`] | nowhere | development |
//! | [`Cache::with_backend`] | your own store, by the trait [`backend::Backend`] | other stores |
//!
//! [`Builder`] has the options for all of them. For async code on tokio, `AsyncCache` (feature
//! `async`) has the same calls for any of them.
//!
//! # Features
//!
//! | feature | default | what it brings | what it costs |
//! |---|---|---|---|
//! | `test-util` | no | for the tests of your program: a clock that moves only when told to (`ManualClock`), temporary caches (`testing::TempCache`), and the conformance suite for backends (`testing::backend_contract`) | nothing |
//! | `async` | no | `AsyncCache`, for programs on tokio | tokio (its runtime only) |
//! | `sled` | no | `Builder::sled`: a cache in a sled tree | sled and its dependencies: 13 crates |
//! | `cli` | no | the command line tool `keepwarm` | clap, serde_json |
//! | `failpoints` | no | named points in the code where a test can inject an error; never for production | fail |

#![cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "the engine needs Linux"))]

/// Runs the examples of the README and the tutorial as documentation tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/tutorial.md")]
    struct Tutorial;
}

pub mod backend;
mod cache;
mod codec;
#[cfg(target_os = "linux")]
mod engine;
mod entry;
mod error;
#[cfg(all(feature = "fuzzing", target_os = "linux"))]
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod key;
mod limits;
mod options;
mod sys;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
mod time;
mod timeout;

#[cfg(feature = "async")]
pub use cache::{AsyncCache, AsyncIter, AsyncKeys, AsyncLease};
pub use cache::{
    Builder, Cache, ComputeError, Entry, Iter, Keys, Lease, Reader, Swap, Token, Writer,
};
pub use entry::{CheckReport, ProcessStats, Stats};
pub use error::{Error, ErrorKind, Result};
pub use key::hash_long_keys;
pub use limits::{Limits, NewLimits};
pub use options::{Durability, Eviction};
#[cfg(all(feature = "failpoints", target_os = "linux"))]
#[doc(hidden)]
pub use sys::observe;
#[cfg(all(feature = "failpoints", target_os = "linux"))]
#[doc(hidden)]
pub use sys::storage::faults;
#[cfg(any(test, feature = "test-util"))]
pub use time::ManualClock;
pub use time::{Clock, SystemClock, Timestamp};
pub use timeout::{Lifespan, Timeout, Ttl};
