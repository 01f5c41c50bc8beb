//! The life of a directory: opening, recovery, attaching, observing, detaching.

pub(crate) mod attach;
pub(crate) mod directory;
pub(crate) mod observer;
pub(crate) mod open;
pub(crate) mod recovery;
pub(crate) mod stream;
