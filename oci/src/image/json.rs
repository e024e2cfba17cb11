//! JSON as Go's encoder writes it: compact, members in the order of the type, and inside strings `<`, `>`, `&`
//! and the two Unicode line separators escaped.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// The canonical bytes of a value. Members come in the order the type declares them, so maps inside must be
/// ordered ones.
///
/// # Panics
///
/// If the type's `Serialize` fails, or uses keys that are not strings: a mistake in the type, not in a value.
pub fn canonical_json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Go(CompactFormatter));
    value.serialize(&mut serializer).expect("our types have string keys and write to memory");
    bytes
}

struct Go(CompactFormatter);

impl Formatter for Go {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            self.0.write_string_fragment(writer, &rest[..at])?;
            let mut tail = rest[at..].chars();
            if let Some(special) = tail.next() {
                write!(writer, "\\u{:04x}", u32::from(special))?;
            }
            rest = tail.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_like_go() {
        let check = |text: &str, expected: &str| {
            assert_eq!(String::from_utf8(canonical_json(&text)).unwrap(), expected);
        };
        check("a/b", r#""a/b""#);
        check("<&>", r#""\u003c\u0026\u003e""#);
        check("x\u{2028}y\u{2029}", r#""x\u2028y\u2029""#);
        check("\"\\", r#""\"\\""#);
        check("\u{8}\u{c}\n\r\t\u{1}\u{1f}", r#""\b\f\n\r\t\u0001\u001f""#);
        check("\u{7f}é", "\"\u{7f}é\"");
    }
}
