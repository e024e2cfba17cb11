//! The only prints. Results go to standard output, errors and the log to standard error. A reader that went away
//! (`| head`) is no error; a disk that is full is one, told at the end.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Both streams. Lines from several threads do not mix.
#[derive(Debug, Default)]
pub struct Output {
    /// the first write that failed
    failed: Mutex<Option<io::Error>>,
}

impl Output {
    /// A line of result.
    pub fn line(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        if let Err(cause) = writeln!(stdout, "{text}") {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        }
    }

    /// Bytes of result, as they are.
    pub fn bytes(&self, bytes: &[u8]) {
        if let Err(cause) = io::stdout().lock().write_all(bytes) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
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
        // Where this cannot be written there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Begins to log to standard error: warnings, or everything; `RUST_LOG` says it more exactly.
    pub fn log(&self, debug: Debug) {
        let level = match debug {
            Debug::On => "debug",
            Debug::Off => "warn",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        // It fails where someone logs already, as in a test.
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
