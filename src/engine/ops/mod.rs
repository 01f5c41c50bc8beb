//! The operations of the engine, one file each: every file here is an `impl Engine`.

pub(crate) mod background;
pub(crate) mod blobs;
mod candidates;
pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod clear;
pub(crate) mod commit;
pub(crate) mod compaction;
mod configure;
pub(crate) mod cull;
pub(crate) mod evict;
pub(crate) mod lookup;
pub(crate) mod read;
pub(crate) mod reclaim;
mod reserve;
pub(crate) mod space_role;
mod stats;
pub(crate) mod undo;
