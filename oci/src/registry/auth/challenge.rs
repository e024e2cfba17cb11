//! `WWW-Authenticate`, parsed: pure. A header may hold several challenges and a response several headers; Bearer
//! is taken before Basic, anything else is passed over.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: String },
}

pub(super) fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<Challenge> = values.flat_map(challenges).collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for piece in split_at_commas(header) {
        // `Scheme key=value` begins a challenge, `key=value` continues one.
        let (scheme, parameter) = match piece.split_once(char::is_whitespace) {
            Some((scheme, rest)) if !scheme.contains('=') => (Some(scheme), rest.trim()),
            _ if piece.contains('=') => (None, piece),
            _ => (Some(piece), ""),
        };
        if let Some(scheme) = scheme {
            found.push((scheme.to_ascii_lowercase(), Vec::new()));
        }
        if let (Some((_, parameters)), Some((key, value))) = (found.last_mut(), parameter.split_once('=')) {
            parameters.push((key.trim().to_ascii_lowercase(), unquote(value.trim())));
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| known(&scheme, &parameters)).collect()
}

fn known(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: find("realm")?,
            service: find("service"),
            scope: find("scope").unwrap_or_default(),
        }),
        _ => None,
    }
}

/// Pieces between commas that stand outside quotes.
fn split_at_commas(header: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    let outside = move |c: char| {
        let separates = c == ',' && !quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = c == '\\' && !escaped;
        separates
    };
    header.split(outside).map(str::trim).filter(|piece| !piece.is_empty()).collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    inner
        .chars()
        .filter(|&c| {
            escaped = c == '\\' && !escaped;
            !escaped
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let check = |headers: &[&'static str], expected: Option<Challenge>| {
            let mut map = HeaderMap::new();
            for header in headers {
                map.append(WWW_AUTHENTICATE, header.parse().unwrap());
            }
            assert_eq!(parse(&map), expected, "{headers:?}");
        };
        let bearer = |realm: &str, service: Option<&str>, scope: &str| {
            let service = service.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.to_owned(), service, scope: scope.to_owned() })
        };
        check(&[], None);
        check(&["Basic realm=\"x\""], Some(Challenge::Basic));
        check(&["basic"], Some(Challenge::Basic));
        check(&["Negotiate"], None);
        check(
            &["Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a/b:pull,push\""],
            bearer("https://a/t", Some("s"), "repository:a/b:pull,push"),
        );
        check(&["Basic realm=\"a, b\", Bearer realm=https://a/t"], bearer("https://a/t", None, ""));
        check(&["Basic realm=x", "BEARER Realm=\"q\\\"r\""], bearer("q\"r", None, ""));
        check(&["Bearer service=\"no realm\""], None);
        check(&["Negotiate, Basic realm=x"], Some(Challenge::Basic));
    }
}
