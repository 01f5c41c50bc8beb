//! Who else can change a directory: mode and owner, as `ssh` looks at its files.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use crate::sys::storage::{Access, Storage, own_user};

/// Refuses a directory that other users can change, unless the options allow it. The directory need
/// not exist yet; `names` are those of its files. An observer may read the files of another user.
pub(crate) fn refuse_other_users(
    storage: &'static dyn Storage,
    path: &Path,
    names: [&[&str]; 2],
    options: &Options,
    access: Access,
) -> Result<()> {
    const ROOT: u32 = 0;
    const OTHERS_WRITE: u32 = 0o022;
    if options.allow_other_users {
        return Ok(());
    }
    // What is not a directory is refused as such.
    if !storage.stat_path(path).is_ok_and(|found| found.is_dir) {
        return Ok(());
    }
    let own_user = own_user();
    let files = names.into_iter().flatten().map(|name| path.join(name));
    for path in std::iter::once(path.to_owned()).chain(files) {
        let found = match storage.stat_path(&path) {
            Ok(found) => found,
            // What is not there, or cannot be reached, is refused later or not at all.
            Err(_) => continue,
        };
        let is_of_other = found.owner != own_user && found.owner != ROOT;
        let why = if found.mode & OTHERS_WRITE != 0 {
            format!("its mode is {:04o}", found.mode)
        } else if is_of_other && access == Access::ToWrite {
            format!("user {} owns it, and this process runs as user {own_user}", found.owner)
        } else {
            continue;
        };
        return Err(Error::new(ErrorKind::NotPrivate, "open").with_path(&path).with_source(why));
    }
    Ok(())
}
