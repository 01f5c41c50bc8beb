//! Journals of what each thread did, when, and with which result: cheap to write, and read back as
//! the events of each key.
//!
//! One file for each thread, 32 bytes for each operation:
//!
//!     begin (8) | end, 0 until acknowledged (8) | kind, outcome, key (2), waited (4) | saw (8)

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::checker::{Did, Event, Saw};
use crate::child_processes::{self, RunQueueTime};
use crate::value::{self, Name};

/// The key under which a clear is recorded.
const ALL: u32 = u16::MAX as u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Set,
    Add,
    Swap,
    Touch,
    Delete,
    Incr,
    Clear,
    Compute,
}

const KINDS: [Kind; 9] = [
    Kind::Get,
    Kind::Set,
    Kind::Add,
    Kind::Swap,
    Kind::Touch,
    Kind::Delete,
    Kind::Incr,
    Kind::Clear,
    Kind::Compute,
];

/// An operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub(crate) begin: u64,
    /// 0 if it was never acknowledged.
    pub(crate) end: u64,
    pub(crate) kind: Kind,
    /// Whether it found the key, or changed it.
    pub(crate) yes: bool,
    /// The run-queue time of its thread, in units of [`WAITED_UNIT`]: during the operation; or,
    /// until it is acknowledged, all the time before its begin.
    waited: u32,
    pub(crate) key: u32,
    /// A read or a computation: the value. A set: the lifetime of the value in milliseconds, 0 if
    /// it never expires. A swap: the expected value. An increment: the result.
    pub(crate) saw: u64,
}

/// How long an operation took, in nanoseconds: `itself` is `took` without the run-queue time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) end: u64,
    pub(crate) took: u64,
    pub(crate) itself: u64,
}

/// When a process was killed from outside, and the run-queue time of its thread at its death.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Killed {
    pub(crate) at: u64,
    pub(crate) waited: u64,
}

/// Nanoseconds.
const WAITED_UNIT: u64 = 1 << 16;
const OP: usize = 32;

/// Stands for bytes that no thread stored.
pub(crate) const RUBBISH: u64 = u64::MAX;

impl Op {
    fn to_bytes(self) -> [u8; OP] {
        let mut bytes = [0; OP];
        bytes[..8].copy_from_slice(&self.begin.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.end.to_le_bytes());
        bytes[16] = self.kind as u8;
        bytes[17] = u8::from(self.yes);
        bytes[18..20].copy_from_slice(&(self.key as u16).to_le_bytes());
        bytes[20..24].copy_from_slice(&self.waited.to_le_bytes());
        bytes[24..].copy_from_slice(&self.saw.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; OP]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            begin: word(0),
            end: word(8),
            kind: KINDS[bytes[16] as usize],
            yes: bytes[17] == 1,
            key: u32::from(u16::from_le_bytes([bytes[18], bytes[19]])),
            waited: u32::from_le_bytes(bytes[20..24].try_into().unwrap()),
            saw: word(24),
        }
    }

    /// The times of an operation that was acknowledged, or during which its process was killed from
    /// outside. `None` if its process killed itself during the operation.
    pub(crate) fn times(&self, killed: Option<Killed>) -> Option<Times> {
        let waited = u64::from(self.waited) * WAITED_UNIT;
        let (end, waited) = match killed {
            _ if self.end > 0 => (self.end, waited),
            Some(Killed { at, waited: in_all }) => (at, in_all.saturating_sub(waited)),
            None => return None,
        };
        let took = end.saturating_sub(self.begin);
        Some(Times { end, took, itself: took.saturating_sub(waited) })
    }

    /// The event for the checker; `None` for a read that was never acknowledged.
    fn event(&self, name: Name, pending_until: u64) -> Option<Event> {
        use Did::*;
        use Saw::*;
        let acknowledged = self.end > 0;
        let (saw, did) = match (self.kind, acknowledged, self.yes) {
            (Kind::Get | Kind::Touch, false, _) => return None,
            (Kind::Get, _, true) => (Value(self.saw), Nothing),
            (Kind::Set, ..) => (Unknown, Wrote(name.0)),
            (Kind::Add | Kind::Swap | Kind::Compute, false, _) => (Unknown, Wrote(name.0)),
            (Kind::Compute, ..) if self.saw == name.0 => (Unknown, Wrote(name.0)),
            (Kind::Compute, ..) => (Value(self.saw), Nothing),
            (Kind::Add, _, true) => (Absent, Wrote(name.0)),
            (Kind::Swap, _, true) if self.saw == 0 => (Absent, Wrote(name.0)),
            (Kind::Swap, _, true) => (Value(self.saw), Wrote(name.0)),
            (Kind::Swap, _, false) => return None,
            (Kind::Touch, _, true) | (Kind::Add, _, false) => (Present, Nothing),
            (Kind::Get | Kind::Touch, _, false) => (Absent, Nothing),
            (Kind::Delete, false, _) | (Kind::Clear, ..) => (Unknown, Removed),
            (Kind::Delete, _, true) => (Present, Removed),
            (Kind::Delete, _, false) => (Absent, Nothing),
            (Kind::Incr, false, _) => (Unknown, Counted),
            (Kind::Incr, ..) => (value::before(self.saw).map_or(Absent, Value), Wrote(self.saw)),
        };
        let lifetime = (self.kind == Kind::Set && self.saw > 0).then(|| self.saw * 1_000_000);
        let end = if acknowledged { self.end } else { pending_until };
        Some(Event { begin: self.begin, end, acknowledged, saw, did, lifetime, by: name })
    }
}

