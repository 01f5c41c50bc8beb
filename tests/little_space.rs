//! Little disk space: on a small or nearly full file system a cache works with less, or an open is
//! refused with `NoSpace` and leaves nothing behind. Measured from outside, by `statvfs` of a mount
//! that nothing else uses.
#![cfg(test)]

#[path = "support/dir.rs"]
mod dir;
#[path = "support/harness.rs"]
mod harness;
#[path = "support/mount.rs"]
#[expect(dead_code, reason = "this suite mounts nothing read-only")]
mod mount;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use dir::copy_as_killed;
use harness::Verdict;
use keepwarm::{Builder, Cache, ErrorKind, Timeout};

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, size, dir] = &arguments[..]
        && role == "on-this-mount"
    {
        on_this_mount(size.parse().unwrap(), Path::new(dir));
        return ExitCode::SUCCESS;
    }
    if let [role, dir] = &arguments[..]
        && role == "grow"
    {
        more_entries_on_a_full_disk(Path::new(dir));
        return ExitCode::SUCCESS;
    }
    harness::main(&[
        ("a_larger_max_entries_on_a_full_disk_keeps_the_index", || {
            let dir = tempfile::tempdir().unwrap();
            mount::run("mount -t tmpfs -o size=32m keepwarm \"$0\"", dir.path(), "grow")
        }),
        ("a_small_tmpfs_is_used_or_refused", on_tmpfs),
        ("a_tmpfs_with_few_inodes_is_used_or_refused", with_few_inodes),
        ("a_small_ext4_is_used_or_refused", on_ext4),
        ("a_nearly_full_xfs_is_used_or_refused", on_xfs),
    ])
}

/// Sizes in MiB. With the default options, 45 is too small for the index, and 70 leaves less than a
/// segment of the usual length beside it.
const SIZES: [u64; 9] = [1, 2, 4, 8, 16, 20, 45, 70, 128];

fn on_tmpfs() -> Verdict {
    for size in SIZES {
        run(&format!("mount -t tmpfs -o size={size}m keepwarm \"$0\""), size)?;
    }
    Ok(())
}

fn with_few_inodes() -> Verdict {
    for inodes in [2, 4, 8, 18, 20, 30] {
        run(&format!("mount -t tmpfs -o size=32m,nr_inodes={inodes} keepwarm \"$0\""), 32)?;
    }
    Ok(())
}

fn on_ext4() -> Verdict {
    for (size, inodes) in [(1, 16), (16, 16), (32, 32), (70, 1024)] {
        on_image(&format!("mkfs.ext4 -q -m 0 -N {inodes}"), size, size)?;
    }
    Ok(())
}

fn on_xfs() -> Verdict {
    // It is not made smaller than 300 MiB.
    for left in [1, 24] {
        on_image("mkfs.xfs -q", 300, left)?;
    }
    Ok(())
}

/// Makes a file system of `size` MiB in a file, mounts it, and leaves about `left` MiB free.
fn on_image(mkfs: &str, size: u64, left: u64) -> Verdict {
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(size * MIB).unwrap();
    let image = image.display();
    let made = std::process::Command::new("sh").arg("-c").arg(format!("{mkfs} {image}")).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return Err("needs the program that makes the file system");
    }
    run(&format!("mount -o loop {image} \"$0\""), left)
}

/// Starts this program again where `script` has mounted a file system.
fn run(script: &str, size: u64) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    println!("{script}");
    mount::run(script, dir.path(), &format!("on-this-mount {size}"))
}

/// The bytes and the inodes in use on the file system at `mount`.
fn in_use(mount: &Path) -> (u64, u64) {
    let found = nix::sys::statvfs::statvfs(mount).unwrap();
    let bytes = (found.blocks() - found.blocks_free()) * found.fragment_size();
    (bytes, found.files() - found.files_free())
}

fn free(mount: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(mount).unwrap();
    found.blocks_available() * found.fragment_size()
}

/// Takes all but `left` bytes of the file system.
fn fill(mount: &Path, left: u64) -> PathBuf {
    use nix::fcntl::{FallocateFlags, fallocate};
    let path = mount.join("filler");
    let file = std::fs::File::create(&path).unwrap();
    let mut at = 0;
    for piece in [MIB, 16 << 10] {
        while free(mount) > left + piece
            && fallocate(&file, FallocateFlags::empty(), at, piece as i64).is_ok()
        {
            at += piece as i64;
        }
    }
    path
}

