//! The one error type of this crate: kind, bare phrase, cause. What fails below comes up with the kind it has
//! there.

use std::error::Error as StdError;
use std::fmt;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The image has no layer an index could be made of.
    NoZtocs,
    NotFound,
    Denied,
    Corrupt,
    Unreachable,
    Unsupported,
    Full,
    Invalid,
    Io,
}

/// See the module.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `doing` is a bare phrase, a verb first: "build ztoc of …".
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// The same error with its cause: another error, or a sentence that says what was wrong.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// The same kind one step further out.
    #[must_use]
    pub fn within(self, doing: impl Into<String>) -> Error {
        Error::new(self.kind, doing).because(self)
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn doing(&self) -> &str {
        &self.doing
    }

    /// The cause, for another crate's error type to take over.
    pub fn into_source(self) -> Option<Box<dyn StdError + Send + Sync>> {
        self.source
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            // What the Go tools say here, word for word: scripts look for it.
            ErrorKind::NoZtocs => {
                return f.write_str("no ztocs created, all layers either skipped or produced errors");
            }
            ErrorKind::NotFound => oci::ErrorKind::NotFound,
            ErrorKind::Denied => oci::ErrorKind::Denied,
            ErrorKind::Corrupt => oci::ErrorKind::Corrupt,
            ErrorKind::Unreachable => oci::ErrorKind::Unreachable,
            ErrorKind::Unsupported => oci::ErrorKind::Unsupported,
            ErrorKind::Full => oci::ErrorKind::Full,
            ErrorKind::Invalid => oci::ErrorKind::Invalid,
            ErrorKind::Io => oci::ErrorKind::Io,
        };
        write!(f, "{}: {}", self.doing, kind.as_str())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| -> &(dyn StdError + 'static) { s.as_ref() })
    }
}

impl From<oci::Error> for Error {
    fn from(error: oci::Error) -> Error {
        let (kind, doing, source) = error.into_parts();
        let kind = match kind {
            oci::ErrorKind::NotFound => ErrorKind::NotFound,
            oci::ErrorKind::Denied => ErrorKind::Denied,
            oci::ErrorKind::Corrupt => ErrorKind::Corrupt,
            oci::ErrorKind::Unreachable => ErrorKind::Unreachable,
            oci::ErrorKind::Unsupported => ErrorKind::Unsupported,
            oci::ErrorKind::Full => ErrorKind::Full,
            oci::ErrorKind::Invalid => ErrorKind::Invalid,
            oci::ErrorKind::Io => ErrorKind::Io,
        };
        Error { kind, doing, source }
    }
}
