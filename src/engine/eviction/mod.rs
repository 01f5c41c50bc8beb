//! The eviction policies: pure decisions on hints and fingerprints, without I/O. [`policy`] decides
//! which entries a cull evicts; [`ghosts`] remembers evicted entries and adapts the policy.

pub(crate) mod ghosts;
pub(crate) mod policy;
