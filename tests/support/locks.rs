//! Queries of the locks on a file.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// The first byte of the file at `path` that is locked through any open file.
pub(crate) fn first_held(path: &Path) -> Option<i64> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut query = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut query)).unwrap();
    (query.l_type != libc::F_UNLCK as libc::c_short).then_some(query.l_start)
}
