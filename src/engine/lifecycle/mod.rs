//! The life of a directory: opening, recovery, attaching, observing, detaching.

pub(crate) mod attach;
pub(crate) mod base;
pub(crate) mod closed;
pub(crate) mod directory;
pub(crate) mod evidence;
mod footprint;
pub(crate) mod observer;
pub(crate) mod open;
pub(crate) mod presence;
mod privacy;
pub(crate) mod recovery;
pub(crate) mod registry;
pub(crate) mod stream;
