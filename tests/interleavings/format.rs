//! The formats that the index needs, from the source of the library.

#[path = "../../src/engine/format/geometry.rs"]
pub(crate) mod geometry;
#[path = "../../src/engine/format/index_header.rs"]
pub(crate) mod index_header;
#[path = "../../src/engine/format/word.rs"]
pub(crate) mod word;
