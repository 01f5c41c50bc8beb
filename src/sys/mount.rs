//! Detects network file systems. Mapped files and locks that processes share do not work there: one
//! machine does not see the stores of another into a mapping, and the locks of a dead process are
//! released late or never.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::sys::statfs::statfs;

/// By the magic number that `statfs` returns; see statfs(2) and `linux/magic.h`.
const NETWORK: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0xaad7_aaea, "PanFS"),
];
const FUSE: u32 = 0x6573_5546;
/// The names of FUSE file systems that are on other machines. Other FUSE file systems are local
/// (virtual machines, encrypted directories), and as reliable as the file system below them.
const NETWORK_FUSE: &[&str] = &[
    "sshfs",
    "s3fs",
    "goofys",
    "gcsfuse",
    "blobfuse",
    "blobfuse2",
    "rclone",
    "juicefs",
    "glusterfs",
    "ceph-fuse",
    "curlftpfs",
    "smbnetfs",
];

/// The name of the network file system that contains `path`; `None` if it is on a local one.
pub(crate) fn network_file_system(path: &Path) -> io::Result<Option<&'static str>> {
    let number = number_of(path)?;
    let known = NETWORK.iter().find(|(magic, _)| *magic == number).map(|(_, name)| *name);
    Ok(if number == FUSE { network_fuse(path)? } else { known })
}

fn number_of(path: &Path) -> io::Result<u32> {
    #[cfg(feature = "failpoints")]
    ::fail::fail_point!("sys::file_system", |number: Option<String>| {
        number.and_then(|n| n.parse().ok()).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
    });
    // All magic numbers have 32 bits, whatever the type of the field.
    Ok(statfs(path)?.filesystem_type().0 as u32)
}

/// The same for a path on FUSE, by the mount table of this process.
fn network_fuse(path: &Path) -> io::Result<Option<&'static str>> {
    let device = std::fs::metadata(path)?.dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(network_fuse_in(&mounts, &format!("{}:{}", libc::major(device), libc::minor(device))))
}

/// The same for the device with the numbers `device`, given the lines of proc_pid_mountinfo(5).
fn network_fuse_in(mounts: &str, device: &str) -> Option<&'static str> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, source) = line.split_once(" - ")?;
    let name = source.split(' ').next()?.strip_prefix("fuse.")?;
    NETWORK_FUSE.iter().copied().find(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_temporary_files_is_local() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(network_file_system(dir.path()).unwrap(), None);
        assert!(network_file_system(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn fuse_mounts_are_told_apart_by_their_type() {
        let mounts = "25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            90 30 0:57 / /home/a/far rw,nosuid,nodev shared:1 - fuse.sshfs host:/srv rw,user_id=0\n\
            91 30 0:58 / /home/a/near rw - fuse.gocryptfs /home/a/cipher rw\n\
            92 30 0:59 / /vm rw - virtiofs share rw\n";
        assert_eq!(network_fuse_in(mounts, "0:57"), Some("sshfs"));
        for device in ["0:58", "0:59", "0:23", "0:5", "7:1"] {
            assert_eq!(network_fuse_in(mounts, device), None, "{device}");
        }
    }
}
