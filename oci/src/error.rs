//! The one error type of this crate: a kind the caller can act on, the phrase for what was being done, and the
//! cause. Phrases are bare ("fetch manifest of host/repo@sha256:…"); they never hold a secret, and a URL in one
//! of them has lost its query string.

use std::error::Error as StdError;
use std::fmt;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing asked for is not there.
    NotFound,
    /// The other side knows us and refuses, or wants credentials we lack.
    Denied,
    /// Bytes that are not what they claim to be: wrong digest, wrong length, unreadable document.
    Corrupt,
    /// No (useful) answer: connection, timeout, server error. Trying later can help.
    Unreachable,
    /// Well formed, and nothing we can work with.
    Unsupported,
    /// No space where we write.
    Full,
    /// What the user gave makes no sense.
    Invalid,
    /// The operating system failed us.
    Io,
}

impl ErrorKind {
    /// The kind in words, as they end a message.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not found",
            ErrorKind::Denied => "access denied",
            ErrorKind::Corrupt => "content is corrupt",
            ErrorKind::Unreachable => "no answer",
            ErrorKind::Unsupported => "not supported",
            ErrorKind::Full => "no space left",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Io => "input/output error",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `doing` is a bare phrase, a verb first: "fetch manifest of …".
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// The same error with its cause: another error, or a sentence that says what was wrong.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// An error of the operating system, its kind taken from the error number.
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Error {
        let kind = match cause.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        Error::new(kind, doing).because(cause)
    }

    /// The same kind one step further out: `doing` names the larger task, `self` becomes the cause.
    #[must_use]
    pub fn within(self, doing: impl Into<String>) -> Error {
        Error::new(self.kind, doing).because(self)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Kind, phrase and cause, for another crate's error type to take over.
    pub fn into_parts(self) -> (ErrorKind, String, Option<Box<dyn StdError + Send + Sync>>) {
        (self.kind, self.doing, self.source)
    }

    /// The bare phrase.
    pub fn doing(&self) -> &str {
        &self.doing
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.kind.as_str())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| -> &(dyn StdError + 'static) { s.as_ref() })
    }
}
