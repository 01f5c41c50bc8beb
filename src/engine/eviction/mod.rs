//! The eviction policies: pure decisions on hints and fingerprints, without I/O.

pub(crate) mod ghosts;
pub(crate) mod policy;
