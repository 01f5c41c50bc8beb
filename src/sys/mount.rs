//! Which file systems are of other machines. Theirs are no place for mapped files and locks that processes share: what
//! one machine stores into a mapping another does not see, and the death of a process frees its locks at some time, or never.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::sys::statfs::statfs;

/// By the number that `statfs` tells; see statfs(2) and `linux/magic.h`.
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
/// What FUSE file systems call themselves that are of other machines. Others are local, as those of virtual machines and
/// of encrypted directories, and as good as what they lie on.
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

/// What the file system is called that `path` is on, if it is one of another machine.
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
    // All numbers have 32 bits, whatever the type is that they come in.
    Ok(statfs(path)?.filesystem_type().0 as u32)
}

/// The same for one that is of FUSE.
fn network_fuse(path: &Path) -> io::Result<Option<&'static str>> {
    let device = std::fs::metadata(path)?.dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(network_fuse_in(&mounts, &format!("{}:{}", libc::major(device), libc::minor(device))))
}

/// The same, by the lines of proc_pid_mountinfo(5) and the numbers of the device.
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
    fn where_tests_run_is_local() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(network_file_system(dir.path()).unwrap(), None);
        assert!(network_file_system(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn what_fuse_mounts_call_themselves_tells_them_apart() {
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
