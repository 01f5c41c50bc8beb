//! The one error type: the operation that failed, the key or path it worked on, and the reason.

use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with keepwarm's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a call failed.
///
/// An error names the operation and the key or path it was working on. A program branches on
/// [`kind`](Error::kind); the `Display` text is for people and may change. A call that returned an
/// error changed nothing, unless its documentation says otherwise or the kind is `LockLost` or
/// `UnknownOutcome`. The size of a pointer.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    subject: Subject,
    source: Option<Cause>,
}

enum Subject {
    None,
    Key(String),
    Path(PathBuf),
    Option(&'static str),
}

/// The kinds of [`Error`]. Later versions may add more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused the operation or failed; the source says how.
    Io,
    /// The disk or the quota is full, or nothing within `max_bytes` can be evicted; the source says
    /// what holds the space. Stored entries stay.
    NoSpace,
    /// The directory is already open, in another process or in this one, and the operation needs it
    /// for itself.
    InUse,
    /// The path exists, but it is not a keepwarm directory, or not a directory at all.
    NotACache,
    /// The directory is on a network file system, where neither mapped files nor locks are
    /// reliable.
    NetworkFileSystem,
    /// The directory was made by a version of keepwarm with another format. It was not changed.
    UnsupportedFormat,
    /// A file that is needed to open the directory is damaged.
    Corrupt,
    /// Part of the value that is being read is damaged. The entry is a miss for later reads.
    Damaged,
    /// An option has a value that is not allowed.
    InvalidOption,
    /// The key is too long, or the key check in use refuses it.
    InvalidKey,
    /// The value does not fit within `max_bytes`.
    ValueTooLarge,
    /// The value cannot be encoded as MessagePack.
    Encode,
    /// The stored value is not of the requested type.
    Decode,
    /// The operation needs an entry, and there is none.
    NotFound,
    /// The entry is not a 64-bit integer.
    NotAnInteger,
    /// The result does not fit into a signed 64-bit integer.
    Overflow,
    /// The closure of a `get_or_set` would wait for itself: it asks for its own key, or for a key
    /// that is being computed by a thread which waits for this one.
    Recursion,
    /// The cache was opened read-only.
    ReadOnly,
    /// Another process, which may be stopped, did not release a lock or free space in time; or as
    /// many processes as possible already have the directory open. Try again.
    Busy,
    /// Another process took over a lock that this one held, because it took this process for dead.
    /// The change may have been undone.
    LockLost,
    /// Another thread closed the directory during the call; a reader or writer was inherited from a
    /// process that forked, or has failed before; or the async runtime is shutting down.
    Interrupted,
    /// The server of a remote backend cannot be reached. The request was not sent, so nothing
    /// changed.
    Unreachable,
    /// A remote backend sent a change and got no answer: the connection broke, or the call timed
    /// out. The change may have taken effect, may still take effect, or may never. Read the entry
    /// to find out.
    UnknownOutcome,
    /// The backend does not support this operation.
    Unsupported,
}

impl ErrorKind {
    fn text(self) -> &'static str {
        match self {
            Self::Io => "the operating system reported an error",
            Self::NoSpace => "no space left on the disk or within max_bytes",
            Self::InUse => "the directory is already open",
            Self::NotACache => "this is not a keepwarm directory; choose an empty or new one",
            Self::NetworkFileSystem => {
                "this is on a network file system; choose a local directory, or allow it with \
                 Builder::allow_network_file_system if a single machine uses it"
            }
            Self::UnsupportedFormat => {
                "made by another version of keepwarm; use that version, choose another directory, \
                 or remove this one"
            }
            Self::Corrupt => {
                "the file is damaged; to start with an empty cache, end all processes that use the \
                 directory and remove it"
            }
            Self::Damaged => "part of the stored value is damaged; the entry is now a miss",
            Self::InvalidOption => "the value of the option is not allowed",
            Self::InvalidKey => "the key is not allowed",
            Self::ValueTooLarge => "the value is too large for max_bytes",
            Self::Encode => "the value cannot be encoded as MessagePack",
            Self::Decode => "the stored value is not of the requested type",
            Self::NotFound => "there is no such entry",
            Self::NotAnInteger => "the entry is not a 64-bit integer",
            Self::Overflow => "the result does not fit into a signed 64-bit integer",
            Self::Recursion => {
                "the closure waits for itself: it asked for a key that waits for its result"
            }
            Self::ReadOnly => "the cache was opened read-only",
            Self::Busy => "another process holds what this call needs; try again",
            Self::LockLost => {
                "another process took over a lock while this one held it; the change may be undone"
            }
            Self::Interrupted => "the operation was interrupted",
            Self::Unreachable => "the server cannot be reached; nothing was changed",
            Self::UnknownOutcome => {
                "the server did not answer; the change may or may not take effect; read the entry \
                 to find out"
            }
            Self::Unsupported => "the backend does not support this operation",
        }
    }
}

impl Error {
    /// The error of an optional method that a backend does not offer.
    pub(crate) fn unsupported(operation: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, operation)
    }

    /// An error of `kind` that happened during `operation` (an infinitive: "set", "open").
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner { kind, operation, subject: Subject::None, source: None }))
    }

    /// An error of the operating system during `operation` on `path`. A full disk or quota becomes
    /// [`ErrorKind::NoSpace`], everything else [`ErrorKind::Io`].
    pub fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Io,
        };
        Self::new(kind, operation).with_path(path).with_source(source)
    }

    /// This error, with `key` as its subject.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.0.subject = Subject::Key(key.to_owned());
        self
    }

    /// This error, with `path` as its subject.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        self.0.subject = Subject::Path(path.to_owned());
        self
    }

    /// This error, with the option `name` as its subject.
    #[must_use]
    pub fn with_option(mut self, name: &'static str) -> Self {
        self.0.subject = Subject::Option(name);
        self
    }

    /// This error, with `source` as its cause. A `&str` or `String` serves as a plain explanation.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Cause>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// This error, with `operation` in place of the operation that it names.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation = operation;
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed: the name of the call, or of a step in it.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The key that the operation worked on, if the error names one.
    pub fn key(&self) -> Option<&str> {
        match &self.0.subject {
            Subject::Key(key) => Some(key),
            _ => None,
        }
    }

    /// The file or directory that the operation worked on, if the error names one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.subject {
            Subject::Path(path) => Some(path),
            _ => None,
        }
    }

    /// The option whose value is not allowed, if that is the error.
    pub fn option(&self) -> Option<&'static str> {
        match self.0.subject {
            Subject::Option(name) => Some(name),
            _ => None,
        }
    }
}

/// A message shows at most this much of a key, so that one bad key cannot flood a log.
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
        // Most programs print only the outermost error, so its text includes the source.
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
    fn an_error_names_operation_subject_and_reason() {
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
    fn a_full_disk_is_no_space() {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        assert_eq!(Error::io("set", Path::new("/x"), full).kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn a_long_key_is_cut_in_the_message() {
        let text =
            Error::new(ErrorKind::InvalidKey, "get").with_key(&"k".repeat(70_000)).to_string();
        assert!(text.len() < 300, "{text}");
    }
}
