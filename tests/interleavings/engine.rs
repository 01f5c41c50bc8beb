//! The index, from the source of the library, over the replacement in [`crate::sys`].

#[expect(dead_code, reason = "the scenarios use the part that processes share")]
#[path = "format.rs"]
pub(crate) mod format;
#[expect(dead_code, unused_imports, reason = "the scenarios use the part that processes share")]
#[path = "../../src/engine/index/mod.rs"]
pub(crate) mod index;
