//! The error of a command: kind, bare phrase, cause. What the libraries report comes up as it is; `main` tells
//! the whole chain, once.

use std::error::Error as StdError;
use std::fmt;

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Denied,
    Corrupt,
    Unreachable,
    Unsupported,
    Full,
    /// what was typed makes no sense
    Invalid,
    Io,
    /// the libraries' own words say it all
    NoZtocs,
    /// a signal ended the command
    Interrupted,
}

/// See the module.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// a whole message, since people read it
    doing: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error { kind, doing: doing.into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// An error of `oci`, with the larger task it stood in the way of.
    pub fn from_oci(doing: impl Into<String>, cause: oci::Error) -> Error {
        Error::new(oci_kind(cause.kind()), doing).because(cause)
    }

    /// An error of the operating system.
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Error {
        Error::from(oci::Error::io(doing, cause))
    }

    /// The same as an error of `oci`, for a store that is ours.
    pub fn into_oci(self) -> oci::Error {
        let kind = match self.kind {
            ErrorKind::NotFound => oci::ErrorKind::NotFound,
            ErrorKind::Denied => oci::ErrorKind::Denied,
            ErrorKind::Corrupt => oci::ErrorKind::Corrupt,
            ErrorKind::Unreachable => oci::ErrorKind::Unreachable,
            ErrorKind::Unsupported => oci::ErrorKind::Unsupported,
            ErrorKind::Full => oci::ErrorKind::Full,
            ErrorKind::Invalid => oci::ErrorKind::Invalid,
            ErrorKind::Io | ErrorKind::NoZtocs | ErrorKind::Interrupted => oci::ErrorKind::Io,
        };
        let error = oci::Error::new(kind, self.doing);
        match self.source {
            Some(source) => error.because(source),
            None => error,
        }
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What `main` tells: the message and every cause, each on the same line after a colon.
    pub fn chain(&self) -> String {
        let mut text = format!("soci: {self}");
        let mut cause = self.source();
        while let Some(next) = cause {
            let said = next.to_string();
            if !text.ends_with(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = next.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| -> &(dyn StdError + 'static) { s.as_ref() })
    }
}

impl From<oci::Error> for Error {
    fn from(error: oci::Error) -> Error {
        let said = error.to_string();
        let (kind, _, source) = error.into_parts();
        Error { kind: oci_kind(kind), doing: said, source }
    }
}

impl From<index::Error> for Error {
    fn from(error: index::Error) -> Error {
        let kind = match error.kind() {
            index::ErrorKind::NoZtocs => ErrorKind::NoZtocs,
            index::ErrorKind::NotFound => ErrorKind::NotFound,
            index::ErrorKind::Denied => ErrorKind::Denied,
            index::ErrorKind::Corrupt => ErrorKind::Corrupt,
            index::ErrorKind::Unreachable => ErrorKind::Unreachable,
            index::ErrorKind::Unsupported => ErrorKind::Unsupported,
            index::ErrorKind::Full => ErrorKind::Full,
            index::ErrorKind::Invalid => ErrorKind::Invalid,
            index::ErrorKind::Io => ErrorKind::Io,
        };
        let (said, source) = (error.to_string(), error.into_source());
        Error { kind, doing: said, source }
    }
}

fn oci_kind(kind: oci::ErrorKind) -> ErrorKind {
    match kind {
        oci::ErrorKind::NotFound => ErrorKind::NotFound,
        oci::ErrorKind::Denied => ErrorKind::Denied,
        oci::ErrorKind::Corrupt => ErrorKind::Corrupt,
        oci::ErrorKind::Unreachable => ErrorKind::Unreachable,
        oci::ErrorKind::Unsupported => ErrorKind::Unsupported,
        oci::ErrorKind::Full => ErrorKind::Full,
        oci::ErrorKind::Invalid => ErrorKind::Invalid,
        oci::ErrorKind::Io => ErrorKind::Io,
    }
}
