//! A file system of its own in a file, whose power is cut: it is shut down without a flush of its
//! log (`FS_IOC_SHUTDOWN`), unmounted, and mounted again.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::home::home;

/// How a file system is made and mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    make: &'static [&'static str],
    options: &'static str,
    /// Whether processes must not touch mapped files after the cut: with a journal for data, some
    /// kernels leave a page locked then, and the process cannot be killed.
    pub(crate) ends_first: bool,
}

pub(crate) const KINDS: [Kind; 4] = [
    kind("ext4, data=ordered", EXT4, "loop,data=ordered"),
    Kind { ends_first: true, ..kind("ext4, data=journal", EXT4, "loop,data=journal") },
    kind("ext4, data=writeback", EXT4, "loop,data=writeback"),
    kind("xfs", &["mkfs.xfs", "-q", "-f"], "loop"),
];

const fn kind(name: &'static str, make: &'static [&'static str], options: &'static str) -> Kind {
    Kind { name, make, options, ends_first: false }
}

const EXT4: &[&str] = &["mkfs.ext4", "-q", "-F"];

/// As small as `mkfs.xfs` makes them.
const LEN: u64 = 320 << 20;

/// A mounted file system. Dropping it unmounts it.
pub(crate) struct Volume {
    pub(crate) kind: Kind,
    image: PathBuf,
    at: PathBuf,
    is_mounted: bool,
    _home: TempDir,
}

/// Enters a mount namespace of its own, whose mounts end with this process. Says why that cannot
/// be done.
pub(crate) fn prepare() -> Result<(), &'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root (mount)");
    }
    for Kind { make, .. } in KINDS {
        if Command::new(make[0]).arg("-V").output().is_err() {
            return Err("needs mkfs.ext4 and mkfs.xfs (e2fsprogs, xfsprogs)");
        }
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|_| "needs a mount namespace")?;
    run("mount", &["--make-rprivate", "/"]).map_err(|_| "needs mount propagation")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let failed = format!("{program} {arguments:?}: {text}");
    if output.status.success() { Ok(()) } else { Err(failed) }
}

impl Volume {
    pub(crate) fn new(kind: Kind) -> Result<Self, &'static str> {
        let home = home();
        let (image, at) = (home.path().join("image"), home.path().join("mounted"));
        File::create(&image).unwrap().set_len(LEN).unwrap();
        std::fs::create_dir(&at).unwrap();
        let mut make = kind.make[1..].to_vec();
        make.push(image.to_str().unwrap());
        run(kind.make[0], &make).unwrap();
        let mut volume = Self { kind, image, at, is_mounted: false, _home: home };
        volume.mount().map_err(|error| {
            eprintln!("{error}");
            "needs loop devices, ext4 and xfs"
        })?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    fn mount(&mut self) -> Result<(), String> {
        let [image, at] = [&self.image, &self.at].map(|path| path.to_str().unwrap());
        run("mount", &["-o", self.kind.options, image, at])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Cuts the power: what is not on the disk now is lost.
    pub(crate) fn cut(&self) {
        shut_down(&File::open(&self.at).unwrap());
    }

    /// Mounts it again after a cut. No process uses it.
    pub(crate) fn restart(&mut self) {
        run("umount", &[self.at.to_str().unwrap()]).unwrap();
        self.is_mounted = false;
        self.mount().unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            drop(run("umount", &["-l", self.at.to_str().unwrap()]));
        }
    }
}

#[expect(unsafe_code, reason = "there is no safe way to call it")]
fn shut_down(root: &File) {
    /// `_IOR('X', 125, __u32)`.
    const FS_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
    /// `EXT4_GOING_FLAGS_NOLOGFLUSH`, `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`.
    const NO_LOG_FLUSH: u32 = 2;
    let flags = NO_LOG_FLUSH;
    // SAFETY: the call reads 32 bits at the address, which are there until it returns.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const flags) };
    assert_eq!(result, 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
}
