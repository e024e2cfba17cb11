//! What was probably meant by a key that does not exist.

use super::keys;

/// Longer ones are no slips.
const MOST_GUESSED: usize = 64;
/// A name as short as this may be wrong in one letter only.
const SHORT: usize = 8;

/// The key that is written nearly so, or in another section.
pub(super) fn key(wrong: &str) -> Option<&'static str> {
    let near = nearest(wrong, keys::names());
    near.or_else(|| {
        let leaf = |name: &str| plain(name.rsplit('.').next().unwrap_or_default());
        let wanted = leaf(wrong);
        let mut elsewhere = keys::names().filter(|name| leaf(name) == wanted);
        // Of a name that many sections have none is meant more than another.
        elsewhere.next().filter(|_| elsewhere.next().is_none())
    })
}

/// The section that is written nearly so.
pub(super) fn section(wrong: &str) -> Option<&'static str> {
    nearest(wrong, keys::sections())
}

fn nearest(wrong: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let wrong = plain(wrong);
    if wrong.len() > MOST_GUESSED {
        return None;
    }
    let slips = if wrong.len() <= SHORT { 1 } else { 2 };
    let near = names.map(|name| (distance(&wrong, &plain(name)), name));
    near.filter(|(distance, _)| *distance <= slips)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Without case and separators, which are what is mistaken most often: half of the keys are written like this, half
/// like that.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// How many letters must be put in, left out or replaced to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (place, wanted) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *wanted);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant() {
        let check = |wrong: &str, meant: Option<&str>| assert_eq!(key(wrong), meant, "{wrong}");
        check("http.max_retries", Some("http.MaxRetries"));
        check("http.maxretries", Some("http.MaxRetries"));
        check("fetch.hegde", Some("fetch.hedge"));
        check("fetch.max_request", Some("fetch.max_requests"));
        check("fetch.read_timeout_secs", Some("fetch.read_timeout_sec"));
        check("span_store.mix_free", Some("span_store.min_free"));
        check("MetricsAddress", Some("metrics_address"));
        check("snapshotter.containerd_address", Some("content_store.containerd_address"));
        check("DialTimeoutMsec", Some("http.DialTimeoutMsec"));
        check("enable", None);
        check("bogus", None);
        check(&"x".repeat(10_000), None);
        assert_eq!(section("Fetch"), Some("fetch"));
        assert_eq!(section("spanstore"), Some("span_store"));
        assert_eq!(section("pull_modes.soci_v3"), Some("pull_modes.soci_v2"));
        assert_eq!(section("nothing"), None);
    }

    #[test]
    fn distances() {
        for (one, other, expected) in
            [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
