//! keepwarm: an embeddable, persistent, crash-safe cache that lives in a directory.

#[cfg(not(target_os = "linux"))]
compile_error!("keepwarm supports Linux only for now");

mod backend;
mod codec;
mod engine;
mod entry;
mod error;
mod hash;
mod key;
mod options;
mod sys;
mod time;
mod timeout;

pub use engine::CheckReport;
pub use entry::Stats;
pub use error::{Error, ErrorKind, Result};
pub use key::hash_long_keys;
pub use options::Durability;
#[cfg(any(test, feature = "test-util"))]
pub use time::ManualClock;
pub use time::{Clock, SystemClock, Timestamp};
pub use timeout::{Timeout, Ttl};
