//! Whether two ztocs say the same of a layer. A caller that has built one itself compares it with one that it found. How they are laid out in bytes does not matter.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tar_zinfo;
    use crate::codec::ztoc::{Content, Row, encode};
    use crate::zinfo::Compression;

    /// A ztoc of one file in a plain tar of 2048 bytes, written with these changes.
    fn written(change: impl Fn(&mut Row<'_>), also: impl Fn(&mut Content<'_>)) -> Ztoc {
        let mut row = Row {
            name: b"file",
            kind: "reg",
            offset: 512,
            size: 3,
            link: b"",
            mode: 0o644,
            uid: 1,
            gid: 2,
            uname: b"u",
            gname: b"g",
            mod_time: "1970-01-01T01:00:00+01:00".to_owned(),
            device: (0, 0),
            pax: vec![(b"SCHILY.xattr.user.a", b"1")],
        };
        change(&mut row);
        let mut content = Content {
            version: b"0.9",
            build_tool: b"tool",
            compressed_size: 2048,
            uncompressed_size: 2048,
            compression: Compression::Uncompressed,
            max_span_id: 0,
            digests: &[[7; 32]],
            checkpoints: tar_zinfo::encode(4096, 2048).into(),
        };
        also(&mut content);
        let bytes = encode(content, |each: &mut dyn FnMut(&Row<'_>)| each(&row), 0);
        Ztoc::from_vec(bytes).unwrap()
    }

    #[test]
    fn what_is_told_apart_and_what_is_not() {
        let truth = written(|_| {}, |_| {});
        let check = |found: &Ztoc, expected: Option<&str>| {
            assert_eq!(found.difference(&truth).as_deref(), expected);
        };
        check(&written(|row| row.mod_time = "1970-01-01T00:00:00Z".to_owned(), |_| {}), None);
        check(&written(|_| {}, |content| content.build_tool = b"another"), None);
        let file = |what: &str| format!("file file: another {what}");
        type Change = fn(&mut Row<'_>);
        let rows: [(&str, Change); 10] = [
            ("type", |row| row.kind = "fifo"),
            ("place", |row| row.offset = 1024),
            ("link", |row| row.link = b"x"),
            ("mode", |row| row.mode = 0o600),
            ("user", |row| row.uid = 3),
            ("user", |row| row.uname = b"v"),
            ("group", |row| row.gname = b"h"),
            ("time", |row| row.mod_time = "1970-01-01T01:00:00Z".to_owned()),
            ("device", |row| row.device = (0, 1)),
            ("list of records", |row| row.pax.clear()),
        ];
        for (what, change) in rows {
            check(&written(change, |_| {}), Some(&file(what)));
        }
        check(&written(|_| {}, |content| content.digests = &[[8; 32]]), Some("span 0 has another digest"));
        let other_spans = |content: &mut Content<'_>| {
            (content.max_span_id, content.digests) = (1, &[[7; 32]; 2]);
            content.checkpoints = tar_zinfo::encode(1024, 2048).into();
        };
        check(&written(|_| {}, other_spans), Some("the number of spans is 1, the ztoc says 2"));
    }
}
