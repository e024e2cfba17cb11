//! The prefetch artifact of a layer: spans that a container is known to want at its start. It is written for the paths
//! a user names, in the form of the Go tools. It is hostile when read: only spans count that the layer has. Pure.

use std::collections::{BTreeMap, HashMap};

use oci::{Descriptor, Digest, canonical_json};
use serde::{Deserialize, Serialize};
use ztoc::{UncompressedOffset, Ztoc};

use crate::error::{Error, ErrorKind};
use crate::manifest::{LAYER_DIGEST, PREFETCH};

/// The only version there is.
const VERSION: &str = "1.0";
/// An artifact with more spans than this is refused: a layer has thousands, and they are written merged.
const SPANS_MAX: usize = 1 << 20;

/// Spans of one layer, from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spans {
    #[serde(rename = "start_span")]
    pub start: i32,
    #[serde(rename = "end_span")]
    pub end: i32,
    /// lower is more urgent; no builder sets it yet
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i64,
}

/// An artifact as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch {
    version: String,
    #[serde(rename = "prefetch_spans")]
    pub spans: Vec<Spans>,
}

impl Prefetch {
    /// An artifact of these spans: sorted, and one where they touch.
    pub fn of(mut spans: Vec<Spans>) -> Prefetch {
        spans.sort_unstable();
        let mut merged: Vec<Spans> = Vec::new();
        for next in spans {
            match merged.last_mut() {
                Some(last) if next.start <= last.end.saturating_add(1) => last.end = last.end.max(next.end),
                _ => merged.push(next),
            }
        }
        Prefetch { version: VERSION.to_owned(), spans: merged }
    }

    /// Reads an artifact. `Unsupported` if it is of another version, `Corrupt` if it is none, or names no span, or
    /// spans that no layer can have.
    pub fn parse(bytes: &[u8]) -> Result<Prefetch, Error> {
        let doing = "read prefetch artifact";
        let corrupt = |why: &str| Error::new(ErrorKind::Corrupt, doing).because(why);
        let read: Prefetch = serde_json::from_slice(bytes)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, doing).because(cause))?;
        if read.version != VERSION {
            let why = format!("its version is {:?}", read.version);
            return Err(Error::new(ErrorKind::Unsupported, doing).because(why));
        }
        if read.spans.is_empty() {
            return Err(corrupt("it names no span"));
        }
        if read.spans.len() > SPANS_MAX {
            return Err(corrupt("it names more spans than a layer has"));
        }
        if read.spans.iter().any(|spans| spans.start < 0 || spans.end < spans.start) {
            return Err(corrupt("spans that end before they start, or lie before the layer"));
        }
        Ok(read)
    }

    /// How many spans it names, each once for every time it is named.
    pub fn total(&self) -> i64 {
        self.spans.iter().map(|spans| i64::from(spans.end) - i64::from(spans.start) + 1).sum()
    }

    pub fn encode(&self) -> Vec<u8> {
        canonical_json(self)
    }
}

/// The descriptor of a layer's artifact.
pub(crate) fn describe(artifact: &[u8], layer: &Digest) -> Descriptor {
    let mut descriptor = Descriptor::of(PREFETCH, artifact);
    descriptor.annotations = BTreeMap::from([(LAYER_DIGEST.to_owned(), layer.to_string())]);
    descriptor
}

/// A path as members of a tar are named: without root, dots and doubled slashes. None where nothing is left.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A file to prefetch.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) typed: String,
    /// as a tar would name it
    name: String,
}

impl Wanted {
    /// None where nothing is left of the path.
    pub(crate) fn parse(path: &str) -> Option<Wanted> {
        Some(Wanted { typed: path.trim().to_owned(), name: clean(path)? })
    }
}

/// The spans in which each file lies in a layer, where it is in it: the first member of that very name.
/// Its end is counted as the Go tool counts it: a file that ends where a span does has the next one, too.
pub(crate) fn spans_of(ztoc: &Ztoc, files: &[Wanted]) -> Vec<Option<Spans>> {
    if files.is_empty() {
        return Vec::new();
    }
    let spans = ztoc.spans();
    let number = |span: ztoc::SpanId| i32::try_from(span.0).unwrap_or(i32::MAX);
    let mut found: HashMap<&[u8], Option<Spans>> =
        files.iter().map(|file| (file.name.as_bytes(), None)).collect();
    for entry in ztoc.entries() {
        if let Some(place @ None) = found.get_mut(entry.name()) {
            let start = entry.data().start;
            let end = UncompressedOffset(start.0.saturating_add(entry.size()));
            let (start, end) = (number(spans.span_of(start)), number(spans.end_span_as_listed(end)));
            *place = Some(Spans { start, end: end.max(start), priority: 0 });
        }
    }
    files.iter().map(|file| found.get(file.name.as_bytes()).copied().flatten()).collect()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form in which serde calls it
fn is_zero(priority: &i64) -> bool {
    *priority == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(start: i32, end: i32) -> Spans {
        Spans { start, end, priority: 0 }
    }

    /// The example of the format, by its digest.
    #[test]
    fn the_bytes_of_the_go_tool() {
        let bytes = Prefetch::of(vec![spans(2, 5), spans(0, 0)]).encode();
        assert_eq!(bytes.len(), 96);
        assert_eq!(
            Digest::sha256(&bytes).to_string(),
            "sha256:bf49d7a8938b9b0171e9e853a69cf8f8c6cdf07dab08bcb01796ab913a704af9"
        );
        assert_eq!(Prefetch::parse(&bytes).unwrap().total(), 5);
    }

    #[test]
    fn spans_that_touch_are_one() {
        let check = |given: &[(i32, i32)], expected: &[(i32, i32)]| {
            let of = |pairs: &[(i32, i32)]| pairs.iter().map(|&(a, b)| spans(a, b)).collect::<Vec<_>>();
            assert_eq!(Prefetch::of(of(given)).spans, of(expected), "{given:?}");
        };
        check(&[(3, 4), (0, 1)], &[(0, 1), (3, 4)]);
        check(&[(2, 2), (0, 1)], &[(0, 2)]);
        check(&[(0, 9), (2, 3), (4, 10)], &[(0, 10)]);
        check(&[(5, 5), (5, 5)], &[(5, 5)]);
        check(&[(0, i32::MAX), (3, 3)], &[(0, i32::MAX)]);
    }

    #[test]
    fn hostile_artifacts() {
        let kind = |text: &str| Prefetch::parse(text.as_bytes()).unwrap_err().kind();
        assert_eq!(kind(r#"{"version":"2.0","prefetch_spans":[]}"#), ErrorKind::Unsupported);
        for text in [
            "",
            "[]",
            r#"{"version":"1.0"}"#,
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":2}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":2}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":99999999999}]}"#,
        ] {
            assert_eq!(kind(text), ErrorKind::Corrupt, "{text}");
        }
        let whole =
            r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":2147483647,"priority":3}]}"#;
        assert_eq!(Prefetch::parse(whole.as_bytes()).unwrap().total(), 1 << 31);
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("/a/b", "a/b"),
            (" a//b/ ", "a/b"),
            ("./a/../b", "b"),
            ("/../../a", "a"),
            ("a/.", "a"),
            ("ä b", "ä b"),
        ] {
            assert_eq!(clean(path).as_deref(), Some(expected), "{path}");
        }
        for path in ["", " ", "/", "..", "a/.."] {
            assert_eq!(clean(path), None, "{path}");
        }
    }
}
