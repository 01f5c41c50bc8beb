//! The formats: the bytes of each file of a cache. Each module draws its layout, encodes and
//! decodes it. None knows the engine.

pub(crate) mod blob_ref;
pub(crate) mod geometry;
pub(crate) mod index_header;
pub(crate) mod meta;
pub(crate) mod record;
pub(crate) mod segment_header;
pub(crate) mod sizing;
pub(crate) mod snapshot;
pub(crate) mod state;
pub(crate) mod word;
