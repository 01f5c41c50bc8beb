//! `Storage` with injected failures: wraps the operating system and fails the operations that a
//! test chooses. Compiled in under the feature `failpoints` only, and not part of the API.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc;
use nix::unistd::AccessFlags;

use super::system::SYSTEM;
use super::{Access, How, Mapping, Stat, Storage};

/// The kinds of operations. Each is counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Operation {
    /// An existing file, or a directory, is opened.
    Open,
    /// A file is made.
    Create,
    /// A directory is made.
    CreateDir,
    /// A part of a file is read.
    Read,
    /// A part of a file is written.
    Write,
    /// The metadata of a file is read.
    Stat,
    /// The access rights are checked.
    Access,
    /// A file is truncated or extended.
    SetLen,
    /// Blocks are allocated to a file.
    Allocate,
    /// A file is synced.
    Sync,
    /// The names in a directory are synced.
    SyncDir,
    /// A file gets another name.
    Rename,
    /// A file is removed.
    Remove,
    /// A directory is read.
    List,
    /// A file is mapped.
    Map,
    /// A map is synced.
    SyncMap,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Self; 16] = [
        Self::Open,
        Self::Create,
        Self::CreateDir,
        Self::Read,
        Self::Write,
        Self::Stat,
        Self::Access,
        Self::SetLen,
        Self::Allocate,
        Self::Sync,
        Self::SyncDir,
        Self::Rename,
        Self::Remove,
        Self::List,
        Self::Map,
        Self::SyncMap,
    ];
}

/// An injected failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and fails with this error number.
    Errno(i32),
    /// Of a write: half of the bytes are written, and the next write fails with `ENOSPC`, as on a
    /// disk that is full by then. Of a read: half of the bytes are read. Other operations
    /// ignore it.
    Short,
}

/// The operating system with injected failures.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Plan>);

#[derive(Debug, Default)]
struct Plan {
    counts: [u64; Operation::ALL.len()],
    rules: Vec<Rule>,
    injected: u64,
}

#[derive(Debug)]
struct Rule {
    operation: Operation,
    /// The first and the last of these operations that fail.
    first: u64,
    last: u64,
    fault: Fault,
}

impl Faults {
    /// Where nothing fails yet. It is never freed: files may remember it for as long as the process
    /// lives.
    pub fn new() -> &'static Self {
        Box::leak(Box::default())
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the `nth` of these operations from now fail; 1 is the next.
    pub fn fail(&self, operation: Operation, nth: u64, fault: Fault) {
        self.plan().add(operation, nth, nth, fault);
    }

    /// Has the `nth` of these operations from now and all after it fail.
    pub fn fail_from(&self, operation: Operation, nth: u64, fault: Fault) {
        self.plan().add(operation, nth, u64::MAX, fault);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.plan().rules.clear();
    }

    /// How many of these operations there were.
    pub fn count(&self, operation: Operation) -> u64 {
        self.plan().counts[operation as usize]
    }

    /// How many operations were made to fail.
    pub fn injected(&self) -> u64 {
        self.plan().injected
    }

    /// Counts an operation, and says which fault it gets, if any.
    fn next(&self, operation: Operation) -> Option<Fault> {
        let mut plan = self.plan();
        plan.counts[operation as usize] += 1;
        let count = plan.counts[operation as usize];
        let applies =
            |rule: &&Rule| rule.operation == operation && (rule.first..=rule.last).contains(&count);
        let fault = plan.rules.iter().find(applies)?.fault;
        plan.injected += 1;
        Some(fault)
    }

    /// The same, for what cannot be done by half.
    fn pass(&self, operation: Operation) -> io::Result<()> {
        match self.next(operation) {
            Some(Fault::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) | None => Ok(()),
        }
    }
}

impl Plan {
    fn add(&mut self, operation: Operation, nth: u64, last: u64, fault: Fault) {
        let before = self.counts[operation as usize];
        let (first, last) = (before + nth, before.saturating_add(last));
        self.rules.push(Rule { operation, first, last, fault });
        if operation == Operation::Write && fault == Fault::Short {
            let (first, last) = (first + 1, last.saturating_add(1));
            self.rules.push(Rule { operation, first, last, fault: Fault::Errno(libc::ENOSPC) });
        }
    }
}

