//! Mounts that nobody else sees.

use std::path::Path;
use std::process::Command;

use crate::harness::Verdict;

/// The commands that make `$0` read-only.
pub(crate) const READ_ONLY: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\"";

/// Starts this program again with `role` and `dir`, in a mount namespace of its own in which the shell commands
/// `script` were run, with `dir` as `$0`: as root, or as a user who is root in a namespace of his own.
pub(crate) fn run(script: &str, dir: &Path, role: &str) -> Verdict {
    let status = command(script, dir, role)?.status().unwrap();
    assert!(status.success(), "{role} failed: {status}");
    Ok(())
}

/// The command that does so. Whether it may is tried out.
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
