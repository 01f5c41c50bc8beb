//! What the processes that share a directory do with each other beside the index: they count
//! bytes, claim computations, show statistics, wait for each other, and watch the index file.

pub(crate) mod accounting;
pub(crate) mod checkpoint_files;
pub(crate) mod claims;
pub(crate) mod index_watch;
pub(crate) mod meta_file;
pub(crate) mod read_only;
pub(crate) mod snapshot_file;
pub(crate) mod state_file;
pub(crate) mod stats_file;
pub(crate) mod wait_queue;
