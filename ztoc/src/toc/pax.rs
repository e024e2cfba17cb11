//! PAX records: their text, and what they override in a header.
//!
//! A record is `length key=value\n`, where the length counts itself; so a value may hold any byte, newlines
//! too. The last of several records with one key counts. All records stay with the entry, in the order of
//! their keys; those with a meaning and a value override the header.

use std::collections::BTreeMap;

use super::{
    FileEntry, MTime,
    record::{Record, integer, record},
    sparse,
};
use crate::error::Error;

/// The records of a PAX header's body, in ascending order of their keys.
pub(super) fn parse(mut body: &[u8]) -> Result<Vec<Record>, Error> {
    let mut records = BTreeMap::new();
    let mut folded = sparse::Folded::default();
    while !body.is_empty() {
        let (key, value, rest) = record(body).ok_or_else(|| Error::corrupt("read PAX header: bad record"))?;
        body = rest;
        if !folded.take(key, value)? {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    if let Some(map) = folded.into_map() {
        records.insert(sparse::MAP.to_vec(), map);
    }
    Ok(records.into_iter().map(|(key, value)| Record { key, value }).collect())
}

/// Overrides what the header said, and leaves the records with the entry.
pub(super) fn merge(records: Vec<Record>, entry: &mut FileEntry) -> Result<(), Error> {
    let bad = || Error::corrupt("read PAX header: bad number or time");
    for Record { key, value } in &records {
        if value.is_empty() {
            continue; // the header's own value stands
        }
        match key.as_slice() {
            b"path" => entry.name.clone_from(value),
            b"linkpath" => entry.link.clone_from(value),
            b"uname" => entry.uname.clone_from(value),
            b"gname" => entry.gname.clone_from(value),
            // a ztoc keeps the low 32 bits
            b"uid" => entry.uid = integer(value).ok_or_else(bad)?.cast_unsigned() as u32,
            b"gid" => entry.gid = integer(value).ok_or_else(bad)?.cast_unsigned() as u32,
            b"size" => entry.size = integer(value).ok_or_else(bad)?,
            b"mtime" => entry.mtime = MTime::from_pax(value).ok_or_else(bad)?,
            // not kept, but a time that is none spoils the archive as it does for the original
            b"atime" | b"ctime" => _ = MTime::from_pax(value).ok_or_else(bad)?,
            _ => {}
        }
    }
    entry.pax = records;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<&[(&str, &str)]>) {
        let record = |(key, value): &(&str, &str)| Record { key: (*key).into(), value: (*value).into() };
        let expected: Option<Vec<_>> = expected.map(|records| records.iter().map(record).collect());
        assert_eq!(parse(body.as_bytes()).ok(), expected, "{body:?}");
    }

    #[test]
    fn records() {
        check("", Some(&[]));
        check("6 k=v\n", Some(&[("k", "v")]));
        check("5 k=\n", Some(&[("k", "")]));
        check("6 k=v\n6 k=w\n6 a=b\n", Some(&[("a", "b"), ("k", "w")]));
        check("14 k=1 2\n3=4\n\n", Some(&[("k", "1 2\n3=4\n")]));
        check("7 k=a\0\n", Some(&[("k", "a\0")]));
        check("10 path=a\0\n", None);
        check("7 k\0=v\n", None);
        check("7 k=v\n", None);
        check("6 k=v", None);
        check("6 k v\n", None);
        check("5 =v\n", None);
        check("-6 k=v\n", None);
        check("99999999999999999999 k=v\n", None);
        check("6k=v\n", None);
        check("5 \n", None);
    }
}
