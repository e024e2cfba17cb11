//! containerd's filter language, as far as snapshots need it: `name==x`, `parent!=x`, `kind==Committed`,
//! `labels."a.b"==c`, a field alone for *is there*; a comma means and, several filters mean or. Pure.

use crate::{
    error::{Error, ErrorKind},
    store::{Kind, Record},
};

/// One filter: all of its conditions hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter(Vec<Condition>);

#[derive(Debug, PartialEq, Eq)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// One that no snapshot has.
    Unknown,
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
}

/// Parses every filter; an empty list matches everything.
pub(crate) fn parse(filters: &[String]) -> Result<Vec<Filter>, Error> {
    filters.iter().filter(|text| !text.trim().is_empty()).map(|text| Filter::parse(text)).collect()
}

/// Whether one of `filters` matches, or there is none.
pub(crate) fn matches(filters: &[Filter], record: &Record) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.0.iter().all(|one| one.holds(record)))
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::new(ErrorKind::InvalidArgument, format!("list snapshots: filter {text:?}: {why}"))
        };
        let mut rest = text;
        let mut conditions = Vec::new();
        loop {
            let mut path = Vec::new();
            loop {
                let (part, after) = word(rest, &['.', '=', '!', '~', ',']).map_err(invalid)?;
                path.push(part);
                rest = after;
                let Some(after) = rest.strip_prefix('.') else { break };
                rest = after;
            }
            let test = if let Some(after) = rest.strip_prefix("==") {
                let (value, after) = word(after, &[',']).map_err(invalid)?;
                rest = after;
                Test::Equal(value)
            } else if let Some(after) = rest.strip_prefix("!=") {
                let (value, after) = word(after, &[',']).map_err(invalid)?;
                rest = after;
                Test::Unequal(value)
            } else if rest.starts_with("~=") {
                return Err(invalid("regular expressions are not supported for snapshots"));
            } else {
                Test::Present
            };
            conditions.push(Condition { field: field(&path), test });
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(Self(conditions)),
                None => return Err(invalid("an operator or a comma is missing")),
            }
        }
    }
}

fn field(path: &[String]) -> Field {
    match path {
        [one] if one == "name" => Field::Name,
        [one] if one == "parent" => Field::Parent,
        [one] if one == "kind" => Field::Kind,
        [first, label @ ..] if first == "labels" && !label.is_empty() => Field::Label(label.join(".")),
        _ => Field::Unknown,
    }
}

/// A quoted word with backslash escapes, or everything up to one of `ends`.
fn word<'a>(text: &'a str, ends: &[char]) -> Result<(String, &'a str), &'static str> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &quoted[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("a quotation is not closed")
}

impl Condition {
    fn holds(&self, record: &Record) -> bool {
        let value = match &self.field {
            Field::Name => Some(record.name.as_str()),
            Field::Parent => Some(record.parent.as_str()).filter(|parent| !parent.is_empty()),
            Field::Kind => Some(match record.kind {
                Kind::View => "View",
                Kind::Active => "Active",
                Kind::Committed => "Committed",
            }),
            Field::Label(name) => record.labels.get(name).map(String::as_str),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.unwrap_or_default() == wanted,
            Test::Unequal(wanted) => value.unwrap_or_default() != wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn rows_of_filters() {
        let record = Record {
            id: 1,
            name: "default/1/a".into(),
            parent: String::new(),
            kind: Kind::Committed,
            created: 0,
            updated: 0,
            labels: HashMap::from([("containerd.io/snapshot.ref".into(), "sha256:a,b".into())]),
            usage: (0, 0),
            lazy: None,
        };
        let rows = [
            ("", true),
            ("name==default/1/a", true),
            ("name!=default/1/a", false),
            ("kind==Committed", true),
            ("kind==Active", false),
            ("parent", false),
            ("parent==\"\"", true),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:a,b\"", true),
            ("labels.containerd.io/snapshot.ref==\"sha256:a,b\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:a,b\",kind==Active", false),
            ("labels.\"other\"", false),
            ("bogus==x", false),
        ];
        for (text, expected) in rows {
            let filters = parse(&[text.to_owned()]).unwrap();
            assert_eq!(matches(&filters, &record), expected, "{text}");
        }
        let either = parse(&["kind==Active".to_owned(), "kind==Committed".to_owned()]).unwrap();
        assert!(matches(&either, &record));
        for bad in ["name==\"x", "name=x", "name~=x", "labels.\"a\"x"] {
            assert_eq!(parse(&[bad.to_owned()]).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }
}
