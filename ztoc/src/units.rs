//! Offsets and span numbers as types, so that adding a compressed offset to an uncompressed one does not
//! compile. A range is `Range<CompressedOffset>` or `Range<UncompressedOffset>`, half open.
//!
//! `+` and `-` are for offsets already checked (they panic on overflow where overflow checks are on); outside
//! bytes go through `checked_add`.

use std::fmt;
use std::ops::{Add, Range, Sub};

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The offset `bytes` further on, or nothing when it does not fit.
            pub fn checked_add(self, bytes: u64) -> Option<$name> {
                self.0.checked_add(bytes).map($name)
            }
        }

        impl Add<u64> for $name {
            type Output = $name;
            fn add(self, bytes: u64) -> $name {
                $name(self.0 + bytes)
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, earlier: $name) -> u64 {
                self.0 - earlier.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

offset! {
    /// A byte offset in the layer as it is stored in a registry.
    CompressedOffset
}
offset! {
    /// A byte offset in the tar, that is, in the layer inflated.
    UncompressedOffset
}

/// The number of a span, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub u32);

impl SpanId {
    /// The number as an index into a table of spans.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The length of a range of uncompressed bytes; 0 when its end lies before its start.
pub(crate) fn length(range: &Range<UncompressedOffset>) -> u64 {
    range.end.0.saturating_sub(range.start.0)
}
