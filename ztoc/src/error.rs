//! The one error of this crate: what a caller can do about it, what was being done, and what lay beneath.

use std::borrow::Cow;
use std::fmt;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The bytes are not what they claim to be. Fetch them again, or give them up.
    Corrupt,
    /// The bytes may be fine, but a ztoc cannot express them. Do without a ztoc.
    Unsupported,
    /// More than the limit that was given, or than the format can hold.
    TooLarge,
    /// The caller's own reader, writer or fetch failed; see the source.
    Io,
}

/// A failure: a kind, a bare phrase for what was being done, and a source if there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn corrupt(doing: impl Into<Cow<'static, str>>) -> Error {
        Error { kind: ErrorKind::Corrupt, doing: doing.into(), source: None }
    }

    pub(crate) fn unsupported(doing: impl Into<Cow<'static, str>>) -> Error {
        Error { kind: ErrorKind::Unsupported, doing: doing.into(), source: None }
    }

    pub(crate) fn too_large(doing: impl Into<Cow<'static, str>>) -> Error {
        Error { kind: ErrorKind::TooLarge, doing: doing.into(), source: None }
    }

    pub(crate) fn io(doing: impl Into<Cow<'static, str>>, source: std::io::Error) -> Error {
        Error { kind: ErrorKind::Io, doing: doing.into(), source: Some(Box::new(source)) }
    }

    /// Says what was being done when `self` happened; the kind may change with the point of view.
    pub(crate) fn within(self, kind: ErrorKind, doing: impl Into<Cow<'static, str>>) -> Error {
        Error { kind, doing: doing.into(), source: Some(Box::new(self)) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
