//! The formats: what each thing on disk looks like, byte by byte. Encodes and decodes; knows no
//! engine.

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
