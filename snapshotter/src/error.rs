//! What a verb can answer besides success, by what containerd makes of it.

use std::{error, fmt};

/// Named after containerd's own error classes; the door turns each into one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such snapshot.
    NotFound,
    /// There is one of that name; to a remote snapshot's Prepare this means success.
    AlreadyExists,
    /// It is not in a state for that: has children, is not active.
    FailedPrecondition,
    /// The request makes no sense.
    InvalidArgument,
    /// Our own trouble: disk, database, mounts.
    Internal,
}

/// A kind, a bare phrase for what was being done, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), source: None }
    }

    pub(crate) fn internal(
        doing: impl Into<String>,
        source: impl Into<Box<dyn error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind: ErrorKind::Internal, doing: doing.into(), source: Some(source.into()) }
    }

    /// What containerd makes of it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let mut source = error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn error::Error + 'static))
    }
}
