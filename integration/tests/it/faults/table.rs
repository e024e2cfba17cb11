//! What can go wrong between the registry and the daemon, and what comes of it at each stage: the rows that `cells`
//! runs, and that `docs/semantics.md` shows to users (a test below compares the two).

use std::{collections::BTreeSet, fmt};

use integration::{
    link::{Answer, Fault},
    machine::root,
};

/// What is being fetched when the fault is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The image's SOCI index, at the mount of its first layer.
    Index,
    /// A layer's ztoc, at the mount of the layer.
    Ztoc,
    /// A layer that has no ztoc, at its mount: the whole of it.
    Stream,
    /// A layer's prefetch artifact, and the spans that it names.
    Prefetch,
    /// Spans that a reader waits for.
    Read,
    /// Spans that no reader waits for.
    Fill,
}

/// In the order of the document's columns.
pub(crate) const STAGES: [Stage; 6] =
    [Stage::Index, Stage::Ztoc, Stage::Stream, Stage::Prefetch, Stage::Read, Stage::Fill];

/// What comes of a fault that lasts. No outcome has a wrong byte in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything goes as if nothing were wrong.
    Unnoticed,
    /// It waits until the fault is over, and goes on as if nothing had been.
    Waits,
    /// The image is left to containerd, for this reason.
    Left(&'static str),
    /// The image is lazy all the same, and nothing waits.
    Lazy,
    /// The layer is fetched whole, for this reason.
    Whole(&'static str),
    /// The pull fails; when the fault is over the next one does not.
    Fails,
    /// A reader gets EIO. When the fault is over, it gets the right bytes.
    Error,
    /// Nothing comes until the fault is over; then everything does.
    Later,
    /// The fault is none here.
    None,
}

/// A fault, and its cells.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// to people
    pub(crate) words: &'static str,
    pub(crate) fault: fn() -> Fault,
    /// So many requests must have met it before it is lifted: more than one attempt has.
    pub(crate) hits: u64,
    /// one for each of [`STAGES`]
    pub(crate) cells: [Outcome; STAGES.len()],
}

impl Row {
    pub(crate) fn outcome(&self, stage: Stage) -> Outcome {
        let place = STAGES.iter().position(|other| *other == stage);
        self.cells[place.expect("every stage is a column")]
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Index => "mount: index",
            Stage::Ztoc => "mount: ztoc",
            Stage::Stream => "mount: whole layer",
            Stage::Prefetch => "prefetch",
            Stage::Read => "first read",
            Stage::Fill => "fill",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Unnoticed => f.write_str("unnoticed"),
            Outcome::Waits => f.write_str("waits"),
            Outcome::Left(reason) => write!(f, "left: `{reason}`"),
            Outcome::Lazy => f.write_str("lazy"),
            Outcome::Whole(reason) => write!(f, "whole: `{reason}`"),
            Outcome::Fails => f.write_str("fails"),
            Outcome::Error => f.write_str("EIO"),
            Outcome::Later => f.write_str("later"),
            Outcome::None => f.write_str("–"),
        }
    }
}

/// Cannot be reached, in one way or another.
const AWAY: [Outcome; STAGES.len()] = [
    Outcome::Left("unreachable"),
    Outcome::Whole("unreachable"),
    Outcome::Fails,
    Outcome::Lazy,
    Outcome::Waits,
    Outcome::Later,
];
/// Does not let us in.
const CLOSED: [Outcome; STAGES.len()] = [
    Outcome::Left("denied"),
    Outcome::Whole("denied"),
    Outcome::Fails,
    Outcome::Lazy,
    Outcome::Waits,
    Outcome::Later,
];
/// Has something else than it should.
const WRONG: [Outcome; STAGES.len()] = [
    Outcome::Left("index_invalid"),
    Outcome::Whole("ztoc_invalid"),
    Outcome::Fails,
    Outcome::Lazy,
    Outcome::Error,
    Outcome::Later,
];
/// Something still comes, and then all of it.
const SLOW: [Outcome; STAGES.len()] =
    [Outcome::Waits, Outcome::Waits, Outcome::Waits, Outcome::Lazy, Outcome::Waits, Outcome::Later];
/// Stands still: what can go on without it does, the rest waits.
const SILENT: [Outcome; STAGES.len()] = [
    Outcome::Left("unreachable"),
    Outcome::Whole("unreachable"),
    Outcome::Waits,
    Outcome::Lazy,
    Outcome::Waits,
    Outcome::Later,
];
/// Is gone about in another way.
const AROUND: [Outcome; STAGES.len()] = [
    Outcome::None,
    Outcome::Unnoticed,
    Outcome::Unnoticed,
    Outcome::Lazy,
    Outcome::Unnoticed,
    Outcome::Unnoticed,
];

