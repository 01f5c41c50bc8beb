//! keepwarm: an embeddable, persistent, crash-safe cache that lives in a directory.

#[cfg(not(target_os = "linux"))]
compile_error!("keepwarm supports Linux only for now");

mod backend;
mod error;
mod options;
mod time;

pub use backend::Stats;
pub use error::{Error, ErrorKind, Result};
pub use options::Durability;
#[cfg(any(test, feature = "test-util"))]
pub use time::ManualClock;
pub use time::{Clock, SystemClock, Timestamp};
