//! The errors of this crate, named by what the caller can do about them.
//!
//! An error is cheap to clone, because every reader that waited for a failed fetch gets it. It is logged where it is
//! handled (the FUSE door, the background), never where it passes.

use std::{error, fmt, io, sync::Arc};

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The source does not have the blob.
    NotFound,
    /// The source denies access.
    Denied,
    /// Bytes that do not match their digest, their checksum or the table of files.
    Corrupt,
    /// The source cannot be reached now, or is too slow; later it may be available.
    Unreachable,
    /// A layer of a kind that cannot be shown.
    Unsupported,
    /// The disk is full.
    Full,
    /// Every other error of the operating system.
    Io,
}

impl ErrorKind {
    /// All kinds.
    pub(crate) const ALL: &[Self] = &[
        Self::NotFound,
        Self::Denied,
        Self::Corrupt,
        Self::Unreachable,
        Self::Unsupported,
        Self::Full,
        Self::Io,
    ];

    /// The value of a metric's label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
            Self::Unreachable => "unreachable",
            Self::Unsupported => "unsupported",
            Self::Full => "full",
            Self::Io => "io",
        }
    }
}

/// A kind, a phrase for what was being done, and the cause.
#[derive(Debug, Clone)]
pub struct Error(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    doing: String,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, doing: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, doing: doing.into(), source: None }))
    }

    pub(crate) fn with(
        kind: ErrorKind,
        doing: impl Into<String>,
        source: impl Into<Box<dyn error::Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner { kind, doing: doing.into(), source: Some(source.into()) }))
    }

    /// A failed system call; a full disk has a kind of its own.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::with(kind_of(&source), doing, source)
    }

    pub(crate) fn blob(doing: impl Into<String>, source: oci::Error) -> Self {
        let kind = match source.kind() {
            oci::ErrorKind::NotFound => ErrorKind::NotFound,
            oci::ErrorKind::Denied => ErrorKind::Denied,
            oci::ErrorKind::Corrupt => ErrorKind::Corrupt,
            oci::ErrorKind::Unreachable => ErrorKind::Unreachable,
            oci::ErrorKind::Unsupported | oci::ErrorKind::Invalid => ErrorKind::Unsupported,
            oci::ErrorKind::Full => ErrorKind::Full,
            oci::ErrorKind::Io => ErrorKind::Io,
        };
        Self::with(kind, doing, source)
    }

    pub(crate) fn ztoc(doing: impl Into<String>, source: ztoc::Error) -> Self {
        let kind = match source.kind() {
            ztoc::ErrorKind::Corrupt => ErrorKind::Corrupt,
            ztoc::ErrorKind::Unsupported | ztoc::ErrorKind::TooLarge => ErrorKind::Unsupported,
            // The reader or writer that this crate gave to `ztoc` failed.
            ztoc::ErrorKind::Io => error::Error::source(&source)
                .and_then(<dyn error::Error>::downcast_ref)
                .map_or(ErrorKind::Io, kind_of),
        };
        Self::with(kind, doing, source)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

/// The kind of an error of the disk.
pub(crate) fn kind_of(source: &io::Error) -> ErrorKind {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.doing)?;
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
        self.0.source.as_deref().map(|source| source as &(dyn error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FailingDisk(io::ErrorKind);

    impl io::Write for FailingDisk {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_full_disk_has_its_own_kind_for_every_writer() {
        for (kind, expected) in
            [(io::ErrorKind::StorageFull, ErrorKind::Full), (io::ErrorKind::BrokenPipe, ErrorKind::Io)]
        {
            let mut builder =
                ztoc::Builder::new(ztoc::Compression::Uncompressed, &ztoc::Options::default()).unwrap();
            let mut disk = FailingDisk(kind);
            let failed =
                builder.push(&[0; 2048], &mut disk).and_then(|()| builder.finish(&mut disk).map(drop));
            assert_eq!(Error::ztoc("stream a layer", failed.unwrap_err()).kind(), expected);
            assert_eq!(Error::io("write", kind.into()).kind(), expected);
        }
    }
}
