//! Temporary directories in memory.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// A temporary directory in memory if there is enough space, so that a sync costs nothing. A kill
/// leaves the same state as on a disk.
pub(crate) fn home() -> TempDir {
    const ROOM: u64 = 56 << 20;
    let memory = Path::new("/dev/shm");
    let has_room =
        statvfs(memory).is_ok_and(|fs| fs.blocks_available() * fs.fragment_size() >= ROOM);
    let in_memory = has_room.then(|| tempfile::tempdir_in(memory).ok()).flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}
