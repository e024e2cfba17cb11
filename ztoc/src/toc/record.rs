//! One PAX record: its text, and the numbers in it.

/// The prefix of records that are extended attributes.
pub(crate) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Key and value of the first record, and what follows it. None if it is no record.
pub(super) fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(integer(&body[..space])?).ok()?;
    if len < 5 || len > body.len() || len <= space + 1 {
        return None;
    }
    let (last, record) = body[space + 1..len].split_last()?;
    if *last != b'\n' {
        return None;
    }
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let checked = match key {
        b"" => return None,
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!checked.contains(&0)).then_some((key, value, &body[len..]))
}

/// A decimal integer with an optional sign and nothing else.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
