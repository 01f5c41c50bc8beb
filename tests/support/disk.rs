//! File systems in a file that is mounted as a disk, for tests that root runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system. Dropping it unmounts it.
pub(crate) struct Disk {
    at: PathBuf,
    _files: tempfile::TempDir,
}

/// Runs a program of the system, and returns what it said if it failed.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(said)
}

impl Disk {
    /// A new file system of so many mebibytes: `make` is the command that makes it.
    pub(crate) fn new(make: &[&str], mib: u64) -> Result<Self, &'static str> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root (mount)");
        }
        let files = tempfile::tempdir().unwrap();
        let (image, at) = (files.path().join("image"), files.path().join("mounted"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        let image = image.to_str().unwrap();
        run(make[0], &[&make[1..], &[image]].concat())
            .map_err(|_| "needs a program that makes this file system")?;
        run("mount", &["-o", "loop", image, at.to_str().unwrap()])
            .map_err(|_| "needs a kernel with this file system, and loop devices")?;
        Ok(Self { at, _files: files })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(said) = run("umount", &["-l", self.at.to_str().unwrap()]) {
            println!("cannot unmount {}: {said}", self.at.display());
        }
    }
}
