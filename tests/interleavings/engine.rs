//! The index, from the source of the library, over the floor in [`crate::sys`].

#[expect(dead_code, unused_imports, reason = "the scenarios use the part that processes share")]
#[path = "../../src/engine/index/mod.rs"]
pub(crate) mod index;

pub(crate) mod record {
    pub(crate) const ALIGN: usize = 8;
}

pub(crate) mod segment {
    /// The same each time: whoever explores wants no chance in it. The index sees to it that it differs from the last.
    pub(crate) fn random() -> std::io::Result<u64> {
        Ok(7)
    }
}

mod snapshot {
    pub(super) fn file_len(_: super::index::Geometry) -> u64 {
        0
    }
}
