//! The only prints. Results go to standard output, errors, progress and the log to standard error. A reader that went
//! away (`| head`) is no error; a disk that is full is one, told at the end. Progress is shown on a terminal only, and
//! is gone when it is over.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// A layer's bar: its name, how much of it is read, and how fast.
const BAR: &str = "{prefix} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}";
/// Blanks between columns, and the narrowest column, as the Go tool's tables have them.
const COLUMN_GAP: usize = 4;
const COLUMN_WIDTH_MIN: usize = 8;

/// Both streams. Lines from several threads do not mix.
#[derive(Debug)]
pub struct Output {
    /// the first write that failed
    failed: Mutex<Option<io::Error>>,
    bars: MultiProgress,
    layers: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Default for Output {
    fn default() -> Output {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bars = MultiProgress::with_draw_target(target);
        Output { failed: Mutex::default(), bars, layers: Mutex::default() }
    }
}

impl Output {
    /// A line of result.
    pub fn line(&self, text: &str) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Bytes of result, as they are.
    pub fn bytes(&self, bytes: &[u8]) {
        if let Err(cause) = self.bars.suspend(|| io::stdout().lock().write_all(bytes)) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        }
    }

    /// A table: a head, and rows of as many cells.
    pub fn table<const COLUMNS: usize>(&self, head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            let widest = cells.chain([head[column].len()]).max().unwrap_or_default();
            (widest + COLUMN_GAP).max(COLUMN_WIDTH_MIN)
        });
        let print = |cells: [&str; COLUMNS]| {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                line.push_str(&format!("{cell:width$}"));
            }
            self.line(line.trim_end());
        };
        print(head);
        for row in rows {
            print(std::array::from_fn(|column| row[column].as_str()));
        }
    }

    /// A layer of `size` bytes begins to be read.
    pub fn begun(&self, layer: &str, size: u64) {
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        let short = layer.split(':').next_back().unwrap_or(layer).chars().take(12).collect::<String>();
        let bar = self.bars.add(ProgressBar::new(size).with_style(style).with_prefix(short));
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.to_owned(), bar);
    }

    /// So many more bytes of it are.
    pub fn read(&self, layer: &str, bytes: u64) {
        if let Some(bar) = self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(layer) {
            bar.inc(bytes);
        }
    }

    /// All of it is, or it was given up.
    pub fn ended(&self, layer: &str) {
        if let Some(bar) = self.layers.lock().unwrap_or_else(PoisonError::into_inner).remove(layer) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    /// A value as JSON, as Go's tools indent it.
    pub fn json<T: Serialize>(&self, value: &T) {
        self.indented(&oci::canonical_json(value));
    }

    /// A JSON document with its spacing renewed and nothing else changed.
    pub fn indented(&self, document: &[u8]) {
        self.line(&String::from_utf8_lossy(&indent(document)));
    }

    /// A line for the user that is no result: an error, a hint.
    pub fn tell(&self, text: &str) {
        // If this cannot be written, nothing can be.
        let _ = self.bars.suspend(|| writeln!(io::stderr().lock(), "{text}"));
    }

    /// Begins to log to standard error: warnings, or everything; `RUST_LOG` says it more exactly.
    pub fn log(&self, debug: Debug) {
        let level = match debug {
            Debug::On => "debug",
            Debug::Off => "warn",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        // It fails if there is a logger already, as in a test.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).try_init();
    }

    /// Whether everything printed got through.
    pub fn finish(&self) -> io::Result<()> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failed.map_or_else(|| io::stdout().flush(), Err) {
            Err(cause) if cause.kind() != ErrorKind::BrokenPipe => Err(cause),
            _ => Ok(()),
        }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debug {
    On,
    Off,
}

/// Two spaces a level, as Go's `json.Indent` writes it: strings and numbers stay byte for byte as they are.
fn indent(document: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(document.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    // After an opening bracket: the line break waits, since nothing may follow.
    let mut opened = false;
    for &byte in document {
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = byte == b'\\' && !escaped;
            out.push(byte);
            continue;
        }
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            continue;
        }
        let closes = matches!(byte, b'}' | b']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        if opened != closes {
            new_line(&mut out, depth);
        }
        opened = matches!(byte, b'{' | b'[');
        depth += usize::from(opened);
        quoted = byte == b'"';
        out.push(byte);
        match byte {
            b',' => new_line(&mut out, depth),
            b':' => out.push(b' '),
            _ => {}
        }
    }
    out
}

fn new_line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.resize(out.len() + 2 * depth, b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indents_like_go() {
        let check = |text: &str, expected: &str| {
            assert_eq!(String::from_utf8(indent(text.as_bytes())).unwrap(), expected, "{text}");
        };
        check("{}", "{}");
        check("[ ]", "[]");
        check(r#"{"a":1}"#, "{\n  \"a\": 1\n}");
        check(r#"{"a" : [], "b":{}}"#, "{\n  \"a\": [],\n  \"b\": {}\n}");
        check(r#"[1,[2,3]]"#, "[\n  1,\n  [\n    2,\n    3\n  ]\n]");
        check(r#"{"a":"x\",{ [\\"}"#, "{\n  \"a\": \"x\\\",{ [\\\\\"\n}");
        check(r#"{"a":"é <"}"#, "{\n  \"a\": \"é <\"\n}");
        check("}}", "\n}\n}");
    }
}
