//! Image names, as Docker writes them: `[host[:port]/]repository[:tag][@digest]`. Parsing applies Docker's
//! normalisation (`alpine` is `docker.io/library/alpine`), printing gives the full form. A refusal says what is
//! wrong with the name.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind};

/// Repository names longer than this are refused everywhere (the distribution specification's grammar).
const NAME_LENGTH_MAX: usize = 255;
/// The same for tags.
const TAG_LENGTH_MAX: usize = 128;

/// A parsed, normalized image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// `host[:port]`; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, else the tag, else `latest`.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository, by digest and without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let doing = format!("parse image name {:?}", text.chars().take(300).collect::<String>());
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, doing.clone()).because(why);

        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest: Digest = digest.parse().map_err(|e: Error| e.within(doing.clone()))?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash begins a tag; before it, a port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            None => (rest, None),
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        let (registry, repository) = split_registry(name);
        check_registry(&registry).map_err(invalid)?;
        check_repository(&repository).map_err(invalid)?;
        if registry.len() + 1 + repository.len() > NAME_LENGTH_MAX {
            return Err(invalid("it is longer than 255 characters"));
        }
        Ok(Reference { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

/// Docker's rule: what stands before the first slash is a host if it could not be a repository's first part.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '[']) || first == "localhost" || first != first.to_lowercase() =>
        {
            (first, rest)
        }
        Some(_) | None => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    if registry == "docker.io" && !repository.contains('/') && !repository.is_empty() {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("its IPv6 address has no closing bracket")?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("its host is not an IPv6 address");
            }
            let port = after.strip_prefix(':');
            if port.is_none() && !after.is_empty() {
                return Err("its host is followed by something that is not a port");
            }
            ("", port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("its port is not a number below 65536");
    }
    if registry.starts_with('[') {
        return Ok(());
    }
    let good = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(good) { Ok(()) } else { Err("its host is not a host name") }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.is_empty() {
        return Err("it has no repository");
    }
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("a repository is written in lower case");
    }
    if repository.split('/').all(is_path_component) {
        return Ok(());
    }
    Err("a repository's parts are letters and digits, joined by single . or _, by __ or by dashes")
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(word) || !part.ends_with(word) {
        return false;
    }
    part.split(word)
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

/// Whether `tag` is a tag: `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.is_empty() {
        return Err("its tag is empty");
    }
    if tag.len() > TAG_LENGTH_MAX {
        return Err("its tag is longer than 128 characters");
    }
    if tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-') {
        return Ok(());
    }
    Err("a tag is letters, digits, underscores, dots and dashes, and begins with none of the last two")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes() {
        let check = |text: &str, expected: &str| {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), expected, "{text}");
            assert_eq!(expected.parse::<Reference>().unwrap(), reference, "{text}");
        };
        let d = Digest::sha256(b"");
        check("alpine", "docker.io/library/alpine");
        check("alpine:3.20", "docker.io/library/alpine:3.20");
        check("user/repo", "docker.io/user/repo");
        check("index.docker.io/alpine", "docker.io/library/alpine");
        check("docker.io/alpine:x", "docker.io/library/alpine:x");
        check("localhost/x", "localhost/x");
        check("localhost:5000/x:1", "localhost:5000/x:1");
        check("127.0.0.1:5000/a/b__c/d-e.f", "127.0.0.1:5000/a/b__c/d-e.f");
        check("[::1]:5000/x", "[::1]:5000/x");
        check("[::1]/x:t", "[::1]/x:t");
        check("quay.io/a/b:T_1.x-y", "quay.io/a/b:T_1.x-y");
        check("HOST/x", "HOST/x");
        check(&format!("quay.io/a@{d}"), &format!("quay.io/a@{d}"));
        check(&format!("quay.io/a:t@{d}"), &format!("quay.io/a:t@{d}"));
    }

    #[test]
    fn targets() {
        let d = Digest::sha256(b"");
        let target = |text: &str| text.parse::<Reference>().unwrap().target();
        assert_eq!(target("a"), "latest");
        assert_eq!(target("a:b"), "b");
        assert_eq!(target(&format!("a:b@{d}")), d.to_string());
    }

    #[test]
    fn refuses_and_says_why() {
        let check = |text: &str, why: &str| {
            let error = text.parse::<Reference>().unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains(why), "{text}: {cause}");
        };
        check("", "no repository");
        check("quay.io/", "no repository");
        check("a:", "tag is empty");
        check("a:.x", "begins with none");
        check(&format!("a:{}", "x".repeat(129)), "longer than 128");
        check("quay.io/Upper", "lower case");
        check("a//b", "joined by");
        check("a/../b", "joined by");
        check("a b", "joined by");
        check("a..b/c", "host name");
        check("host.x:99999/a", "port");
        check("[::1/x", "closing bracket");
        check("a@sha256:12", "parse digest");
        check(&format!("q.io/{}", "x".repeat(260)), "longer than 255");
    }
}
