//! A replacement of `sys`, with the memory of loom or shuttle.
//!
//! A [`Machine`](machine::Machine) is what processes share: the words of the index, the records,
//! and the lock bytes, which the kernel releases when a process dies. Each process has its own
//! handles of the words. So a [`Process`](machine::Process) can die at any of its changes; from
//! then on, none of its operations has an effect.

pub(crate) mod machine;

/// A named point. It does nothing here: a process can die at every change of a word.
macro_rules! step {
    ($name:literal) => {};
}
pub(crate) use step;

pub(crate) mod atomic {
    pub(crate) use super::machine::AtomicU64;
    pub(crate) use std::sync::atomic::Ordering;
}

pub(crate) mod map {
    use super::atomic::AtomicU64;
    use super::machine::{Machine, Memory, Process};
    use super::storage::File;
    use std::io;

    #[derive(Debug)]
    pub(crate) struct Map(Vec<AtomicU64>);

    impl Map {
        pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
            Ok(Self((0..len / 8).map(|at| file.0.word(at)).collect()))
        }

        pub(crate) fn to_read(file: &File, len: usize) -> io::Result<Self> {
            Self::new(file, len)
        }

        pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
            let machine = Machine::new(Memory::Plain, len);
            Self::new(&File(Process::new(&machine, 1)), len)
        }

        pub(crate) fn words(&self) -> &[AtomicU64] {
            &self.0
        }

        pub(crate) fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }
}

pub(crate) mod storage {
    use super::machine::{Machine, Memory, Process};
    use std::io;
    use std::sync::Arc;

    /// The file of the index, as one process has it open.
    #[derive(Debug)]
    pub(crate) struct File(pub(crate) Arc<Process>);

    pub(crate) const HUGE_PIECES: u64 = 0;

    impl File {
        pub(crate) fn nameless() -> io::Result<Self> {
            Ok(Self(Process::new(&Machine::new(Memory::Plain, 1 << 20), 1)))
        }

        /// A new machine has zeros already.
        pub(crate) fn reset(&self, len: u64, _piece: u64) -> io::Result<()> {
            self.0.set_len(len);
            Ok(())
        }

        pub(crate) fn allocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        pub(crate) fn len(&self) -> io::Result<u64> {
            Ok(self.0.len())
        }

        pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            for (i, bytes) in bytes.chunks_exact_mut(8).enumerate() {
                let word = self.0.read(offset as usize / 8 + i);
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            Ok(())
        }
    }
}

pub(crate) mod fork {
    use super::machine::Process;
    use std::sync::Arc;

    /// The file of the locks, as one process has it open. No process forks here.
    #[derive(Debug)]
    pub(crate) struct OwnFile(pub(crate) Arc<Process>);

    impl OwnFile {
        pub(crate) fn is_ours(&self) -> bool {
            true
        }
    }
}

pub(crate) mod lock {
    use super::fork::OwnFile as File;
    use std::io;

    pub(crate) fn try_lock(file: &File, byte: i64) -> io::Result<bool> {
        Ok(file.0.try_lock(byte))
    }

    pub(crate) fn unlock(file: &File, byte: i64) -> io::Result<()> {
        file.0.unlock(byte);
        Ok(())
    }

    pub(crate) fn is_held(file: &File, byte: i64) -> io::Result<bool> {
        Ok(file.0.is_held_by_another(byte))
    }
}

pub(crate) mod random {
    /// The same each time: an exploration must be repeatable. The index makes sure that it differs
    /// from the last incarnation.
    pub(crate) fn bits() -> std::io::Result<u64> {
        Ok(7)
    }
}

pub(crate) mod wait {
    use super::machine::{Memory, memory};

    /// Yields to the other processes, and asks at once whether the holder is alive. No process is
    /// stopped here, so a wait is long only in plain memory, where there is no other process.
    #[derive(Debug, Default)]
    pub(crate) struct Backoff {
        pauses: u32,
    }

    impl Backoff {
        pub(crate) fn is_long(&self) -> bool {
            memory() == Memory::Plain && self.pauses > 100
        }

        pub(crate) fn owner_had_time(&self) -> bool {
            true
        }

        pub(crate) fn should_check_owner(&self) -> bool {
            true
        }

        pub(crate) fn pause(&mut self) {
            self.pauses += 1;
            match memory() {
                Memory::Plain => {}
                Memory::Loom => loom::thread::yield_now(),
                Memory::Shuttle => shuttle::thread::yield_now(),
            }
        }
    }
}
