//! How much memory this process may use: that of the machine, or less in a control group.
//!
//! ```text
//! version 2   "0::PATH" in /proc/self/cgroup, memory.max in PATH and in each folder above it
//! version 1   "N:memory:PATH", memory.limit_in_bytes, likewise
//! ```
//!
//! In a container the path may be that of the host, and the mount begins at the container's own
//! group. Then only the folders that exist count.

use std::fs;
use std::path::Path;

/// Where control groups are mounted; the last two only if both versions are.
const MOUNTS: [(&str, &str); 3] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/unified", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// The most bytes of memory that this process may use, the page cache included; `None` if the
/// system does not say.
pub(crate) fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = MOUNTS.iter().filter_map(|(mount, name)| {
        let is_first_version = name.ends_with("in_bytes");
        let path = path_in(&groups, is_first_version)?;
        limit_below(Path::new(mount), path, name)
    });
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    limits.chain(total_in(&meminfo)).min()
}

/// The path of this process's group, given the lines of `/proc/self/cgroup`.
fn path_in(groups: &str, is_first_version: bool) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_it = if is_first_version {
            controllers.split(',').any(|name| name == "memory")
        } else {
            number == "0" && controllers.is_empty()
        };
        is_it.then_some(path)
    })
}

/// The least limit of the group at `path` and of those above it, up to the mount.
fn limit_below(mount: &Path, path: &str, name: &str) -> Option<u64> {
    let path = mount.join(path.trim_start_matches('/'));
    let groups = path.ancestors().take_while(|group| group.starts_with(mount));
    let limits = groups.filter_map(|group| {
        // Without a limit it is "max", or the file is not there.
        fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
    });
    limits.min()
}

/// The memory of the machine, given the lines of `/proc/meminfo`.
fn total_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_the_group_is_found_in_both_versions() {
        let both = "9:name=systemd:/\n4:cpu,memory:/jobs/a:b\n0::/user\n";
        assert_eq!((path_in(both, true), path_in(both, false)), (Some("/jobs/a:b"), Some("/user")));
        assert_eq!((path_in("0::/\n", true), path_in("0::/\n", false)), (None, Some("/")));
    }

    #[test]
    fn the_least_limit_up_to_the_mount_counts() {
        let mount = tempfile::tempdir().unwrap();
        let inner = mount.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let limit = || limit_below(mount.path(), "/a/b", "memory.max");
        assert_eq!(limit(), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit(), None);
        fs::write(mount.path().join("a/memory.max"), "1000\n").unwrap();
        fs::write(mount.path().join("memory.max"), "3000\n").unwrap();
        assert_eq!(limit(), Some(1000));
        // A group of the host that is not mounted here.
        assert_eq!(limit_below(mount.path(), "/other/c", "memory.max"), Some(3000));
    }

    #[test]
    fn the_machine_has_memory() {
        assert_eq!(total_in("MemFree: 1 kB\nMemTotal:       24683 kB\n"), Some(24683 * 1024));
        assert!(limit().is_some_and(|bytes| bytes > 1 << 20));
    }
}
