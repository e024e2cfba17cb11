//! Why a layer is not lazy: one name in logs, metrics, status and docs.

use std::{error, fmt, iter};

/// Every outcome of Prepare that is not a lazily loaded layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The image has no SOCI index.
    NoIndex,
    /// The image's index has no ztoc for this layer.
    NoZtoc,
    /// The layer is smaller than the configured `[snapshotter] min_layer_size`.
    BelowMinSize,
    /// The layer's media type cannot be read, by range or as a stream.
    UnsupportedLayer,
    /// The index, or the manifest that names it, is not what it should be, or is missing.
    IndexInvalid,
    /// The ztoc is not what the index says, or cannot be used.
    ZtocInvalid,
    /// The registry refuses us.
    Denied,
    /// The registry cannot be reached.
    Unreachable,
    /// The client sent labels that do not say which layer this is.
    NoLabels,
    /// Lazy loading is switched off.
    Disabled,
    /// No room for a layer that has to be stored whole.
    DiskFull,
    /// The layer is there already, over other lower layers than this image is being put on.
    OtherParent,
    /// The layer has others below it, and the client does not say which snapshot they make.
    NoParent,
    /// The layer, brought whole, is not the one that the image's configuration names.
    OtherContent,
    /// Processes crashed on the layer.
    Quarantined,
    /// Our own trouble; the log says which.
    Internal,
}

impl Reason {
    /// All there are.
    pub(crate) const ALL: &[Self] = &[
        Self::NoIndex,
        Self::NoZtoc,
        Self::BelowMinSize,
        Self::UnsupportedLayer,
        Self::IndexInvalid,
        Self::ZtocInvalid,
        Self::Denied,
        Self::Unreachable,
        Self::NoLabels,
        Self::Disabled,
        Self::DiskFull,
        Self::OtherParent,
        Self::NoParent,
        Self::OtherContent,
        Self::Quarantined,
        Self::Internal,
    ];

    /// The name that others see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoIndex => "no_index",
            Self::NoZtoc => "no_ztoc",
            Self::BelowMinSize => "below_min_size",
            Self::UnsupportedLayer => "unsupported_layer",
            Self::IndexInvalid => "index_invalid",
            Self::ZtocInvalid => "ztoc_invalid",
            Self::Denied => "denied",
            Self::Unreachable => "unreachable",
            Self::NoLabels => "no_labels",
            Self::Disabled => "disabled",
            Self::DiskFull => "disk_full",
            Self::OtherParent => "other_parent",
            Self::NoParent => "no_parent",
            Self::OtherContent => "other_content",
            Self::Quarantined => "quarantined",
            Self::Internal => "internal",
        }
    }

    /// What a registry's failure means, where it hit the thing that `missing` names.
    pub(crate) fn of_registry(error: &oci::Error, missing: Self) -> Self {
        match error.kind() {
            oci::ErrorKind::NotFound | oci::ErrorKind::Corrupt | oci::ErrorKind::Invalid => missing,
            oci::ErrorKind::Unsupported => missing,
            oci::ErrorKind::Denied => Self::Denied,
            oci::ErrorKind::Unreachable => Self::Unreachable,
            oci::ErrorKind::Full => Self::DiskFull,
            oci::ErrorKind::Io => Self::Internal,
        }
    }

    /// What a failure to open or stream a layer means.
    pub(crate) fn of_layer(error: &layerfs::Error) -> Self {
        match error.kind() {
            layerfs::ErrorKind::NotFound | layerfs::ErrorKind::Corrupt => Self::ZtocInvalid,
            layerfs::ErrorKind::Unsupported => Self::UnsupportedLayer,
            layerfs::ErrorKind::Denied => Self::Denied,
            layerfs::ErrorKind::Unreachable => Self::Unreachable,
            layerfs::ErrorKind::Full => Self::DiskFull,
            layerfs::ErrorKind::Io => Self::Internal,
        }
    }
}

/// Why a layer is not lazy, and what exactly was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotLazy {
    pub(crate) reason: Reason,
    /// One sentence for log and status. A registry may have written part of it.
    pub(crate) detail: String,
}

impl NotLazy {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// A registry's failure to deliver the thing that `missing` is about.
    pub(crate) fn of_registry(error: &oci::Error, missing: Reason) -> Self {
        Self::new(Reason::of_registry(error, missing), with_causes(error))
    }

    /// A failure to open or stream a layer.
    pub(crate) fn of_layer(error: &layerfs::Error) -> Self {
        // It displays its causes itself.
        Self::new(Reason::of_layer(error), error.to_string())
    }

    /// A failure of the daemon itself.
    pub(crate) fn internal(error: &dyn error::Error) -> Self {
        Self::new(Reason::Internal, with_causes(error))
    }
}

/// Another crate's error with all its causes, in one line.
fn with_causes(error: &dyn error::Error) -> String {
    let causes = iter::successors(error.source(), |cause| cause.source());
    iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
