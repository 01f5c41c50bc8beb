//! The one error type: what was being done, to which key or path, and why it failed.

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with keepwarm's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a call failed.
///
/// An error names the operation and the key or path it was working on; [`kind`](Error::kind) is what a
/// program branches on, the `Display` text is for people. A call that returned an error changed nothing,
/// unless its documentation says otherwise. One pointer in size.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    subject: Subject,
    source: Option<Source>,
}

enum Subject {
    None,
    Key(String),
    Path(PathBuf),
    Option(&'static str),
}

/// The kinds of [`Error`]. More may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or failed; the source says how.
    Io,
    /// The disk or the quota is full, or nothing within `max_bytes` can be given up; the source says what takes it. What was
    /// stored stays.
    NoSpace,
    /// Another process has the directory open, or this one has, which what was asked for does not allow.
    InUse,
    /// The path exists but is not a keepwarm directory, or not a directory at all.
    NotACache,
    /// The directory is on a file system of another machine, where neither mapped files nor locks can be relied on.
    NetworkFileSystem,
    /// The directory was made by another version of keepwarm, whose format this one does not know. It was not touched.
    UnsupportedFormat,
    /// A file that the directory cannot be opened without is damaged.
    Corrupt,
    /// Part of a value that is being read is damaged. The entry is gone for whoever reads it next.
    Damaged,
    /// An option is out of its limits.
    InvalidOption,
    /// The key is too long or not allowed by the key check in use.
    InvalidKey,
    /// The value does not fit within `max_bytes`.
    ValueTooLarge,
    /// The value cannot be turned into MessagePack.
    Encode,
    /// The stored value is not of the type that was asked for.
    Decode,
    /// The operation needs an entry, and there is none.
    NotFound,
    /// The entry is not an integer of 64 bits.
    NotAnInteger,
    /// The result would not fit into 64 bits.
    Overflow,
    /// The closure of a `get_or_set` waits, in the end, for itself: it asks for its own key, or for one that is computed by
    /// a thread which waits for this one.
    Recursion,
    /// The cache was opened to be read only.
    ReadOnly,
    /// Another process, which is stopped perhaps, did not release a lock or let go of space in time; or as many processes
    /// have the directory open as can. Try again.
    Busy,
    /// Another process took a lock of this one over while it was held, taking it for dead. What the call did may have
    /// been undone.
    LockLost,
    /// The directory was closed by another thread during the call; a reader or writer was inherited from a process that
    /// forked, or has failed before; or the async runtime ends.
    Interrupted,
}

impl ErrorKind {
    fn text(self) -> &'static str {
        match self {
            Self::Io => "the operating system reported an error",
            Self::NoSpace => "no space left on the disk or within max_bytes",
            Self::InUse => "the directory is open already",
            Self::NotACache => "this is not a keepwarm directory; choose an empty or new one",
            Self::NetworkFileSystem => {
                "this is on a network file system; choose a local directory, or allow it with \
                 Builder::allow_network_file_system if a single machine uses it"
            }
            Self::UnsupportedFormat => {
                "made by another version of keepwarm; use that version, another directory, or remove this one"
            }
            Self::Corrupt => {
                "the file is damaged; remove the directory to start with an empty cache"
            }
            Self::Damaged => "part of the value is damaged",
            Self::InvalidOption => "the option is out of its limits",
            Self::InvalidKey => "the key is not allowed",
            Self::ValueTooLarge => "the value is too large for max_bytes",
            Self::Encode => "the value cannot be encoded",
            Self::Decode => "the stored value is not of this type",
            Self::NotFound => "there is no such entry",
            Self::NotAnInteger => "the entry is not a 64-bit integer",
            Self::Overflow => "the result does not fit into 64 bits",
            Self::Recursion => "the closure asked for the key that it is computing",
            Self::ReadOnly => "the cache was opened to be read only",
            Self::Busy => "a lock was not released in time; try again",
            Self::LockLost => "a lock was taken over by another process while it was held",
            Self::Interrupted => "the operation was interrupted",
        }
    }
}

impl Error {
    /// A new error of `kind` that happened during `operation` (an infinitive: "set", "open").
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner { kind, operation, subject: Subject::None, source: None }))
    }

    /// An error of the operating system during `operation` on `path`; a full disk becomes
    /// [`ErrorKind::NoSpace`].
    pub fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation).with_path(path).with_source(source)
    }

    /// The same error about `key`.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.0.subject = Subject::Key(key.to_owned());
        self
    }

    /// The same error about `path`.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        self.0.subject = Subject::Path(path.to_owned());
        self
    }

    /// The same error about the option called `name`.
    #[must_use]
    pub fn with_option(mut self, name: &'static str) -> Self {
        self.0.subject = Subject::Option(name);
        self
    }

    /// The same error, caused by `source`. A `&str` or `String` serves as a plain explanation.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error, said to have happened during `operation`.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation = operation;
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done: the name of the call, or of the step in it.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The key that it was done to, where there is one.
    pub fn key(&self) -> Option<&str> {
        match &self.0.subject {
            Subject::Key(key) => Some(key),
            _ => None,
        }
    }

    /// The file or directory that it was done to, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.subject {
            Subject::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The option that is out of its limits, where it is that.
    pub fn option(&self) -> Option<&'static str> {
        match self.0.subject {
            Subject::Option(name) => Some(name),
            _ => None,
        }
    }
}

/// Long keys are cut in messages, so that one bad key cannot flood a log.
const SHOWN_KEY_CHARS: usize = 100;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.operation)?;
        match &self.0.subject {
            Subject::None => {}
            Subject::Key(key) => {
                let shown: String = key.chars().take(SHOWN_KEY_CHARS).collect();
                let cut = if shown.len() < key.len() { "…" } else { "" };
                write!(f, " {shown:?}{cut}")?;
            }
            Subject::Path(path) => write!(f, " {}", path.display())?,
            Subject::Option(name) => write!(f, " option {name}")?,
        }
        write!(f, ": {}", self.0.kind.text())?;
        // The source is part of the text because most programs print only the outermost error.
        match &self.0.source {
            Some(source) => write!(f, " ({source})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_done_to_what_and_why() {
        let error = Error::new(ErrorKind::ValueTooLarge, "set")
            .with_key("a")
            .with_source("5 MiB of at most 1");
        assert_eq!(
            error.to_string(),
            "set \"a\": the value is too large for max_bytes (5 MiB of at most 1)"
        );
        assert_eq!(error.key(), Some("a"));
    }

    #[test]
    fn a_full_disk_has_a_kind_of_its_own() {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        assert_eq!(Error::io("set", Path::new("/x"), full).kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn long_keys_are_cut() {
        let text =
            Error::new(ErrorKind::InvalidKey, "get").with_key(&"k".repeat(70_000)).to_string();
        assert!(text.len() < 300, "{text}");
    }
}