/// The child: there are about `size` MiB on this mount.
fn on_this_mount(size: u64, mount: &Path) {
    let filler = fill(mount, size * MIB);
    std::fs::rename(filler, mount.join("first filler")).unwrap();
    let dir = mount.join("cache");
    let options: [(&str, &dyn Fn(Builder) -> Builder); 4] = [
        ("default options", &|builder| builder),
        ("few entries", &|builder| builder.max_entries(1000)),
        ("as many bytes", &|builder| builder.max_bytes(size * MIB).max_entries(1000)),
        ("half of the bytes", &|builder| builder.max_bytes((size * MIB / 2).max(MIB))),
    ];
    let mut worked = 0;
    for (name, with) in options {
        let before = in_use(mount);
        let open = || with(Cache::builder(&dir)).open();
        match open() {
            Err(e) => {
                println!("  {name}: {e}");
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{name}: {e}");
                assert!(!dir.exists(), "{name}: a refused open left the directory behind");
                assert_nothing_left(mount, before, name);
            }
            Ok(cache) => {
                // Another program takes what there is beyond this.
                let filler = fill(mount, 8 * MIB);
                work(name, cache, &open, 3 * free(mount) / (2 * 8192) + 10);
                worked += 1;
                std::fs::remove_file(filler).unwrap();
                std::fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
    println!("  {worked} of 4 worked");
}

/// The child: opens a closed directory, and one that a kill left, with a larger `max_entries`,
/// while the disk has no room for a larger index.
fn more_entries_on_a_full_disk(mount: &Path) {
    let (closed, killed) = (mount.join("closed"), mount.join("killed"));
    let open = |dir: &Path, entries| Cache::builder(dir).max_entries(entries).open();
    let cache = open(&closed, 1000).unwrap();
    cache.set("a", &1, Timeout::Never).unwrap();
    std::fs::create_dir(&killed).unwrap();
    copy_as_killed(&closed, &killed);
    drop(cache);
    fill(mount, 64 << 10);
    for dir in [closed, killed] {
        let cache = open(&dir, 1_000_000).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert_eq!(cache.get("a").unwrap(), Some(1), "{}", dir.display());
        assert!((1000..2000).contains(&cache.limits().max_entries), "{:?}", cache.limits());
        cache.set("a", &2, Timeout::Never).unwrap();
    }
}

/// Waits until no more is in use than `before`: XFS frees what was removed a little later, and
/// keeps room for the inodes.
fn assert_nothing_left(mount: &Path, before: (u64, u64), name: &str) {
    const FOR_INODES: u64 = 128 << 10;
    let begun = Instant::now();
    loop {
        let (bytes, files) = in_use(mount);
        if bytes <= before.0 + FOR_INODES && files <= before.1 {
            return;
        }
        let left = (bytes, files);
        assert!(begun.elapsed().as_secs() < 60, "{name}: {before:?} before, {left:?} left behind");
        nix::unistd::sync();
        std::thread::yield_now();
    }
}

/// Stores values of 8 KiB, half as many again as there is space for.
fn work(name: &str, cache: Cache, open: &dyn Fn() -> keepwarm::Result<Cache>, count: u64) {
    let value = |n: u64| vec![n as u8; 8000];
    for n in 0..count {
        let stored = cache.set_bytes(&n.to_string(), &value(n), Timeout::Never);
        stored.unwrap_or_else(|e| panic!("{name}: set {n} of {count}: {e}"));
        let found = cache.get_bytes(&n.to_string()).unwrap();
        assert!(found.is_some_and(|found| *found == value(n)), "{name}: {n} of {count}");
    }
    let (len, last) = (cache.len(), count - 1);
    assert!(len > 0);
    drop(cache);
    let cache = open().unwrap_or_else(|e| panic!("{name}, opened again: {e}"));
    assert!(cache.get_bytes(&last.to_string()).unwrap().is_some_and(|found| *found == value(last)));
    assert!(cache.check().unwrap().is_sound());
    println!("  {name}: {len} entries");
}