fn units(waited: u64) -> u32 {
    u32::try_from(waited / WAITED_UNIT).unwrap_or(u32::MAX)
}

/// Records the operations of one thread.
pub(crate) struct Journal {
    thread: u32,
    file: File,
    /// `None`: the file is written at the begin and the end of each operation, so that it survives
    /// a kill.
    buffer: Option<Vec<u8>>,
    next: usize,
    open: Option<(Op, u64)>,
    waits: Option<RunQueueTime>,
}

impl Journal {
    fn create(
        dir: &Path,
        thread: u32,
        buffer: Option<Vec<u8>>,
        waits: Option<RunQueueTime>,
    ) -> Self {
        let file = File::create_new(dir.join(thread.to_string())).unwrap();
        Self { thread, file, buffer, next: 0, open: None, waits }
    }

    /// A journal that is written to its file when it is dropped.
    pub(crate) fn in_memory(dir: &Path, thread: u32) -> Self {
        Self::create(dir, thread, Some(Vec::new()), None)
    }

    /// A journal that survives a kill. It records the run-queue time of the calling thread, which
    /// must be the one that uses it.
    pub(crate) fn in_file(dir: &Path, thread: u32) -> Self {
        Self::create(dir, thread, None, Some(RunQueueTime::new()))
    }

    fn waited(&self) -> u64 {
        self.waits.as_ref().map_or(0, RunQueueTime::so_far)
    }

    /// Records that an operation begins, and returns the name of its write.
    pub(crate) fn begin(&mut self, kind: Kind, key: u32, saw: u64) -> Name {
        assert!(self.open.is_none());
        let key = if kind == Kind::Clear { ALL } else { key };
        let mut op = Op { begin: 0, end: 0, kind, yes: false, waited: 0, key, saw };
        let waited = self.waited();
        op.waited = units(waited);
        op.begin = child_processes::now();
        if self.buffer.is_none() {
            // The page size is a multiple of the record size, so no record is torn by a kill.
            self.file.write_all_at(&op.to_bytes(), (self.next * OP) as u64).unwrap();
        }
        self.open = Some((op, waited));
        Name::new(self.thread, self.next)
    }

    /// Records that the operation that began last has ended.
    pub(crate) fn end(&mut self, yes: bool, saw: u64) {
        let now = child_processes::now();
        let (mut op, waited) = self.open.take().unwrap();
        op.waited = units(self.waited() - waited);
        (op.end, op.yes) = (now, yes);
        if matches!(op.kind, Kind::Get | Kind::Incr | Kind::Compute) {
            op.saw = saw;
        }
        match &mut self.buffer {
            Some(buffer) => buffer.extend(op.to_bytes()),
            None => self.file.write_all_at(&op.to_bytes(), (self.next * OP) as u64).unwrap(),
        }
        self.next += 1;
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(buffer) = &self.buffer {
            self.file.write_all_at(buffer, 0).unwrap();
        }
    }
}

/// The operations of all threads.
#[derive(Default)]
pub(crate) struct History {
    /// By thread.
    pub(crate) threads: BTreeMap<u32, Vec<Op>>,
    /// When the kernel had removed each killed process, by thread.
    pub(crate) died: BTreeMap<u32, u64>,
    /// The processes that were killed from outside, by thread.
    pub(crate) killed: BTreeMap<u32, Killed>,
    /// Begin and end of each recovery: all processes were dead, and a new one opened the directory.
    /// An unacknowledged operation may take effect then, too.
    pub(crate) recoveries: Vec<(u64, u64)>,
}

impl History {
    /// Reads all journals in `dir`.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut history = Self::default();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let thread = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let (ops, rest) = bytes.as_chunks();
            assert!(rest.is_empty(), "{}: incomplete operation", path.display());
            history.threads.insert(thread, ops.iter().map(Op::from_bytes).collect());
        }
        history
    }

    pub(crate) fn ops(&self) -> impl Iterator<Item = (Name, &Op)> {
        self.threads.iter().flat_map(|(thread, ops)| {
            ops.iter().enumerate().map(|(index, op)| (Name::new(*thread, index), op))
        })
    }

    /// The events of each key; a clear is an event of every key.
    pub(crate) fn events(&self) -> BTreeMap<u32, Vec<Event>> {
        let mut keys: BTreeMap<u32, Vec<Event>> = BTreeMap::new();
        for (name, op) in self.ops() {
            let died = self.died.get(&(name.thread() as u32)).copied().unwrap_or(u64::MAX);
            // An interrupted clear is completed by the process that takes over its lock, at the
            // latest by the next clear.
            let until = if op.kind == Kind::Clear { self.next_clear(died) } else { died };
            let Some(event) = op.event(name, until) else { continue };
            let events = keys.entry(op.key).or_default();
            events.push(event);
            if !event.acknowledged {
                let later = self.recoveries.iter().filter(|(begin, _)| *begin >= died);
                events.extend(later.map(|(begin, end)| Event {
                    begin: *begin,
                    end: *end,
                    ..event
                }));
            }
        }
        let clears = keys.remove(&ALL).unwrap_or_default();
        keys.values_mut().for_each(|events| events.extend(&clears));
        keys
    }

    /// The end of the first clear that began after `time`.
    fn next_clear(&self, time: u64) -> u64 {
        let clears =
            self.ops().filter(|(_, op)| op.kind == Kind::Clear && op.begin > time && op.end > 0);
        clears.map(|(_, op)| op.end).min().unwrap_or(u64::MAX)
    }
}