/// Bytes of a body that pass before something happens: fewer than anything here has.
const FEW: u64 = 100;
/// More than an index has, and fewer than a layer.
const MANY: u64 = 100_000;
/// A request is sent five times before the caller gets an error.
const ONE_MORE: u64 = 6;

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "refused",
        words: "no server listens where the registry redirects to",
        fault: || Fault::redirect("http://127.0.0.1:1/nothing"),
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "dns",
        words: "the name of the host it sends us to is not known",
        fault: || Fault::redirect("http://does-not-exist.invalid/blob"),
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "hang-up",
        words: "the connection is reset before an answer",
        fault: || Fault::HangUp,
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "reset",
        words: "the connection is reset soon after the answer's beginning",
        fault: || Fault::Reset { after: FEW },
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "truncated",
        words: "the body ends sooner than its length says",
        fault: || Fault::Truncate { after: FEW },
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "truncated-late",
        words: "the same after 100 kB each time",
        fault: || Fault::Truncate { after: MANY },
        hits: 1,
        cells: AROUND,
    },
    Row {
        name: "shortened",
        words: "body and length are shorter than what was asked for",
        fault: || Fault::Shorten { to: FEW },
        hits: 1,
        cells: WRONG,
    },
    Row {
        name: "stall",
        words: "nothing moves after the answer's beginning",
        fault: || Fault::Stall { after: FEW },
        hits: 1,
        cells: SILENT,
    },
    Row { name: "trickle", words: "one byte a second", fault: || Fault::Trickle, hits: 1, cells: SLOW },
    Row {
        name: "429",
        words: "429 with `Retry-After`",
        fault: || Fault::busy(429, 1),
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row {
        name: "503",
        words: "503 with `Retry-After`",
        fault: || Fault::busy(503, 1),
        hits: ONE_MORE,
        cells: AWAY,
    },
    Row { name: "500", words: "500", fault: || Fault::status(500), hits: ONE_MORE, cells: AWAY },
    Row {
        name: "401",
        words: "401 that asks for nothing",
        fault: || Fault::status(401),
        hits: 2,
        cells: CLOSED,
    },
    Row {
        name: "403",
        words: "403",
        fault: || Fault::Answer(Answer::new(403).body(r#"{"errors":[{"code":"DENIED"}]}"#)),
        hits: 2,
        cells: CLOSED,
    },
    Row { name: "404", words: "404", fault: || Fault::status(404), hits: 2, cells: WRONG },
    Row {
        name: "200-for-206",
        words: "the whole blob for a range of it",
        fault: || Fault::WholeBlob,
        hits: 1,
        cells: [
            Outcome::None,
            Outcome::None,
            Outcome::None,
            Outcome::Lazy,
            Outcome::Unnoticed,
            Outcome::Unnoticed,
        ],
    },
    Row {
        name: "wrong-range",
        words: "another `Content-Range` than was asked for",
        fault: || Fault::WrongRange,
        hits: 2,
        cells: [Outcome::None, Outcome::None, Outcome::None, Outcome::Lazy, Outcome::Error, Outcome::Later],
    },
    Row {
        name: "flipped",
        words: "an inverted byte",
        fault: || Fault::Flip { nth: 700 },
        hits: 2,
        cells: WRONG,
    },
    Row {
        name: "redirect-loop",
        words: "a redirect to itself",
        fault: || Fault::RedirectLoop,
        // Ten are followed in each attempt.
        hits: 11 * ONE_MORE,
        cells: AWAY,
    },
];

#[test]
fn the_documented_faults_are_the_faults() {
    let page = std::fs::read_to_string(root().join("docs/semantics.md")).expect("read the page");
    let documented: BTreeSet<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let given: BTreeSet<String> = ROWS
        .iter()
        .map(|row| {
            let outcomes = row.cells.map(|outcome| outcome.to_string()).join(" | ");
            format!("| `{}` | {} | {outcomes} |", row.name, row.words)
        })
        .collect();
    let given: BTreeSet<&str> = given.iter().map(String::as_str).collect();
    assert_eq!(documented, given, "the rows of the table in docs/semantics.md");
    let head = STAGES.map(|stage| stage.to_string()).join(" | ");
    assert!(page.contains(&format!(" | {head} |\n")), "the columns are {head}");
}
