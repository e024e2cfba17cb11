//! Whether a ztoc says of a layer what another one says: for somebody who has built one of the layer itself and
//! wants to know what to think of one that was found. How they are laid out in bytes does not matter.

use super::{Entry, Ztoc};
use crate::units::SpanId;

impl Ztoc {
    /// The first thing in which this ztoc differs from `truth`, in words; None if both say the same of spans,
    /// checkpoints and files. Version and build tool are no part of it, nor is the zone a time is written in.
    pub fn difference(&self, truth: &Ztoc) -> Option<String> {
        let whole: [(&str, u64, u64); 5] = [
            ("compression", self.compression() as u64, truth.compression() as u64),
            ("size of the layer", self.compressed_size(), truth.compressed_size()),
            ("size of the tar", self.uncompressed_size(), truth.uncompressed_size()),
            ("number of spans", u64::from(self.spans().len()), u64::from(truth.spans().len())),
            ("number of files", self.len() as u64, truth.len() as u64),
        ];
        if let Some((what, stated, found)) = whole.iter().find(|(_, stated, found)| stated != found) {
            return Some(format!("the {what} is {found}, the ztoc says {stated}"));
        }
        let spans = (0..truth.spans().len()).map(SpanId);
        let span = spans.filter_map(|span| self.span_difference(truth, span)).next();
        span.or_else(|| {
            let pairs = self.entries().zip(truth.entries());
            let differing = pairs.map(|(stated, found)| (found, entry_difference(&stated, &found)));
            differing.filter_map(|(found, what)| Some(of_file(&found, what?))).next()
        })
    }

    fn span_difference(&self, truth: &Ztoc, span: SpanId) -> Option<String> {
        let (stated, found) = (self.spans(), truth.spans());
        let what = if stated.compressed(span) != found.compressed(span) {
            "lies elsewhere in the layer"
        } else if stated.uncompressed(span) != found.uncompressed(span) {
            "lies elsewhere in the tar"
        } else if stated.digest(span) != found.digest(span) {
            "has another digest"
        } else if stated.checkpoint(span).map(|c| c.bits) != found.checkpoint(span).map(|c| c.bits) {
            "begins at another bit"
        } else if self.window(span).ok() != truth.window(span).ok() {
            "has another window"
        } else {
            return None;
        };
        Some(format!("span {span} {what}"))
    }
}

fn of_file(entry: &Entry<'_>, what: &str) -> String {
    format!("file {}: another {what}", entry.name().escape_ascii())
}

fn entry_difference(stated: &Entry<'_>, found: &Entry<'_>) -> Option<&'static str> {
    let same: [(&'static str, bool); 12] = [
        ("name", stated.name() == found.name()),
        ("type", stated.kind() == found.kind()),
        ("place", stated.data() == found.data()),
        ("size", stated.size() == found.size()),
        ("link", stated.link_target() == found.link_target()),
        ("mode", stated.mode() == found.mode()),
        ("user", (stated.uid(), stated.uname()) == (found.uid(), found.uname())),
        ("group", (stated.gid(), stated.gname()) == (found.gid(), found.gname())),
        ("time", stated.mtime() == found.mtime()),
        ("device", stated.device() == found.device()),
        ("place of its header", stated.header() == found.header()),
        ("list of records", stated.pax().eq(found.pax())),
    ];
    same.iter().find(|(_, same)| !same).map(|(what, _)| *what)
}
