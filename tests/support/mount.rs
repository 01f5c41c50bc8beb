//! Mounts in a new mount namespace, which other processes do not see.

use std::path::Path;
use std::process::Command;

use crate::harness::Verdict;

/// The shell commands that mount `$0` read-only.
pub(crate) const READ_ONLY: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";

/// Starts this program again with `role` and `dir`, in a new mount namespace. The shell commands
/// `script` run there first, with `dir` as `$0`: as root, or as root of a new user namespace.
pub(crate) fn run(script: &str, dir: &Path, role: &str) -> Verdict {
    let status = command(script, dir, role)?.status().unwrap();
    assert!(status.success(), "{role} failed: {status}");
    Ok(())
}

/// The command for [`run`]. Tries first whether this user may run `script`.
pub(crate) fn command(script: &str, dir: &Path, role: &str) -> Result<Command, &'static str> {
    let inside = |flags: &str, script: &str| {
        let mut command = Command::new("unshare");
        command.args([flags, "sh", "-c", script]).arg(dir);
        command
    };
    let may =
        |flags: &&str| inside(flags, script).output().is_ok_and(|output| output.status.success());
    let Some(flags) = ["-m", "-Urm"].into_iter().find(may) else {
        return Err("needs root (mount)");
    };
    let program = std::env::current_exe().unwrap();
    let script = format!("{script} && exec \"$1\" {role} \"$0\"");
    let mut command = inside(flags, &script);
    command.arg(program);
    Ok(command)
}
