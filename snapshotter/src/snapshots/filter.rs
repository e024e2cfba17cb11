//! containerd's filter language, as its own snapshotters understand it. Pure.
//!
//! A filter is a list of conditions that all hold, with commas between them. Of several filters one has to match. A
//! condition is a field, and perhaps an operator and a value: `name==x`, `parent!=""`, `labels."a.b"~=/^v[0-9]/`. A
//! field alone asks whether it is there.
//!
//! The words are containerd's. A field's parts are letters, digits and `_`, or quoted. A value begins with none of
//! `.,=!~` and ends before a space or a comma, or it is quoted. A regular expression may also be quoted with `/` or `|`.

use regex::Regex;

use crate::{
    error::{Error, ErrorKind},
    snapshots::store::{Kind, Record},
};

mod words;

use words::Words;

/// One filter: all of its conditions hold. One without any matches everything.
#[derive(Debug)]
pub(crate) struct Filter(Vec<Condition>);

#[derive(Debug)]
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

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    /// `None`: what was given is no regular expression, and nothing matches it.
    Matches(Option<Regex>),
}

/// Parses every filter; an empty list matches everything.
pub(crate) fn parse(filters: &[String]) -> Result<Vec<Filter>, Error> {
    let parse = |text: &String| {
        Filter::parse(text).map_err(|why| {
            Error::new(ErrorKind::InvalidArgument, format!("list snapshots: filter {text:?}: {why}"))
        })
    };
    filters.iter().map(parse).collect()
}

/// Whether one of `filters` matches, or there is none.
pub(crate) fn matches(filters: &[Filter], record: &Record) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.0.iter().all(|one| one.holds(record)))
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        let mut conditions = Vec::new();
        if text.is_empty() {
            return Ok(Self(conditions));
        }
        let mut words = Words::new(text);
        loop {
            let mut path = vec![words.field()?];
            while words.takes('.') {
                path.push(words.field()?);
            }
            let test = match words.peek() {
                None | Some(',') => Test::Present,
                Some(_) => match words.operator()? {
                    "==" => Test::Equal(words.value()?),
                    "!=" => Test::Unequal(words.value()?),
                    "~=" => Test::Matches(Regex::new(&words.expression()?).ok()),
                    other => return Err(format!("{other:?} is no operator")),
                },
            };
            conditions.push(Condition { field: field(&path), test });
            match words.peek() {
                None => return Ok(Self(conditions)),
                Some(_) if words.takes(',') => {}
                Some(other) => return Err(format!("{other:?} was not expected")),
            }
        }
    }
}

fn field(path: &[String]) -> Field {
    let (first, rest) = path.split_first().map_or(("", path), |(first, rest)| (first.as_str(), rest));
    // What follows the others is not looked at, as containerd does not.
    match first {
        "name" => Field::Name,
        "parent" => Field::Parent,
        "kind" => Field::Kind,
        "labels" => Field::Label(rest.join(".")),
        _ => Field::Unknown,
    }
}

impl Condition {
    fn holds(&self, record: &Record) -> bool {
        let value = match &self.field {
            Field::Name => Some(record.name.as_str()),
            Field::Parent => Some(record.parent.as_str()),
            Field::Kind => Some(match record.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Field::Label(name) => record.labels.get(name).map(String::as_str),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Unequal(wanted) => value.unwrap_or_default() != wanted,
            Test::Matches(wanted) => {
                wanted.as_ref().is_some_and(|wanted| wanted.is_match(value.unwrap_or_default()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn record() -> Record {
        let labels = [("containerd.io/snapshot.ref", "sha256:a,b"), ("l", "v10"), ("empty", "")];
        Record {
            id: 1,
            name: "default/1/a".into(),
            parent: String::new(),
            kind: Kind::Committed,
            created: 0,
            updated: 0,
            labels: HashMap::from(labels.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            usage: (0, 0),
            shown: None,
        }
    }

    #[test]
    fn rows_of_filters() {
        let record = record();
        let rows = [
            ("", true),
            ("name==default/1/a", true),
            ("name == default/1/a", true),
            ("name!=default/1/a", false),
            ("kind==committed", true),
            ("kind==Committed", false),
            ("kind==active", false),
            ("parent", true), // as every snapshot has one, perhaps of no name
            ("parent==\"\"", true),
            ("parent!=\"\"", false),
            ("labels", false),
            ("labels.l", true),
            ("labels.l==v10", true),
            ("labels.l~=v[0-9]+", true),
            ("labels.l~=/^v[0-9]$/", false),
            ("labels.l~=|^v\\u0031|", true),
            ("labels.l~=\"^v1\"", true),
            ("labels.l~=/(/", false),
            ("labels.none~=/^$/", true),
            ("labels.none!=x", true),
            ("labels.none==\"\"", false),
            ("labels.empty", true),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:a,b\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:a,b\",kind==active", false),
            ("labels.\"containerd.io/snapshot.ref\"~=/^sha256:/,kind==committed,labels.l", true),
            ("labels.\"other\"", false),
            ("bogus==x", false),
            ("bogus!=x", true),
            ("bogus", false),
        ];
        for (text, expected) in rows {
            let filters = parse(&[text.to_owned()]).unwrap();
            assert_eq!(matches(&filters, &record), expected, "{text}");
        }
        let rows = [
            (&["kind==active", "kind==committed"], true),
            (&["kind==active", ""], true),
            (&["kind==active", "kind==view"], false),
        ];
        for (texts, expected) in rows {
            let filters = parse(&texts.map(str::to_owned)).unwrap();
            assert_eq!(matches(&filters, &record), expected, "{texts:?}");
        }
        assert!(matches(&[], &record));
    }

    #[test]
    fn what_is_no_filter() {
        let rows = [
            " ",
            ",",
            "name==\"x",
            "name=x",
            "name===x",
            "name==",
            "name==x ",
            "name==x y",
            "name==/x/", // only regular expressions
            "name==.x",
            "labels.",
            "labels.\"a\"x",
            "labels.a/b==c",
            "labels.a-b",
            "name==\"\\q\"",
            "name==\"\\u12\"",
            "name==x,",
            "=x",
        ];
        for bad in rows {
            let error = parse(&[bad.to_owned()]).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }
}