impl Storage for Faults {
    fn open_file(&self, path: &Path, how: How) -> io::Result<fs::File> {
        self.pass(if how == How::Create { Operation::Create } else { Operation::Open })?;
        SYSTEM.open_file(path, how)
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.pass(Operation::CreateDir)?;
        SYSTEM.create_dir(path)
    }

    fn read(&self, file: &fs::File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let most = match self.next(Operation::Read) {
            Some(Fault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => bytes.len().div_ceil(2),
            None => bytes.len(),
        };
        SYSTEM.read(file, &mut bytes[..most], offset)
    }

    fn write(&self, file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let most = match self.next(Operation::Write) {
            Some(Fault::Errno(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Short) => bytes.len().div_ceil(2),
            None => bytes.len(),
        };
        SYSTEM.write(file, &bytes[..most], offset)
    }

    fn stat(&self, file: &fs::File) -> io::Result<Stat> {
        self.pass(Operation::Stat)?;
        SYSTEM.stat(file)
    }

    fn stat_path(&self, path: &Path) -> io::Result<Stat> {
        self.pass(Operation::Stat)?;
        SYSTEM.stat_path(path)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.pass(Operation::Stat)?;
        SYSTEM.canonical(path)
    }

    fn check_access(&self, path: &Path, rights: AccessFlags) -> io::Result<()> {
        self.pass(Operation::Access)?;
        SYSTEM.check_access(path, rights)
    }

    fn set_len(&self, file: &fs::File, len: u64) -> io::Result<()> {
        self.pass(Operation::SetLen)?;
        SYSTEM.set_len(file, len)
    }

    fn allocate(&self, file: &fs::File, len: u64) -> io::Result<()> {
        self.pass(Operation::Allocate)?;
        SYSTEM.allocate(file, len)
    }

    fn sync(&self, file: &fs::File) -> io::Result<()> {
        self.pass(Operation::Sync)?;
        SYSTEM.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::SyncDir)?;
        SYSTEM.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass(Operation::Rename)?;
        SYSTEM.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Operation::Remove)?;
        SYSTEM.remove(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.pass(Operation::List)?;
        SYSTEM.list(path)
    }

    fn map(&self, file: &fs::File, len: usize, access: Access) -> io::Result<Mapping> {
        self.pass(Operation::Map)?;
        SYSTEM.map(file, len, access)
    }

    fn sync_map(&self, map: &Mapping) -> io::Result<()> {
        self.pass(Operation::SyncMap)?;
        SYSTEM.sync_map(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_operations_fail_once_or_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let (faults, path) = (Faults::new(), dir.path().join("file"));
        let storage: &'static dyn Storage = faults;
        let file = storage.create(&path).unwrap();
        faults.fail(Operation::Sync, 2, Fault::Errno(libc::EIO));
        let errors = (0..4).map(|_| file.sync().err().and_then(|e| e.raw_os_error()));
        assert_eq!(errors.collect::<Vec<_>>(), [None, Some(libc::EIO), None, None]);
        faults.fail_from(Operation::Open, 2, Fault::Errno(libc::EMFILE));
        let errors = (0..4).map(|_| storage.open(&path).err().and_then(|e| e.raw_os_error()));
        let emfile = Some(libc::EMFILE);
        assert_eq!(errors.collect::<Vec<_>>(), [None, emfile, emfile, emfile]);
        faults.clear();
        assert!(storage.open(&path).is_ok());
        assert_eq!((faults.count(Operation::Open), faults.injected()), (5, 4));
    }

    #[test]
    fn a_short_read_is_continued_and_a_short_write_hits_enospc() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new();
        let storage: &'static dyn Storage = faults;
        let file = storage.create(&dir.path().join("file")).unwrap();
        file.write_at(b"abcdefgh", 0).unwrap();
        let mut bytes = [0; 8];
        faults.fail_from(Operation::Read, 1, Fault::Short);
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"abcdefgh");
        assert!(faults.injected() > 1);
        faults.fail(Operation::Write, 1, Fault::Short);
        let error = file.write_at(b"ABCDEFGH", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        faults.clear();
        assert_eq!(file.read_up_to(100).unwrap(), b"ABCDefgh");
        file.write_at(b"ABCDEFGH", 0).unwrap();
    }
}
